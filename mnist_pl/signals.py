"""Signals that ask a program to stop: it ends with one line, and with 128 + the signal's number as its exit code.

Imports nothing heavy: it is set up before the imports, which take a second.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

# Ctrl-C, `kill`, and what SLURM (#SBATCH --signal) and submitit send before a time limit. Windows has the first two.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]

FIRST = "MNIST_PL_FIRST"  # the environment variable that tells further processes of a run which one started them
AT_ONCE = 0.3  # seconds

_advice = "run the same command again"
_send: Callable[[int], Any] = lambda number: None  # a signal to the further processes of this run  # noqa: E731


def end_on_signals() -> None:
    """From here on, each of STOPPING ends the program; the training takes them over, to write a checkpoint first."""
    for number in STOPPING:
        signal.signal(number, _end)


def advise(text: str) -> None:
    """How to continue, if a signal ends the program from here on."""
    global _advice
    _advice = text


def share(send: Callable[[int], Any], waiting: bool = False) -> None:
    """This is the first of several processes; `send` sends the others a signal. They end together.

    Args:
        waiting: it has no work itself, and leaves it to the others what to do about a signal.
    """
    global _send
    _send = send
    os.environ[FIRST] = str(os.getpid())
    for number in STOPPING if waiting else []:
        signal.signal(number, lambda number, frame: send(number))


def end_others() -> None:
    """Those that this process has started; they may wait for it in a place where no other signal reaches them."""
    _send(getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows knows no other end than that


def end_at_once_next_time() -> None:
    """A second signal is not waited for: whoever sends it means it.

    It may come twice within a moment: from the terminal, and from the process that started this one.
    """
    first = time.monotonic()

    def end_now(number: int, frame: Any) -> None:
        if time.monotonic() - first > AT_ONCE:
            os._exit(128 + number)

    for number in STOPPING:
        signal.signal(number, end_now)


def _end(number: int, frame: Any) -> None:
    end_at_once_next_time()
    if os.environ.get("LOCAL_RANK", "0") == "0":  # not `print`, which may be what was interrupted
        os.write(2, f"stopped by {signal.Signals(number).name}; {_advice}\n".encode(errors="backslashreplace"))
    if os.environ.get(FIRST) == str(os.getppid()):
        os.kill(os.getppid(), number)
    end_others()
    raise SystemExit(128 + number)
