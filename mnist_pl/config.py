"""The schema of the two commands, and the door where configuration stops. Imports nothing heavy: --help is quick."""

import ctypes
import difflib
import errno
import inspect
import logging
import os
import platform
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

if TYPE_CHECKING:
    from lightning import Trainer

    from mnist_pl.data import MNISTDataModule
    from mnist_pl.models import DigitClassifier

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
LABELLED = ("data", "model", "optimizer", "scheduler", "trainer")  # groups whose settings tell runs apart; not these:
UNLABELLED = ("lr", "dataset", "data_dir", "mirrors", "fallback", "accelerator", "devices", "log_every_n_steps")
WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"


@dataclass
class Train:
    """Refuses a misspelt key at the root. Below it, the constructors know their arguments, defaults and ranges."""

    data: Any = MISSING
    model: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    seed: int = 1
    fit: bool = True
    ckpt_path: str | None = None
    resume: str | None = None
    claim: float | None = None


@dataclass
class Predict:
    ckpt_path: str | None = None
    input: str | None = None
    data_dir: str = "data"
    seed: int | None = None


ConfigStore.instance().store("train_schema", Train)
ConfigStore.instance().store("predict_schema", Predict)


def go_on(words: list[str]) -> list[str]:
    """The words of a command line in which `resume=RUN` stands for all that the run was started with.

    The other words win over the run's own. Ends the program where there is nothing left to do.

    Raises:
        ValueError: there is no such run, or it is a sweep that is asked for.
    """
    more = [word for word in words if not word.startswith("resume=")]
    runs = [word.partition("=")[2].strip("'\"") for word in words if word.startswith("resume=")]
    if not runs or runs[-1] in ("", "null"):
        return words
    if {"-m", "--multirun"} & set(words):
        raise ValueError(f"resume={runs[-1]}: goes on with one run; leave out -m")
    folder = Path(runs[-1])
    if runs[-1] == "last":
        from mnist_pl import checkpoint  # and with it, torch

        folder = checkpoint.find(None, "last.ckpt").parent.parent
    overrides = folder / ".hydra" / "overrides.yaml"
    if not overrides.is_file() or not overrides.stat().st_size:
        raise ValueError(
            f"resume={runs[-1]}: {overrides} tells how a run was started, and is "
            f"{'empty' if overrides.is_file() else 'not there'}; name a run folder, or say resume=last for the newest"
        )
    if (folder / "summary.json").exists() and not more:
        print(f"{folder} is finished; to train it further, say for instance trainer.max_epochs=10 too")
        sys.exit()
    said = {_key(word): word for word in map(str, OmegaConf.load(overrides)) if _key(word) != "sweep"}
    said |= {_key(word): word for word in more}
    from mnist_pl import checkpoint

    held = checkpoint.held(folder)
    if held is not None:  # else it was killed before its first checkpoint, and begins anew
        said["ckpt_path"] = f"ckpt_path={_quote(held)}"
    return [*said.values(), f"hydra.run.dir={_quote(folder)}", "hydra.output_subdir=null"]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _quote(path: Path) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def label(cfg: Any) -> str:
    """The run in a few words, for lists of runs: what was chosen, and what else was said on the command line."""
    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    parts = [cfg.data.dataset, choices.get("experiment") or f"{choices['model']}-{choices['optimizer']}"]
    parts.append(f"lr{cfg.optimizer.lr:g}")
    for word in hydra.overrides.task:
        key, _, value = word.partition("=")
        group, _, setting = key.lstrip("+~").partition(".")
        if group == "scheduler" and not setting:
            parts.append(value)
        elif setting and group in LABELLED and setting not in UNLABELLED:
            parts.append(setting.rpartition(".")[2] + value)
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts))[:80] + f"-seed{cfg.seed}"  # it becomes a folder


OmegaConf.register_new_resolver("label", lambda *, _root_: label(_root_))


def build(cfg: DictConfig) -> "tuple[MNISTDataModule, DigitClassifier, Trainer]":
    """Builds everything before anything is done, so that a bad setting fails before a download.

    Raises:
        ValueError: a setting is misspelt, of the wrong kind or out of range; the message is one line and names it.
    """
    for known in (
        ".*LeafSpec.*is deprecated",  # Lightning 2.6's own use of something that torch 2.15 deprecates
        ".*recommended to use .*sync_dist=True",  # what is logged has been gathered by torchmetrics already
        ".*is smaller than the logging interval",  # our steps are counted over all epochs, so nothing goes unlogged
        ".*call of `lr_scheduler.step\\(\\)` before",  # a process may begin with the end of an epoch
        ".*joblib will operate in serial mode",  # without /dev/shm; scikit-learn only brings the embedded digits
        ".*exists and is not empty",  # the checkpoints of a run that is gone on with
    ):
        warnings.filterwarnings("ignore", message=known)
    import torch
    from lightning import seed_everything
    from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
    from lightning.pytorch.loggers import Logger

    from mnist_pl.checkpoint import DurableIO

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()  # Hydra's shows and keeps what is said
    keep_freed_memory()
    # A help for debugging, and 2 % of a run:
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to {2**32 - 1}, got {cfg.seed}")
    seed_everything(cfg.seed, workers=True, verbose=False)
    data = make(cfg.data, "data", _recursive_=False)
    model = make(cfg.model, "model", _recursive_=False)
    with _named("optimizer", cfg.optimizer):
        model.make_optimizer()
    callbacks = _make_all(cfg.callbacks, "callbacks", Callback)
    if cfg.trainer.enable_checkpointing is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
    if cfg.trainer.enable_progress_bar is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    if cfg.trainer.accelerator in ("gpu", "cuda") and not (torch.cuda.is_available() or torch.mps.is_available()):
        raise ValueError(
            f"trainer.accelerator={cfg.trainer.accelerator}: PyTorch {torch.__version__} finds no GPU on this machine; "
            "say trainer.accelerator=cpu, or auto to use one where there is one"
        )
    if cfg.resume is not None:
        raise ValueError(f"resume={cfg.resume}: is read from the command line alone, and goes on with one run")
    loggers = _make_all(cfg.logger, "logger", Logger)
    plugins = [DurableIO(), *(cfg.trainer.plugins or [])]
    trainer = make(cfg.trainer, "trainer", callbacks=callbacks, logger=loggers or False, plugins=plugins)
    if trainer.world_size > 1 and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ValueError(
            f"trainer.devices={cfg.trainer.devices}: in a sweep (-m) each process would start the sweep anew; "
            "use one device a job, or run the jobs one by one"
        )
    return data, model, trainer


