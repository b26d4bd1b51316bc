"""Configuration -> data, model, trainer. Everything is built before anything is done: a bad setting fails at once."""

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from mnist_pl.runs.errors import suggest
from mnist_pl.runs.folders import RESUMED
from mnist_pl.runs.processes import strategy_here
from mnist_pl.storage import one_line

if TYPE_CHECKING:
    from lightning import Trainer

    from mnist_pl.data import MNISTDataModule
    from mnist_pl.models import DigitClassifier

KNOWN_WARNINGS = (
    ".*LeafSpec.*is deprecated",  # Lightning 2.6's own use of something that torch 2.15 deprecates
    ".*is smaller than the logging interval",  # our steps are counted over all epochs, so nothing goes unlogged
    ".*call of `lr_scheduler.step\\(\\)` before",  # a process may begin with the end of an epoch
    ".*joblib will operate in serial mode",  # without /dev/shm; scikit-learn only brings the embedded digits
    ".*exists and is not empty",  # the checkpoints of a run that is resumed
    ".*barebones=True.*is configured",  # whoever says barebones knows that nothing is logged
)
BAREBONES = {"num_sanity_val_steps": 0, "enable_checkpointing": False, "enable_progress_bar": False}
BAREBONES |= {"log_every_n_steps": 0, "enable_model_summary": False}


def build(cfg: DictConfig) -> "tuple[MNISTDataModule, DigitClassifier, Trainer]":
    """Builds what the configuration describes, and seeds the random numbers.

    Raises:
        ValueError: a setting is misspelt, of the wrong kind or out of range; the message is one line and names it.
    """
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    import torch
    from lightning import seed_everything
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    from mnist_pl.engine.memory import keep_freed_memory
    from mnist_pl.models.classifier import HOW

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()  # Hydra's prints and keeps the messages
    keep_freed_memory()
    # A help for debugging, and 2 % of a run:
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to {2**32 - 1}, got {cfg.seed}")
    if cfg.resume is not None and HydraConfig.get().job.config_name != RESUMED:
        raise ValueError(f"resume={cfg.resume}: is read from the command line alone, and continues one run")
    seed_everything(cfg.seed, workers=True, verbose=False)
    with open_dict(cfg):
        reset_swapped_targets(cfg)
        if cfg.trainer.precision == "16-mixed" and OmegaConf.select(cfg, "optimizer.fused", default=False) is None:
            cfg.optimizer.fused = False  # whose scaled gradients cannot be clipped
    data = make(cfg.data, "data", _recursive_=False)
    model = make(cfg.model, "model", _recursive_=False)
    _check_own(model, data)
    with _named("optimizer", cfg.optimizer):
        optimizer = model.make_optimizer()
    if cfg.scheduler:
        with _named("scheduler", cfg.scheduler, extra=HOW):
            scheduler: Any = model.make_scheduler(optimizer, 1000)  # as good as any number, to see that it works
            scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
    return data, model, _make_trainer(cfg, data)


def _check_own(model: Any, data: Any) -> None:
    """Parts of one's own have what the rest relies on, and nothing that no checkpoint could be read with."""
    from mnist_pl.data import MNISTDataModule
    from mnist_pl.models import DigitClassifier
    from mnist_pl.models.classifier import class_path
    from mnist_pl.reading.checkpoint import check_can_be_kept

    for name, part, kind in (("model", model, DigitClassifier), ("data", data, MNISTDataModule)):
        if not isinstance(part, kind):
            raise ValueError(f"{name}._target_={class_path(type(part))}: must be a subclass of {class_path(kind)}")
        check_can_be_kept({f"{name}.{key}": value for key, value in part.hparams.items()})
    usual = type(model).configure_optimizers is DigitClassifier.configure_optimizers
    if usual and model.hparams["optimizer"] is None:
        raise ValueError(
            f"model._target_={class_path(type(model))}: gets no optimizer; have its __init__ take **shared and hand it "
            "to super().__init__, and its file in conf/model say `optimizer: ${optimizer}`, and `scheduler` likewise"
        )


