"""Configuration -> data, model, trainer. Everything is built before anything is done: a bad setting fails at once."""

import logging
import os
import re
import warnings
from contextlib import suppress
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig, OmegaConf, open_dict
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mnist_pl.data import MNISTDataModule
from mnist_pl.engine.checkpoints import Best, DurableIO, Last
from mnist_pl.engine.joint import JointMean
from mnist_pl.engine.memory import keep_freed_memory
from mnist_pl.engine.strategy import FastSingleDevice
from mnist_pl.models import CNN, MLP, DigitClassifier
from mnist_pl.models.classifier import ADAM, class_path
from mnist_pl.reading.checkpoint import check_can_be_kept
from mnist_pl.runs.check import check, check_size, construct, parameters, target_of, try_step
from mnist_pl.runs.folders import RESUMED
from mnist_pl.runs.processes import check_processes, environment_here, strategy_here
from mnist_pl.runs.side_by_side import is_worker
from mnist_pl.storage import as_word

log = logging.getLogger(__name__)

KNOWN_WARNINGS = (
    ".*LeafSpec.*is deprecated",  # Lightning 2.6's own use of something that torch 2.15 deprecates
    ".*is smaller than the logging interval",  # our steps are counted over all epochs, so nothing goes unlogged
    ".*call of `lr_scheduler.step\\(\\)` before",  # a process may begin with the end of an epoch
    ".*joblib will operate in serial mode",  # without /dev/shm; scikit-learn only brings the embedded digits
    ".*exists and is not empty",  # the checkpoints of a run that is resumed
    ".*callbacks used to create the checkpoint need",  # one that a run is resumed without
    ".*Profiler clears events at the end of each cycle",  # which Lightning reads before
    ".*`srun` command is available",  # on a cluster's login node, or beside a cluster
    ".*barebones=True.*is configured",  # whoever says barebones knows that nothing is logged
)
BAREBONES = {"num_sanity_val_steps": 0, "enable_checkpointing": False, "enable_progress_bar": False}
BAREBONES |= {"log_every_n_steps": 0, "enable_model_summary": False}
KNOWN_CALLBACKS = ("lightning.", "mnist_pl.engine.", "mnist_pl.figures.")
POSITIVE = ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval")  # of the Trainer's settings
TRIED_STEPS = 1000  # of a schedule, to see that it can be made; as good as any number
PROCESSES_FOR_A_CORE = 8  # at the most; beyond that, it was not meant

THREADS = torch.get_num_threads()  # that PyTorch begins with


def build(cfg: DictConfig, ensemble: DigitClassifier | None = None) -> tuple[MNISTDataModule, DigitClassifier, Trainer]:
    """Builds what the configuration describes, and seeds the random numbers. An `ensemble` is the network then.

    Raises ValueError where a setting is misspelt, of the wrong kind or out of range; one line that names it.
    """
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()  # Hydra's print and keep the messages
        logging.getLogger(name).propagate = True
    for handler in logging.root.handlers:
        handler.addFilter(_is_asked_for)
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # what it has to say, it raises too
    keep_freed_memory()
    # A help for debugging, and 2 % of a run:
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to {2**32 - 1}, got {cfg.seed}")
    if cfg.resume is not None and HydraConfig.get().job.config_name != RESUMED:
        raise ValueError(f"resume={cfg.resume}: is read from the command line alone, and continues one run")
    if cfg.claim is not None and not isfinite(cfg.claim):
        raise ValueError(f"claim must be an accuracy in percent, got {cfg.claim}")
    _set_threads(cfg.threads)
    if re.search("fork|notebook", str(strategy_here(cfg.trainer.get("strategy")))):
        torch.set_num_threads(1)  # threads do not survive the fork, and each process would wait for them for ever
    seed_everything(cfg.seed, workers=True, verbose=False)
    with open_dict(cfg):
        reset_swapped_targets(cfg)
    check(cfg.optimizer, "optimizer", Optimizer)
    _check_scheduler(cfg.scheduler, "scheduler")
    for group, kind in {"data": MNISTDataModule, "model": DigitClassifier, "trainer": Trainer}.items():
        check(cfg[group], group, kind)
    own = {key: cfg.model[key] for key in cfg.model if not OmegaConf.is_interpolation(cfg.model, key)}
    if own.get("optimizer"):
        check(own["optimizer"], "model.optimizer", Optimizer)
    _check_scheduler(own.get("scheduler"), "model.scheduler")
    mixed = cfg.trainer.get("precision") == "16-mixed"  # a fused optimiser cannot have scaled gradients clipped
    mixed |= cfg.trainer.get("precision") == "bf16-mixed" and cfg.trainer.get("gradient_clip_val") is not None
    if mixed and cfg.optimizer.get("fused", False) is None:
        cfg.optimizer.fused = False
    data: MNISTDataModule = construct("data", _plain(cfg.data), _instantiate, MNISTDataModule)
    model = ensemble or construct("model", _plain(cfg.model), _make_model, DigitClassifier)
    _check_own(model, data)
    if ensemble is None:
        with torch.random.fork_rng(devices=[]):
            _try_optimizer_and_scheduler(_plain(cfg.model))
    return data, model, _make_trainer(cfg, data, model)