def keep_freed_memory() -> None:
    """Has glibc reuse the memory of a step's activations in the next, rather than ask the system for it each time.

    By default it hands blocks of megabytes back at once, and their pages are cleared anew for each use: up to a third
    of a CNN's step on a CPU. The numbers of the two parameters are those of glibc's malloc.h.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD, in bytes
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def remember(cfg: DictConfig) -> None:
    """Brings .hydra up to date in a folder that a run goes on in, where Hydra itself would risk what is there."""
    from mnist_pl import checkpoint

    folder = Path(HydraConfig.get().runtime.output_dir, ".hydra")
    if HydraConfig.get().output_subdir is None and folder.exists():
        said = OmegaConf.to_yaml(HydraConfig.get().overrides.task)
        for name, text in (("config.yaml", OmegaConf.to_yaml(cfg)), ("overrides.yaml", said)):
            checkpoint.write(folder / name, text.encode())


def make(node: Any, name: str, **more: Any) -> Any:
    """Instantiates one node of the configuration from plain values."""
    with _named(name, node):
        return instantiate(node, _convert_="all", **more)


def _make_all(group: Any, name: str, kind: type) -> list[Any]:
    """A group of named nodes; null switches one off."""
    made = {f"{name}.{key}": make(node, f"{name}.{key}") for key, node in (group or {}).items() if node is not None}
    for key, item in made.items():
        if not isinstance(item, kind):  # without a `_target_`, Hydra hands back the plain node
            raise ValueError(f"{key} must have a _target_ that is a {kind.__name__}, got {item!r}")
    return list(made.values())


@contextmanager
def _named(name: str, node: Any) -> Iterator[None]:
    """Errors of a constructor, as one line that names the setting."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ValueError(f"{name} must have a _target_, the class that it stands for")
    try:
        _check_keys(name, node)
        yield
    except (InstantiationException, ImportError, TypeError, ValueError) as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__:
            cause = cause.__cause__
        line = _line(cause)
        raise ValueError(line if line.startswith(name) else f"{name}: {line}") from error


def _check_keys(name: str, node: DictConfig) -> None:
    target = get_object(node._target_)
    known: set[str] = set()
    # A class that passes **keywords on takes those of its parent too.
    for owner in [kind for kind in target.__mro__ if "__init__" in vars(kind)] if inspect.isclass(target) else [target]:
        try:
            parameters = inspect.signature(owner).parameters
        except ValueError:  # some builtins do not say
            return
        known |= {key for key, value in parameters.items() if value.kind is not value.VAR_KEYWORD}
        if all(value.kind is not value.VAR_KEYWORD for value in parameters.values()):
            break
    for key in map(str, node):
        if key not in known and not key.startswith("_"):
            raise ValueError(f"{name}.{key}: there is no such setting; {_suggest(key, known)}")


def _suggest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, [str(name) for name in known], n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(map(str, known)))}"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can mend ends the program with one line; anything else is a fault of ours and shows its traceback.

    HYDRA_FULL_ERROR=1 shows the traceback of both. In a sweep, Hydra gets to see the error of a job and goes on.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its own errors, on many lines
    logging.raiseExceptions = False  # a log file on a full disk; what matters more will not fit either, and says so
    threading.excepthook = _in_thread
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack the letters of a file's name
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
        if WANTS_TRACEBACK or in_sweep or not is_users(error):
            raise
        sys.exit(f"error: {explain(error)}")


def _in_thread(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer raises what its thread met in the main one too."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def is_users(error: Exception) -> bool:
    kinds: tuple[type[Exception], ...] = (HydraException, OmegaConfBaseException, ValueError, OSError)
    if "lightning" in sys.modules:
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        kinds = (*kinds, MisconfigurationException)
    return isinstance(error, kinds)


def explain(error: Exception) -> str:
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option}: there is no such option; there are {', '.join(error.options)}"
    cause = error.__cause__
    if isinstance(error, OverrideParseException):
        reason = _line(error.message.partition("See https")[0])
        return (
            f"{error.override}: cannot be parsed ({reason}); put quotes inside the quotes of the shell: \"key='a=b'\""
        )
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        known = list(cause.parent_node)
        return f"{cause.full_key}: there is no such setting; {_suggest(str(cause.key), known)}"
    text = str(error)
    number = getattr(error, "errno", None) or getattr(cause, "errno", None)
    if number in UNWRITABLE:
        where = f" in {HydraConfig.get().runtime.output_dir}" if HydraConfig.initialized() else ""
        text += f"; make room{where}, or choose another folder for the run with hydra.run.dir=FOLDER"
    if isinstance(cause, OmegaConfBaseException):
        text += f": {cause.msg}"
    return _line(text)


def _line(text: object) -> str:
    """Without line breaks and terminal codes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(text).split()))
