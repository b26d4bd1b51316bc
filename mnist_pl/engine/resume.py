"""A run that was stopped and resumed equals one that was not, to the last bit, in the middle of an epoch too.

Buys: the same bits after a stop at any of 300 random moments (make trust); with Lightning alone, a run that is resumed
draws other random numbers, and an old learning rate stays.
Without it: delete `resume: ` in conf/callbacks/minimal.yaml.
"""

import random
import warnings
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.lr_scheduler import OneCycleLR

from mnist_pl.data import Batches, MNISTDataModule
from mnist_pl.models import DigitClassifier
from mnist_pl.models.classifier import ADAM

RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # what an optimiser and its schedule keep of the learning rate
LENGTHS = ("total_steps", "_schedule_phases", "T_max", "total_iters")  # what a schedule keeps of the run's length


class ExactResume(Callback):
    """Keeps in a checkpoint what the rest of an epoch depends on beside the weights; puts it back before training.

    The position in the epoch, and of each process the random numbers' state and the training scores so far. What is set
    for this run wins over the checkpoint's: optimiser settings, and the length of a schedule.
    """

    hooks_every_n_steps = None

    def __init__(self) -> None:
        self.resumed: dict[str, Any] | None = None
        self.lengths: list[dict[str, Any]] = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        loader: Any = trainer.train_dataloader
        place = loader.state_dict() if isinstance(loader, Batches) else None
        if place is not None and trainer.is_last_batch:  # perhaps before the loader's end, by limit_train_batches
            place = {"done": 0}
        own: dict[str, Any] = {
            "random": torch.get_rng_state(),
            "random_python": random.getstate(),
            "random_numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
            "random_device": {pl_module.device.type: _get_device_state(pl_module.device)},
        }
        if isinstance(pl_module, DigitClassifier):
            scores = pl_module.train_scores
            unscored = [(logits.cpu().clone(), labels.cpu().clone()) for logits, labels in scores.pending]
            counted = {
                name: {key: value.cpu() for key, value in metric.metric_state.items()}
                for name, metric in _named(scores).items()
            }
            own |= {"unscored": unscored, "scores": counted}
        of_each = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(of_each, own)
        checkpoint["training"] = {
            "loader": place,
            "plateau": [_due_score(trainer, config) for config in trainer.lr_scheduler_configs],
            **of_each[0],
            "other_processes": of_each[1:],
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called before Lightning restores its loops, the optimiser and the schedules from the same dictionary."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self.resumed = checkpoint.get("training")
        if self.resumed is not None and "validate_first" in self.resumed:
            _from_version_0_1(checkpoint)
            _count_batches(checkpoint, checkpoint["datamodule_hyper_parameters"]["batch_size"])
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, MNISTDataModule):
            before = checkpoint.get("datamodule_hyper_parameters", {}).get("batch_size")
            if before not in (None, data.hparams["batch_size"]):
                _count_batches(checkpoint, data.hparams["batch_size"])
                if "images_seen" in checkpoint and (pl_module.hparams.get("scheduler") or {}).get("interval") == "step":
                    _move_schedules(checkpoint, trainer, data.hparams["batch_size"])
        if isinstance(pl_module, DigitClassifier):
            _take_new_settings(pl_module, checkpoint)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.state_key in checkpoint.get("callbacks", {}):
                checkpoint["callbacks"][callback.state_key]["patience"] = callback.patience
        states = checkpoint.get("lr_schedulers", [])
        self.lengths = [{name: state.pop(name) for name in LENGTHS if name in state} for state in states]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.resumed is not None:
            self._restore(trainer, pl_module, self.resumed)
            for config, score in zip(trainer.lr_scheduler_configs, self.resumed.get("plateau", []), strict=False):
                if score is not None:
                    config.scheduler.step(score)
            self.resumed = None
        for config, lengths in zip(trainer.lr_scheduler_configs, self.lengths, strict=False):
            scheduler: Any = config.scheduler
            if any(getattr(scheduler, name) != value for name, value in lengths.items()):
                for group, rate in zip(scheduler.optimizer.param_groups, _rates(scheduler), strict=True):
                    group["lr"] = rate
        self.lengths = []

    def _restore(self, trainer: Trainer, pl_module: LightningModule, state: dict[str, Any]) -> None:
        of_each = [state, *state.get("other_processes", [])]
        as_many = len(of_each) == trainer.world_size
        drawn = of_each[trainer.global_rank] if as_many else state
        drawn = drawn if "random" in drawn else state  # before, it was the same in each process
        torch.set_rng_state(drawn["random"])
        if "random_python" in drawn:
            random.setstate(drawn["random_python"])
            np.random.set_state(tuple(drawn["random_numpy"]))
        kept = drawn.get("random_device")  # by the kind of device, which may be another now; version 0.2 kept one
        _set_device_state(pl_module.device, kept.get(pl_module.device.type) if isinstance(kept, dict) else kept)
        loader: Any = trainer.train_dataloader
        if state["loader"] is not None and isinstance(loader, Batches):
            loader.load_state_dict(state["loader"])  # Lightning's own call comes too early where a schedule is used
        if isinstance(pl_module, DigitClassifier) and "scores" in state:
            scores = pl_module.train_scores
            # Of as many processes each takes its own; of more or fewer, the first takes all.
            if as_many:
                of_each = of_each[trainer.global_rank :][:1]
            for part in of_each if trainer.is_global_zero or as_many else []:
                scores.pending += [
                    (logits.to(pl_module.device), labels.to(pl_module.device)) for logits, labels in part["unscored"]
                ]
                for name, metric in _named(scores).items():
                    metric.merge_state({key: value.to(pl_module.device) for key, value in part["scores"][name].items()})
                    metric._update_count = 1  # else torchmetrics takes it for unused