def _set_threads(count: int | None) -> None:
    """`count`, or what PyTorch begins with, whatever a job before this one has set."""
    most = PROCESSES_FOR_A_CORE * (os.cpu_count() or 1)
    if count is not None and not 1 <= count <= most:
        raise ValueError(f"threads must be a whole number from 1 to {most}, for this machine's cores, got {count}")
    torch.set_num_threads(count or THREADS)


def _check_scheduler(node: Any, name: str) -> None:
    if node:
        how = {"interval": Literal["step", "epoch"], "frequency": int, "strict": bool}
        words = {"all_steps": TRIED_STEPS, "lr": 0.1}
        check(node, name, LRScheduler, {**how, "monitor": str | None, "name": str | None}, words)


def _is_asked_for(record: logging.LogRecord) -> bool:
    """Of what Lightning says, warnings and the words of callbacks and of the tuner: whoever wants these adds those."""
    where = Path(record.pathname)
    own = where.is_relative_to(Path(lightning.__file__).parent)
    return not own or record.levelno > logging.INFO or where.parent.name in ("callbacks", "tuner")


def _check_own(model: Any, data: Any) -> None:
    """Parts of one's own have what the rest relies on, and nothing that no checkpoint could be read with."""
    for name, part in {"model": model, "data": data}.items():
        check_can_be_kept({f"{name}.{key}": value for key, value in part.hparams.items()})
    if data.hparams.get("nondigits") and not model.refuses:
        raise ValueError(
            f"data.nondigits={data.hparams['nondigits']}: {class_path(type(model))} cannot learn from images that show "
            "no digit; say model=refusing_cnn, or data.nondigits=0"
        )
    usual = type(model).configure_optimizers is DigitClassifier.configure_optimizers
    if usual and model.hparams["optimizer"] is None:
        raise ValueError(
            f"model._target_={class_path(type(model))}: gets no optimizer; have its __init__ take **shared and hand it "
            "to super().__init__, and its file in conf/model say `optimizer: ${optimizer}`, and `scheduler` likewise"
        )


def _plain(node: DictConfig) -> Any:
    return OmegaConf.to_container(node, resolve=True)


def _instantiate(settings: Any, recursive: bool = False, **more: Any) -> Any:
    return instantiate(settings, **more, _recursive_=recursive, _convert_="all")


