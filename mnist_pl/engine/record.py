"""What is recorded while a run lasts, beyond what the model logs: the untrained network, training steps, speed.

Buys: curves that begin at the untrained network, with the images seen as a second axis; 2 % of an epoch of seed_mlp.
Without it: delete `record: ` in conf/callbacks/minimal.yaml.
"""

from time import perf_counter
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from mnist_pl.data import Batches
from mnist_pl.models import DigitClassifier

COURSE = ("step", "epoch", "images", "seconds_per_epoch", "images_per_second")  # what is logged that is no score
EVALUATED = ("val/", "test/")  # the beginnings of scores that are handed over by themselves


class Record(Callback):
    """Hands the loggers a row every `log_every_n_steps`: loss and accuracy since the last one, rate, gradient norm.

    It also gives whatever is logged at the end of an epoch the optimiser steps as its step (Lightning itself counts
    batches, from 0) and the training images seen.
    """

    hooks_every_n_steps = None  # Lightning takes every step that is logged

    def __init__(self) -> None:
        self.recorded: dict[str, float] = {}  # the row that the loggers were last given
        self.images_seen = 0  # training images, over all processes and epochs
        self.train_seconds = 0.0  # in `fit`, with those before a checkpoint that was resumed from
        self._epoch_seconds, self._epoch_images = 0.0, 0  # of an epoch that is resumed in its middle
        self._started = self._epoch_started = perf_counter()
        self._images_before = 0
        self._axes_are_stale = False  # what Lightning keeps of the axes that were logged last

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = perf_counter()
        self._started, self._epoch_started = now - self.train_seconds, now - self._epoch_seconds
        self._images_before = self.images_seen - self._epoch_images  # this epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_started, self._images_before = perf_counter(), self.images_seen

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._axes_are_stale:
            self._axes_are_stale = False
            for name in ("step", "epoch"):  # by which a ModelCheckpoint would name its files
                trainer.callback_metrics.pop(name, None)
        step, every = trainer.global_step + 1, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or step % every:
            return
        self._count_images(trainer)
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        scores = pl_module.train_scores.score_pending() if isinstance(pl_module, DigitClassifier) else {}
        row = {f"{name}_step": value for name, value in scores.items()}
        row |= {"lr": optimizer.param_groups[0]["lr"], "grad_norm": torch.nn.utils.get_total_norm(gradients)}
        self._log(trainer, row, step)

    def _count_images(self, trainer: Trainer) -> None:
        """None are counted of a loader that is not ours."""
        if isinstance(trainer.train_dataloader, Batches):
            self.images_seen = self._images_before + trainer.train_dataloader.seen

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The untrained network, which Lightning keeps to itself."""
        self._log(trainer, trainer.callback_metrics, trainer.global_step)

    def _log(self, trainer: Trainer, row: dict[str, Any], step: int) -> None:
        self.recorded = {name: float(value) for name, value in row.items()}
        for logger in trainer.loggers:
            logger.log_metrics({**self.recorded, "epoch": trainer.current_epoch, "images": self.images_seen}, step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count_images(trainer)
        seconds = perf_counter() - self._epoch_started
        speed = (self.images_seen - self._images_before) / seconds
        self._log_axes(trainer, pl_module, seconds_per_epoch=seconds, images_per_second=speed)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._count_images(trainer)
            self._log_axes(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_axes(trainer, pl_module)

    def _log_axes(self, trainer: Trainer, pl_module: LightningModule, **more: float) -> None:
        """`step` is what Lightning takes for the step of all that is logged with it."""
        self._axes_are_stale = True
        axes = {"step": trainer.global_step, "epoch": trainer.current_epoch, "images": self.images_seen}
        pl_module.log_dict({name: float(value) for name, value in {**axes, **more}.items()}, sync_dist=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.train_seconds = perf_counter() - self._started

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._count_images(trainer)
        for logger in trainer.loggers:
            logger.save()  # the record goes at least as far as the checkpoint
        now = perf_counter()
        checkpoint["images_seen"] = self.images_seen
        checkpoint["train_seconds"] = now - self._started
        images = self.images_seen - self._images_before
        checkpoint["epoch_so_far"] = {"seconds": now - self._epoch_started, "images": images}
        epochs: Any = trainer.fit_loop.epoch_progress.current
        checkpoint["epochs"] = epochs.processed
        if epochs.processed > epochs.completed:  # at the end of an epoch: what Lightning is about to hand the loggers
            row = {name: value for name, value in trainer.callback_metrics.items() if not name.startswith(EVALUATED)}
            checkpoint["epoch_row"] = {name: float(value) for name, value in row.items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING and self.images_seen:  # the best one is to be tested
            return
        self.images_seen = checkpoint.get("images_seen", 0)
        self.train_seconds = checkpoint.get("train_seconds", 0.0)
        old = checkpoint.get("training", {})  # where version 0.1 kept it
        now = {"seconds": old.get("epoch_seconds", 0.0), "images": old.get("epoch_images", 0)}
        self._epoch_seconds, self._epoch_images = checkpoint.get("epoch_so_far", now).values()
