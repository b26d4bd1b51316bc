"""Signals that ask a program to stop: it ends with one line, and with 128 + the signal's number as its exit code.

Imports nothing heavy: it is set up before the imports, which take a second.
"""

import os
import signal
from contextlib import suppress
from typing import Any

# Ctrl-C, `kill`, and what SLURM (#SBATCH --signal) and submitit send before a time limit. Windows has the first two.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]

_advice = ""


def end_on_signals() -> None:
    """From here on, each of STOPPING ends the program; the training takes them over, to write a checkpoint first."""
    for number in STOPPING:
        signal.signal(number, _end)


def advise(text: str) -> None:
    """How to continue, if a signal ends the program from here on."""
    global _advice
    _advice = text


def advice(otherwise: str) -> str:
    return _advice or otherwise


def end_at_once_next_time() -> None:
    """A second signal is not waited for: whoever sends it means it."""
    for number in STOPPING:
        signal.signal(number, lambda number, frame: os._exit(128 + number))


def _end(number: int, frame: Any) -> None:
    end_at_once_next_time()
    if os.environ.get("LOCAL_RANK", "0") == "0":  # not `print`, which may be what was interrupted
        line = f"stopped by {signal.Signals(number).name}; {advice('run the same command again')}\n"
        with suppress(OSError):  # nobody reads it any more
            os.write(2, line.encode(errors="backslashreplace"))
    raise SystemExit(128 + number)