def _make_trainer(cfg: DictConfig, data: "MNISTDataModule") -> "Trainer":
    import torch
    from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
    from lightning.pytorch.loggers import Logger

    from mnist_pl.engine.checkpoints import Best, DurableIO
    from mnist_pl.engine.strategy import FastSingleDevice

    if cfg.trainer.accelerator in ("gpu", "cuda") and not (torch.cuda.is_available() or torch.mps.is_available()):
        raise ValueError(
            f"trainer.accelerator={cfg.trainer.accelerator}: PyTorch {torch.__version__} finds no GPU on this machine; "
            "say trainer.accelerator=cpu, or auto to use one where there is one"
        )
    settings: dict[str, Any] = dict(cfg.trainer)
    callbacks = _make_all(cfg.callbacks, "callbacks", Callback)
    loggers = _make_all(cfg.logger, "logger", Logger)
    if settings["barebones"]:
        settings |= BAREBONES
        loggers = []
    for name, kind in {"enable_checkpointing": Checkpoint, "enable_progress_bar": ProgressBar}.items():
        if settings[name] is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, kind)]
        elif settings[name] is None:  # else Lightning adds one of its own to a run whose callbacks have none
            settings[name] = any(isinstance(callback, kind) for callback in callbacks)
    if data.hparams["val_size"] == 0 and not data.hparams["validate_on_test"]:
        settings["limit_val_batches"] = 0
    # The test images may be scored every epoch, as published scripts do, but nothing is ever chosen by them.
    if not data.selects or settings["limit_val_batches"] == 0:
        for callback in callbacks:
            if isinstance(callback, Best):
                callback.monitor = None
    if settings["limit_val_batches"] == 0 and str((cfg.scheduler or {}).get("monitor")).startswith("val/"):
        raise ValueError(
            f"scheduler.monitor={cfg.scheduler.monitor}: there is no validation (data.val_size={cfg.data.val_size}); "
            "say scheduler.monitor=train/loss, or hold images out"
        )
    plugins = list(cfg.trainer.plugins or [])
    plugins.append(DurableIO())
    strategy = strategy_here(cfg.trainer.strategy)
    strategy = FastSingleDevice.where_it_fits(cfg.trainer, strategy)
    more = {"callbacks": callbacks, "logger": loggers or False, "plugins": plugins, "strategy": strategy}
    trainer = make(OmegaConf.create(settings), "trainer", **more)
    if trainer.world_size > 1 and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ValueError(
            f"trainer.devices={cfg.trainer.devices}: in a sweep (-m) each process would start the sweep again; "
            "use one device a job, or run the jobs one by one"
        )
    return trainer


def reset_swapped_targets(cfg: DictConfig) -> None:
    """`GROUP._target_=Class` on the command line starts from that class's own defaults.

    Of the settings of the option that was there before, those are kept that the command line overrides too, and those
    that refer to other settings (`${seed}`), where the class has them.
    """
    overridden = {override.partition("=")[0].lstrip("+~") for override in HydraConfig.get().overrides.task}
    for group in [key.removesuffix("._target_") for key in overridden if key.endswith("._target_")]:
        node = OmegaConf.select(cfg, group)
        if not isinstance(node, DictConfig):
            continue
        with _named(group, node, check=False):
            known = _parameters(get_object(node._target_))
        for key in [key for key in map(str, node) if key != "_target_"]:
            refers = OmegaConf.is_interpolation(node, key) and (known is None or key in known)
            path = f"{group}.{key}"
            if not refers and not any(one == path or one.startswith(path + ".") for one in overridden):
                del node[key]
        if group == "optimizer" and "lr" not in node:
            default = inspect.signature(get_object(node._target_)).parameters.get("lr")
            node.lr = 0.001 if default is None or not isinstance(default.default, float) else default.default


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
def _named(name: str, node: Any, extra: tuple[str, ...] = (), check: bool = True) -> Iterator[None]:
    """Errors of a constructor, as one line that names the setting."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ValueError(f"{name} must have a _target_, the class that it stands for")
    try:
        if check:
            _check_keys(name, node, extra)
        yield
    except (InstantiationException, ImportError, TypeError, ValueError) as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__:
            cause = cause.__cause__
        line = one_line(cause)
        raise ValueError(line if line.startswith(name) else f"{name}: {line}") from error


def _check_keys(name: str, node: DictConfig, extra: tuple[str, ...]) -> None:
    known = _parameters(get_object(node._target_))
    for key in map(str, node):
        if known is not None and key not in {*known, *extra} and not key.startswith("_"):
            raise ValueError(f"{name}.{key}: there is no such setting; {suggest(key, known)}")


def _parameters(target: Any) -> set[str] | None:
    """What a class or function takes; None where it does not say."""
    known: set[str] = set()
    # A class that passes **keywords on takes those of its parent too.
    for owner in [kind for kind in target.__mro__ if "__init__" in vars(kind)] if inspect.isclass(target) else [target]:
        try:
            parameters = inspect.signature(owner).parameters
        except ValueError:  # some builtins do not say
            return None
        known |= {key for key, value in parameters.items() if value.kind is not value.VAR_KEYWORD}
        if all(value.kind is not value.VAR_KEYWORD for value in parameters.values()):
            break
    return known
