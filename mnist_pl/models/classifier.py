"""The LightningModule that every network here is: step, metrics, optimiser."""

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch.nn.functional as F
from hydra.utils import instantiate
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnist_pl.models.looks import check_shifts, say_mean
from mnist_pl.models.metrics import Scores
from mnist_pl.models.schedules import HOW, fit_to, make_schedule

MEAN, STD = 0.1307, 0.3081  # of the pixels of MNIST's 60,000 training images, in [0, 1]
ADAM: dict[str, Any] = {"_target_": "torch.optim.Adam", "lr": 0.001}

Batch = tuple[Tensor, Tensor]  # images (B, 1, 28, 28) float in [0, 1], labels (B,)


def class_path(kind: type) -> str:
    """As a `_target_` names it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def is_known(kind: type) -> bool:
    """Whether it is of this project, which finds the class by its name alone."""
    return kind.__module__.startswith(f"{__package__}.")


def known_as(kind: type) -> str:
    """As a checkpoint names it."""
    return kind.__name__ if is_known(kind) else class_path(kind)


def networks() -> "dict[str, type[DigitClassifier]]":
    """Those that are imported, by the names that they are known as."""
    kinds: list[type[DigitClassifier]] = [DigitClassifier]
    for kind in kinds:  # which grows meanwhile
        kinds += kind.__subclasses__()
    return {known_as(kind): kind for kind in kinds[1:]}


def rebuild(kind: "type[DigitClassifier]", settings: dict[str, Any]) -> "DigitClassifier":
    """From its hyper-parameters, ready to predict; what trains it is left out.

    Without what the class gives its parent by itself: Lightning keeps that as if it had been given from outside.
    """
    settings = {**settings, "optimizer": None, "scheduler": None}
    while True:
        try:
            return kind(**settings)
        except TypeError as error:
            twice = re.search(r"multiple values for (?:keyword )?argument '(\w+)'", str(error))
            if twice is None or twice[1] not in settings:
                raise
            del settings[twice[1]]


class DigitClassifier(LightningModule):
    """Step, metrics and optimiser of every network here; a subclass only builds `self.net`.

    Args:
        optimizer: `_target_`, a class of torch.optim, and its arguments, `lr` among them. None: Adam at 0.001.
        scheduler: `_target_`, a class of torch.optim.lr_scheduler, its arguments, and `interval`, `frequency` and
            `monitor` as Lightning understands them. As a value, `all_steps` stands for the optimiser steps of the whole
            run, and `lr` for the learning rate. None: a constant rate.
        mean, std: of the pixels, which the network subtracts and divides by.
        label_smoothing: of the training loss alone; what is reported is always the plain cross entropy.
        shifts: pixels by which an image is moved to each of the four sides, too, once the network is trained: its
            answer is then the mean of what it says of the five images. 0: of the image alone.

    Raises ValueError where a setting is out of range; the message names it.
    """

    net: nn.Module
    refuses = False  # whether its training_step takes the label -1, of an image that shows no digit
    reads_pairs = False  # whether read_pairs can be asked

    def __init__(
        self,
        optimizer: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        mean: float = MEAN,
        std: float = STD,
        label_smoothing: float = 0.0,
        shifts: int = 0,
    ) -> None:
        super().__init__()
        for name, part in {"optimizer": optimizer, "scheduler": scheduler}.items():
            if part and not (isinstance(part, Mapping) and "_target_" in part):
                raise ValueError(f"model.{name} must be a mapping with a _target_, the class, got {part!r}")
        self.save_hyperparameters()
        for name, value in {"mean": mean, "std": std}.items():
            if not isinstance(value, int | float) or not isfinite(value) or (name == "std" and value <= 0):
                raise ValueError(f"model.{name} must be a {'positive ' * (name == 'std')}number, got {value!r}")
        if not isinstance(label_smoothing, int | float) or not 0 <= label_smoothing < 1:
            raise ValueError(f"model.label_smoothing must be a number from 0 up to but not 1, got {label_smoothing!r}")
        check_shifts(shifts)
        self.mean, self.std, self.label_smoothing, self.shifts = mean, std, label_smoothing, shifts
        self.train_scores, self.val_scores, self.test_scores = Scores("train/"), Scores("val/"), Scores("test/")

    def forward(self, images: Tensor) -> Tensor:  # (B, 1, 28, 28) in [0, 1] -> (B, 10) logits
        if self.shifts and not self.training:
            return say_mean(self.look, images, self.shifts)
        return self.look(images)

    def look(self, images: Tensor) -> Tensor:  # (B, 1, 28, 28) in [0, 1] -> (B, 10) logits
        return self.net((images - self.mean) / self.std)

    def read_pairs(self, images: Tensor) -> Tensor:  # (B, 1, 28, 48) in [0, 1] -> (B, 2, 10) log probabilities
        """Of two digits that touch, where `reads_pairs`. Raises NotImplementedError elsewhere."""
        raise NotImplementedError(f"a {type(self).__name__} reads one digit at a time")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        self.train_scores.update(logits, labels)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:  # -> (B, 10) logits
        return self._evaluate(batch, self.val_scores)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:  # -> (B, 10) logits
        return self._evaluate(batch, self.test_scores)

    def _evaluate(self, batch: Batch, scores: Scores) -> Tensor:
        images, labels = batch
        logits = self(images)
        scores.update(logits, labels)
        return logits

    def predict_step(self, batch: Batch | Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """(B, 10) probabilities."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return self(images).softmax(dim=1)

    def setup(self, stage: str) -> None:
        for scores in (self.train_scores, self.val_scores, self.test_scores):
            scores.reset()

    def on_train_epoch_end(self) -> None:
        self._log_and_reset(self.train_scores)

    def on_validation_epoch_end(self) -> None:
        self._log_and_reset(self.val_scores)

    def on_test_epoch_end(self) -> None:
        self._log_and_reset(self.test_scores)

    def _log_and_reset(self, scores: Scores) -> None:
        """Once an epoch: a call of `log` for each batch would cost as much as a small network's step.

        Nothing where a step of one's own has scored nothing, in any process.
        """
        if self.trainer.strategy.reduce_boolean_decision(scores.has_scored, all=False):
            self.log_dict(scores.compute(), prog_bar=True, sync_dist=True)
        scores.reset()

    @property
    def lr(self) -> float:
        """The learning rate; Lightning's Tuner and LearningRateFinder look for it by this name, and set it."""
        return (self.hparams["optimizer"] or ADAM)["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        self.hparams["optimizer"] = {**(self.hparams["optimizer"] or ADAM), "lr": value}

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        if not self.hparams["scheduler"]:
            return optimizer
        scheduler = fit_to(self, self.hparams["scheduler"], lambda steps: self.make_scheduler(optimizer, steps))
        how = {name: value for name, value in self.hparams["scheduler"].items() if name in HOW}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **how}}

    def make_optimizer(self) -> Optimizer:
        """Raises ValueError where a setting of `optimizer` is not one of its class, or out of range."""
        settings = dict(self.hparams["optimizer"] or ADAM)
        rate = settings.get("lr")
        if not isinstance(rate, int | float) or isinstance(rate, bool) or not rate > 0:
            raise ValueError(f"optimizer.lr must be a positive number, got {rate!r}")
        if settings.get("fused", False) is None:  # the same arithmetic in one pass: a fifth of an epoch of Adam
            settings["fused"] = self.device.type in ("cpu", "cuda")
        return instantiate(settings, params=self.parameters(), _convert_="all")

    def make_scheduler(self, optimizer: Optimizer, all_steps: float) -> LRScheduler:
        """Raises TypeError or ValueError where a setting of `scheduler` is not one of its class, or out of range."""
        return make_schedule(self.hparams["scheduler"], optimizer, {"all_steps": all_steps, "lr": self.lr})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """So that the file alone is enough to rebuild the network, where its class is known."""
        checkpoint["model"], checkpoint["model_class"] = type(self).__name__, class_path(type(self))
