"""What a user can mend ends a program with one line; a fault of ours, with its traceback."""

import difflib
import errno
import inspect
import logging
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from mnist_pl import signals
from mnist_pl.signals import advice
from mnist_pl.storage import one_line
from mnist_pl.world import is_to_tell

GROUPS = ("logger", "callbacks")  # which Lightning's Trainer takes as arguments
WORKER_LOST = "TerminatedWorkerError"  # joblib's
MISCONFIGURED = "MisconfigurationException"  # Lightning's
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
SAID = "MNIST_PL_FULL_ERROR"  # what HYDRA_FULL_ERROR was before, for further processes of the run (DDP)
WANTS_TRACEBACK = os.environ.get(SAID, os.environ.get("HYDRA_FULL_ERROR")) == "1"


def set_up_process() -> None:
    """For the whole of a program: Hydra leaves errors to `one_line_errors`, and any text can be printed."""
    os.environ[SAID] = str(int(WANTS_TRACEBACK))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its own errors, on many lines
    logging.raiseExceptions = False  # a log file on a full disk; what matters more will not fit either, and says so
    threading.excepthook = _in_thread
    set_up_streams()


def set_up_streams() -> None:
    """Any text can be printed, also where nobody reads it any more."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, TextIOWrapper):
            stream.flush()
            raw = _UntilClosed(stream.fileno(), "wb", closefd=False)
            raw.replaced = stream  # which would close the file, were it forgotten
            writer = TextIOWrapper(
                BufferedWriter(raw) if isinstance(stream.buffer, BufferedWriter) else raw,  # python -u
                stream.encoding,
                "backslashreplace",  # a terminal may lack the letters of a file's name
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, writer)


class _UntilClosed(FileIO):
    """What is written after the reader has gone (`| head`), or the terminal, goes nowhere: a training goes on."""

    replaced: TextIOWrapper

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(content)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """HYDRA_FULL_ERROR=1 shows all tracebacks. In a sweep, Hydra gets to see the error of a job, and does the next."""
    try:
        yield
    except Exception as error:
        if signals.code is not None:
            sys.exit(signals.code)
        in_job = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
        if WANTS_TRACEBACK or in_job or not is_users(error):
            raise
        line = f"error: {explain(error)}"
        sys.exit(line if is_to_tell(line) else 1)


def _in_thread(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer raises what its thread met in the main one too."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def is_users(error: Exception) -> bool:
    known = type(error).__name__ in (WORKER_LOST, MISCONFIGURED)
    known |= str(error).startswith("Early stopping conditioned on metric")
    return known or isinstance(error, HydraException | OmegaConfBaseException | ValueError | OSError)


def explain(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if (group, option) == ("hydra/launcher", "joblib"):
            return 'hydra/launcher=joblib: is an extra; pip install -e ".[joblib]"'
        return f"{group}={option}: there is no such option; there are {', '.join(error.options)}"
    if type(error).__name__ == WORKER_LOST:
        return f"a job's process was killed, perhaps because memory ran out; {advice('run the same command again')}"
    cause = error.__cause__
    if isinstance(error, OverrideParseException):
        reason = one_line(error.message.partition("See https")[0])
        return (
            f"{error.override}: cannot be parsed ({reason}); put quotes inside the quotes of the shell: \"key='a=b'\""
        )
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        if str(cause.key) in GROUPS:
            return f"{cause.full_key}: is a group of its own; say {cause.key}=none"
        known = [key for key in map(str, cause.parent_node) if not key.startswith("_")]
        hint = suggest(str(cause.key), known)
        if hint.startswith("there are") and "." in str(cause.full_key):  # of these, or of what its class takes beyond
            hint += f"; +{cause.full_key}=… adds another"
        return f"{cause.full_key}: there is no such setting; {hint}"
    text = str(error)
    number = getattr(error, "errno", None) or getattr(cause, "errno", None)
    if number in UNWRITABLE:
        where = f" in {HydraConfig.get().runtime.output_dir}" if HydraConfig.initialized() else ""
        text += f"; make room{where}, or choose another folder for the run with hydra.run.dir=FOLDER"
    if isinstance(cause, OmegaConfBaseException):
        text += f": {cause.msg}"
    if type(error).__name__ == MISCONFIGURED:
        from lightning import Trainer

        names = "|".join(inspect.signature(Trainer).parameters)
        text = re.sub(rf"`({names})\b", r"`trainer.\1", text)  # whose arguments Lightning speaks of
    return one_line(text)


def suggest(word: str, known: Iterable[object]) -> str:
    """The name that was probably meant, or all that there are."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