def _make_model(settings: Any) -> Any:
    """Its size is looked at before it takes memory; whether it can be trained, of a copy that takes a first step."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        sketch = None
        with suppress(Exception):  # not every network can be without numbers
            sketch = _instantiate(settings)
        if isinstance(sketch, DigitClassifier):
            check_size(sketch)
    with torch.random.fork_rng(devices=[]):
        trial = _instantiate(settings)
        if isinstance(trial, DigitClassifier):
            try_step(trial)
    return _instantiate(settings)


def _try_optimizer_and_scheduler(settings: Any) -> None:
    """Raises ValueError where the one or the other cannot be made for a model of these settings, or fails at first."""
    model: DigitClassifier = _instantiate(settings)

    def make_optimizer(settings: Any) -> Any:
        model.hparams["optimizer"] = settings
        optimizer = model.make_optimizer()
        if isinstance(optimizer, Optimizer):
            try_step(model, optimizer)
        return optimizer

    def make_scheduler(settings: Any) -> Any:
        model.hparams["scheduler"] = settings
        scheduler = model.make_scheduler(model.make_optimizer(), TRIED_STEPS)
        if settings.get("frequency", 1) < 1:
            raise ValueError(f"scheduler.frequency must be positive, got {settings['frequency']}")
        if isinstance(scheduler, ReduceLROnPlateau) and settings.get("monitor") is None:
            raise ValueError("scheduler.monitor must name the score that ReduceLROnPlateau watches, as val/loss")
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(1.0)
        elif isinstance(scheduler, LRScheduler):
            scheduler.step()
        return scheduler

    construct("optimizer", model.hparams["optimizer"] or ADAM, make_optimizer, Optimizer)
    if model.hparams["scheduler"]:
        construct("scheduler", model.hparams["scheduler"], make_scheduler, LRScheduler)


def _make_trainer(cfg: DictConfig, data: MNISTDataModule, model: DigitClassifier) -> Trainer:
    defaults = {key: default for key, (_, default) in (parameters(Trainer) or {}).items()}
    settings: dict[str, Any] = {**defaults, **_plain(cfg.trainer)}
    root, folder = settings["default_root_dir"], HydraConfig.get().runtime.output_dir
    if root is not None and Path(root).absolute() != Path(folder):
        raise ValueError(
            f"trainer.default_root_dir={root}: is the run's folder; choose it by {as_word('hydra.run.dir', root)}"
        )
    settings["default_root_dir"] = folder
    if settings["accelerator"] in ("gpu", "cuda") and not (torch.cuda.is_available() or torch.mps.is_available()):
        raise ValueError(
            f"trainer.accelerator={settings['accelerator']}: PyTorch {torch.__version__} finds no GPU on this machine; "
            "say trainer.accelerator=cpu, or auto to use one where there is one"
        )
    for name in POSITIVE:  # Lightning would divide by it
        value = settings[name]
        if isinstance(value, int | float) and value <= 0:
            raise ValueError(f"trainer.{name} must be positive, got {value}")
    cores, devices = os.cpu_count() or 1, str(settings["devices"])
    if devices.isdigit() and int(devices) > PROCESSES_FOR_A_CORE * cores:
        raise ValueError(f"trainer.devices={devices}: are as many processes, for this machine's {cores} cores")
    callbacks = _make_all(cfg.callbacks, "callbacks", Callback)
    loggers = _make_all(cfg.logger, "logger", Logger)
    if settings["barebones"]:
        settings |= BAREBONES
        loggers = {}
    for callback in callbacks.values():
        if isinstance(callback, ProgressBar) and is_worker():
            callback.disable()  # several would write over each other
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:  # else below that of a logger
            callback.dirpath = os.path.join(folder, "checkpoints")
    for name, kind in {"enable_checkpointing": Checkpoint, "enable_progress_bar": ProgressBar}.items():
        if settings[name] is False:
            callbacks = {path: callback for path, callback in callbacks.items() if not isinstance(callback, kind)}
        elif settings[name] is None:  # else Lightning adds one of its own to a run whose callbacks have none
            settings[name] = any(isinstance(callback, kind) for callback in callbacks.values())
    if data.hparams["val_size"] == 0 and not data.hparams["validate_on_test"]:
        settings["limit_val_batches"] = 0
    # The test images may be scored every epoch, as published scripts do, but nothing is ever chosen by them.
    if not data.selects or settings["limit_val_batches"] == 0:
        for callback in callbacks.values():
            if isinstance(callback, Best):
                callback.monitor = None
    _check_monitors({"scheduler": cfg.scheduler, **callbacks}, model, settings["limit_val_batches"] != 0)
    observers: dict[str, Any] = {"callbacks": list(callbacks.values()), "logger": list(loggers.values()) or False}
    observers["callbacks"].append(JointMean())
    observers["callbacks"].sort(key=lambda callback: isinstance(callback, Last))  # it may end the process: others first
    environment = environment_here()

    def make(settings: dict[str, Any]) -> Any:
        plugins = settings.get("plugins")
        plugins = [plugin for plugin in (plugins if isinstance(plugins, list) else [plugins]) if plugin is not None]
        plugins += [DurableIO()] if "CheckpointIO" not in str(plugins) else []
        if environment is not None and not any("environments" in str(plugin) for plugin in plugins):
            plugins.append(environment)
        strategy = strategy_here(settings.get("strategy", "auto"))
        strategy = FastSingleDevice.where_it_fits(settings, strategy)
        return _instantiate(settings, recursive=True, **observers, plugins=plugins, strategy=strategy)

    trainer: Trainer = construct("trainer", settings, make, Trainer)
    check_processes(trainer)
    if settings["sync_batchnorm"] and trainer.strategy.root_device.type == "cpu":
        raise ValueError(
            "trainer.sync_batchnorm=true: PyTorch has it for GPUs alone; leave it out, and each process takes "
            "its own batch's mean"
        )
    _show_profile(trainer)
    return trainer


def _check_monitors(watching: dict[str, Any], model: DigitClassifier, validates: bool) -> None:
    """Raises ValueError where a schedule or a callback waits for a score that there will not be.

    Only those of this project and Lightning's are known to log nothing else.
    """
    scores = [str(name) for name in (*model.train_scores, *(model.val_scores if validates else ()))]
    callbacks = {type(callback).__module__ for path, callback in watching.items() if path != "scheduler"}
    are_all = type(model) in (MLP, CNN) and all(module.startswith(KNOWN_CALLBACKS) for module in callbacks)
    for path, watcher in watching.items():
        look_up = partial(getattr, watcher) if path != "scheduler" else (watcher or {}).get
        score, strict = look_up("monitor", None), look_up("strict", True)
        if score is None or strict is False or score in scores:
            continue
        if not validates and score.startswith("val/"):
            raise ValueError(
                f"{path}.monitor={score}: there is no validation (data.val_size, trainer.limit_val_batches); say "
                f"{path}.monitor=train/loss, or hold images out"
            )
        if are_all:
            raise ValueError(f"{path}.monitor={score}: there is no such score; there are {', '.join(scores)}")


def _show_profile(trainer: Trainer) -> None:
    """The report of `trainer.profiler` in the terminal and in the run's folder; Lightning's own go to one of them."""
    profiler: Any = trainer.profiler  # type: ignore[attr-defined]
    if isinstance(profiler, PassThroughProfiler):
        return
    profiler.dirpath = profiler.dirpath or trainer.default_root_dir
    profiler.filename = profiler.filename or "profile"
    summarize = profiler.summary

    def summary() -> str:
        report = summarize()
        if report and trainer.is_global_zero:
            log.info("\n%s", report.strip())
        return report

    profiler.summary = summary


def reset_swapped_targets(cfg: DictConfig) -> None:
    """`GROUP._target_=Class` on the command line starts from that class's own defaults.

    Of the settings of the option that was there before, those are kept that the command line overrides too, and those
    that refer to other settings (`${seed}`), where the class has them. With resume=, the class may only be named again.
    """
    before = None if cfg.resume is None else OmegaConf.load(Path(cfg.resume, ".hydra", "config.yaml"))
    said: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # values may refer to others
    overridden = {override.partition("=")[0].lstrip("+~") for override in said}
    for group in [key.removesuffix("._target_") for key in overridden if key.endswith("._target_")]:
        node = OmegaConf.select(cfg, group)
        if not isinstance(node, DictConfig):
            continue
        if before is not None and OmegaConf.select(before, f"{group}._target_") == node._target_:
            continue
        known = parameters(target_of(node, group))
        for key in [key for key in map(str, node) if key != "_target_"]:
            refers = OmegaConf.is_interpolation(node, key) and (known is None or key in known)
            path = f"{group}.{key}"
            if not refers and not any(one == path or one.startswith(path + ".") for one in overridden):
                del node[key]
        if group == "optimizer" and "lr" not in node:
            default = (known or {}).get("lr", (None, None))[1]
            node.lr = default if isinstance(default, float) else 0.001


def _make_all(group: Any, name: str, kind: type) -> dict[str, Any]:
    """Of a group of named nodes, by their whole names; null switches one off."""
    nodes = {f"{name}.{key}": group[key] for key in group or {} if group[key] is not None}
    for path, node in nodes.items():
        check(node, path, kind)
    make = partial(_instantiate, recursive=True)
    return {path: construct(path, _plain(node), make, kind) for path, node in nodes.items()}
