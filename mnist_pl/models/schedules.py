"""Schedules of the learning rate: made of plain settings, and of the length of a run."""

from collections.abc import Callable
from math import inf
from typing import Any

from hydra.utils import get_object, instantiate
from lightning import LightningModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler

HOW = ("interval", "frequency", "monitor", "strict", "name")  # what Lightning wants to know of a scheduler


def make_schedule(settings: Any, optimizer: Optimizer, words: dict[str, Any]) -> Any:
    """`_target_`, a class of torch.optim.lr_scheduler, and its arguments, schedules among them (SequentialLR).

    `words` are what a value of that name stands for.
    """
    if isinstance(settings, list | tuple):
        return [make_schedule(part, optimizer, words) for part in settings]
    if not isinstance(settings, dict) or "_target_" not in settings:
        return words.get(settings, settings) if isinstance(settings, str) else settings
    kind = get_object(settings["_target_"])
    if not (isinstance(kind, type) and issubclass(kind, LRScheduler)):
        return instantiate(settings, _convert_="all")
    arguments = {
        name: make_schedule(part, optimizer, words) for name, part in settings.items() if name not in ("_target_", *HOW)
    }
    return kind(**arguments) if kind is ChainedScheduler else kind(optimizer, **arguments)


def fit_to(module: LightningModule, settings: dict[str, Any], make: Callable[[float], LRScheduler]) -> LRScheduler:
    """`make(steps)` for all steps of the run; they are asked for only where the schedule has a length, since Lightning
    sets up the loaders then, and a run that is resumed within an epoch would lose its place.

    Raises ValueError where there are none, or endlessly many, or more than the schedule has.
    """
    all_steps = "'all_steps'" in str(settings)
    if not all_steps:
        scheduler = make(inf)
        if not hasattr(scheduler, "total_steps"):
            return scheduler
    trainer = module.trainer
    steps = trainer.estimated_stepping_batches
    if all_steps:
        if not 0 < steps < inf:
            lengths = ("max_epochs", "max_steps", "limit_train_batches", "accumulate_grad_batches")
            said = ", ".join(f"trainer.{name}={getattr(trainer, name)}" for name in lengths)
            raise ValueError(f"{said}: give a run of {steps} steps, which no schedule fits; say scheduler=none")
        scheduler = make(steps)
    length, needed = getattr(scheduler, "total_steps", inf), steps
    if settings.get("interval") != "step":
        needed = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else inf
    if length < needed // settings.get("frequency", 1):
        raise ValueError(
            f"scheduler.total_steps={length}: this schedule cannot go on for the {needed} steps of the run; "
            "say all_steps, with scheduler.interval=step"
        )
    return scheduler
