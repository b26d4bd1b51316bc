"""Signals that ask a program to stop: it ends with one line, and with 128 + the signal's number as its exit code.

Imports nothing heavy: it is set up before the imports, which take a second.
"""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from os import _exit
from typing import Any

from mnist_pl.world import is_first, world

# Ctrl-C, `kill`, and what SLURM (#SBATCH --signal) and submitit send before a time limit. Windows has the first two.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
FIRST = "MNIST_PL_FIRST"  # the environment variable that tells further processes of a run which one started them
AT_ONCE = 0.3  # seconds
GRACE = 3.0  # seconds, for one of several processes, which may wait for another that has ended
PATIENCE = 10.0  # seconds, for a process to clean up after it was told to end

_advice = ""
_told = False
code: int | None = None  # of this process, once a signal ends it: what errors come up then are the signal's doing
_watching = 0  # the process, of which a forked one is a copy
_in_hand = False  # the training has taken note of a signal
ended_others = False
_others: Callable[[int], Any] | None = None  # sends a signal to the processes that this one has started
_workers: Callable[[int], Any] | None = None  # the same, and waits until they have ended
_arrange: Callable[[int], str | None] | None = None  # sees to it that what a signal ends is continued
_last_act: Callable[[], Any] | None = None


def end_on_signals(once_arranged: bool = False) -> None:
    """From here on, each of STOPPING ends the program; the training takes them over, to write a checkpoint first.

    `once_arranged`: one that comes before `arrange` waits until then.
    """
    if once_arranged:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    for number in STOPPING:
        signal.signal(number, _end)
    atexit.register(_keep_code)  # the last to be called
    if "LOCAL_RANK" in os.environ or world() is not None:  # one of several processes
        watch()


def watch() -> None:
    """Python handles no signal while the main thread waits inside PyTorch for another process; a thread does."""
    global _watching
    if _watching == os.getpid():
        return
    _watching = os.getpid()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def _watch(reader: socket.socket) -> None:
    while number := ord(reader.recv(1)):
        if number in STOPPING:
            time.sleep(GRACE)
            if not _in_hand:
                if is_first():
                    tell(number)
                end_others()
                _leave(128 + number)


def advise(text: str) -> None:
    """How to continue, if a signal ends the program from here on."""
    global _advice
    _advice = text


def advice(otherwise: str, number: int | None = None) -> str:
    """How to continue after the signal `number`; that may be seen to already, once this process has ended."""
    arranged = _arrange(number) if _arrange is not None and number is not None else None
    return arranged or _advice or otherwise


def arrange(how: Callable[[int], str | None]) -> None:
    """`how` is called when a signal ends the program, and returns what is told, where it sees to the rest."""
    global _arrange
    _arrange = how
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def _keep_code() -> None:
    if code is not None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        _leave(code)


def _insist() -> None:
    """A SystemExit that is raised in the midst of a library may be swallowed there."""
    time.sleep(PATIENCE)
    _leave(code or 1)


def leave_with(act: Callable[[], Any]) -> None:
    """`act` is the last that this process does."""
    global _last_act
    if _last_act is None:
        atexit.register(_act)
    _last_act = act


def _act() -> None:
    global _last_act
    act, _last_act = _last_act, None
    if act is not None:
        if threading.current_thread() is threading.main_thread():
            ignore_signals()  # which it may bring about
        act()


def _leave(code: int) -> None:
    _act()
    _exit(code)


def share(send: Callable[[int], Any]) -> None:
    """This process will start others, which end when it does: `send` sends them a signal."""
    global _others
    _others = send
    os.environ[FIRST] = str(os.getpid())
    watch()


def wait_for(stop: Callable[[int], Any]) -> None:
    """This process gives work to others: `stop` sends them a signal, and returns when they have ended."""
    global _workers
    _workers = stop


def pass_on(send: Callable[[int], Any]) -> None:
    """This process only waits for others, and leaves it to them what to do about a signal."""
    for number in STOPPING:
        signal.signal(number, lambda number, frame: send(number))


def end_others() -> None:
    """Those that this process has started, at once: they may wait for it where no other signal reaches them."""
    global ended_others
    ended_others = True
    if _others is not None:
        _others(getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows knows no other end than that


def ignore_signals() -> None:
    """This process is about to end by itself, and has something to say before."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def end_with_parent(then: Callable[[], Any]) -> None:
    """`then` is called, in a thread, when the process that has started this one ends, however that comes about."""
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(AT_ONCE)
        then()

    threading.Thread(target=wait, daemon=True).start()


def end_at_once_next_time() -> None:
    """A second signal is not waited for: whoever sends it means it.

    The same one may come twice within a moment: from the terminal, and from another process of the run.
    """
    global _in_hand
    _in_hand, first = True, time.monotonic()

    def end_now(number: int, frame: Any) -> None:
        if time.monotonic() - first > AT_ONCE:
            _leave(128 + number)

    for number in STOPPING:
        signal.signal(number, end_now)


def leave_telling_to_another() -> None:
    """Another process of the same program gets the signal too, and tells."""
    global _told
    _told = True


def tell(number: int) -> None:
    """What has happened, and how to continue, once; not by `print`, which may be what was interrupted."""
    global _told
    if _told:
        return
    _told = True
    line = f"stopped by {signal.Signals(number).name}; {advice('run the same command again', number)}\n"
    with suppress(OSError):  # nobody reads it any more
        os.write(2, line.encode(errors="backslashreplace"))


def _end(number: int, frame: Any) -> None:
    global _in_hand, code
    end_at_once_next_time()
    _in_hand, code = False, 128 + number
    if is_first():
        tell(number)
    if os.environ.get(FIRST) == str(os.getppid()):
        os.kill(os.getppid(), number)
        time.sleep(GRACE)  # ended by the first process, which should not find it ended
    if _workers is not None:
        _workers(number)
    end_others()
    if _imports(frame):
        _leave(code)
    with suppress(RuntimeError):  # there are no new threads where the interpreter is ending already
        threading.Thread(target=_insist, daemon=True).start()
    raise SystemExit(code)


def _imports(frame: Any) -> bool:
    """Whether a module is being imported; what is raised meanwhile may be taken for a module that is missing."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None