def _due_score(trainer: Trainer, config: Any) -> float | None:
    """What a plateau schedule is given after a checkpoint at an epoch's end; Lightning leaves that out on resuming."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    due = epochs.processed > epochs.completed and epochs.processed % config.frequency == 0
    score = trainer.callback_metrics.get(config.monitor) if config.reduce_on_plateau and due else None
    return None if score is None or config.interval != "epoch" else float(score)


def _rates(scheduler: Any) -> list[Any]:
    """Those of its present step, where they do not depend on the step before; else what they are."""
    if hasattr(scheduler, "_get_closed_form_lr"):
        return scheduler._get_closed_form_lr()
    if isinstance(scheduler, OneCycleLR):
        with warnings.catch_warnings(action="ignore"):  # PyTorch's, for whoever means get_last_lr
            return scheduler.get_lr()
    return [group["lr"] for group in scheduler.optimizer.param_groups]


def _named(scores: Any) -> dict[str, Any]:
    return dict(scores.items(keep_base=True, copy_state=False))


def _get_device_state(device: torch.device) -> torch.Tensor | None:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None


def _set_device_state(device: torch.device, state: torch.Tensor | None) -> None:
    if state is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    elif state is not None and device.type == "mps":
        torch.mps.set_rng_state(state)


def _take_new_settings(model: DigitClassifier, checkpoint: dict[str, Any]) -> None:
    """Where this run's settings of the optimiser are others than the checkpoint's, these are meant."""
    if type(model).configure_optimizers is not DigitClassifier.configure_optimizers:
        return  # whose settings mean something else, or nothing
    kept = checkpoint["hyper_parameters"]
    before, now = kept.get("optimizer") or ADAM, model.hparams["optimizer"] or ADAM
    no_longer_scheduled = kept.get("scheduler") and not model.hparams["scheduler"]
    changed = {name: value for name, value in now.items() if before.get(name) != value}
    factor = model.lr / before.get("lr", model.lr)  # of all rates, for a schedule continues at its place
    for state in checkpoint["optimizer_states"]:
        for group in state["param_groups"]:
            rate = model.lr if no_longer_scheduled or group["lr"] == before.get("lr") else group["lr"] * factor
            group.update({name: value for name, value in changed.items() if name in group})
            group.update({name: group[name] * factor for name in RATES if name in group}, lr=rate)
    for schedule in checkpoint.get("lr_schedulers", []):
        if "base_lrs" in schedule:
            schedule["base_lrs"] = [rate * factor for rate in schedule["base_lrs"]]


def _from_version_0_1(checkpoint: dict[str, Any]) -> None:
    """Lightning's loops were given several batches at a time then, and counted these, not batches.

    Raises ValueError where the run was stopped between its last batch and the end of the validation after it.
    """
    training = checkpoint["training"]
    if training["validate_first"]:
        raise ValueError("version 0.1 stopped this run during a validation, which only that version can resume")
    loop = checkpoint["loops"]["fit_loop"]
    steps = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    steps["total"]["completed"] = steps["total"]["ready"] = checkpoint["global_step"]
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"] - 1
    loss = training["scores"]["loss"]
    training["scores"]["loss"] = {"total": loss["mean_value"], "count": loss["weight"]}
    random = training["random_cuda"]
    training["random_device"] = {"cuda": random[0] if random else None}


def _count_batches(checkpoint: dict[str, Any], size: int) -> None:
    """The batches of this epoch so far, were they of `size` images."""
    place = (checkpoint.get("training") or {}).get("loader")
    if place is not None and place["done"]:
        done = -(-place["done"] // size)
        counts = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        unfinished = counts["processed"] - counts["completed"]
        counts.update(ready=done, started=done, processed=done, completed=done - unfinished)


def _move_schedules(checkpoint: dict[str, Any], trainer: Trainer, size: int) -> None:
    """To the step at which as many images were seen, in batches of `size`."""
    step = checkpoint["images_seen"] // (size * trainer.accumulate_grad_batches * trainer.world_size)
    for schedule in checkpoint.get("lr_schedulers", []):
        schedule.update(last_epoch=step, _step_count=step + 1)
