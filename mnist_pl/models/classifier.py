"""The LightningModule that every network here is: step, metrics, optimiser."""

from math import inf, isfinite
from typing import Any

import torch.nn.functional as F
from hydra.utils import get_object, instantiate
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler

from mnist_pl.models.metrics import Scores

MEAN, STD = 0.1307, 0.3081  # of the pixels of MNIST's 60,000 training images, in [0, 1]
ADAM: dict[str, Any] = {"_target_": "torch.optim.Adam", "lr": 0.001}
HOW = ("interval", "frequency", "monitor", "strict", "name")  # what Lightning wants to know of a scheduler

Batch = tuple[Tensor, Tensor]  # images (B, 1, 28, 28) float in [0, 1], labels (B,)


def class_path(kind: type) -> str:
    """As a `_target_` names it."""
    return f"{kind.__module__}.{kind.__qualname__}"


class DigitClassifier(LightningModule):
    """Step, metrics and optimiser of every network here; a subclass only builds `self.net`.

    Args:
        optimizer: `_target_`, a class of torch.optim, and its arguments, `lr` among them. None: Adam at 0.001.
        scheduler: `_target_`, a class of torch.optim.lr_scheduler, its arguments, and `interval`, `frequency` and
            `monitor` as Lightning understands them. As a value, `all_steps` stands for the optimiser steps of the whole
            run, and `lr` for the learning rate. None: a constant rate.
        mean, std: of the pixels, which the network subtracts and divides by.
        label_smoothing: of the training loss alone; what is reported is always the plain cross entropy.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """

    net: nn.Module

    def __init__(
        self,
        optimizer: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        mean: float = MEAN,
        std: float = STD,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        for name, value in {"mean": mean, "std": std}.items():
            if not isinstance(value, int | float) or not isfinite(value) or (name == "std" and value <= 0):
                raise ValueError(f"model.{name} must be a {'positive ' * (name == 'std')}number, got {value!r}")
        if not isinstance(label_smoothing, int | float) or not 0 <= label_smoothing < 1:
            raise ValueError(f"model.label_smoothing must be a number from 0 up to but not 1, got {label_smoothing!r}")
        self.mean, self.std, self.label_smoothing = mean, std, label_smoothing
        self.train_scores, self.val_scores, self.test_scores = Scores("train/"), Scores("val/"), Scores("test/")

    def forward(self, images: Tensor) -> Tensor:  # (B, 1, 28, 28) in [0, 1] -> (B, 10) logits
        return self.net((images - self.mean) / self.std)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        self.train_scores.update(logits, labels)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:  # -> (B, 10) logits
        return self._evaluate(batch, self.val_scores)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:  # -> (B, 10) logits
        return self._evaluate(batch, self.test_scores)

    def _evaluate(self, batch: Batch, scores: Scores) -> Tensor:
        images, labels = batch
        logits = self(images)
        scores.update(logits, labels)
        return logits

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:  # -> (B, 10) probabilities
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
        """Once an epoch: a call of `log` for each batch would cost as much as a small network's step."""
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
        trainer: Any = self.trainer
        steps, settings = trainer.estimated_stepping_batches, self.hparams["scheduler"]
        how = {name: value for name, value in settings.items() if name in HOW}
        if not 0 < steps < inf and "'all_steps'" in str(settings):
            lengths = ("max_epochs", "max_steps", "limit_train_batches", "accumulate_grad_batches")
            said = ", ".join(f"trainer.{name}={getattr(trainer, name)}" for name in lengths)
            raise ValueError(f"{said}: give a run of {steps} steps, which no schedule fits; say scheduler=none")
        scheduler: Any = self.make_scheduler(optimizer, steps)
        length, needed = getattr(scheduler, "total_steps", inf), steps
        if how.get("interval") != "step":
            needed = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else inf
        if length < needed // how.get("frequency", 1):
            raise ValueError(
                f"scheduler.total_steps={length}: this schedule cannot go on for the {needed} steps of the run; "
                "say all_steps, with scheduler.interval=step"
            )
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
        words = {"all_steps": all_steps, "lr": self.lr}

        def made(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return [made(part) for part in value]
            if not isinstance(value, dict) or "_target_" not in value:
                return words.get(value, value) if isinstance(value, str) else value
            kind = get_object(value["_target_"])
            if not (isinstance(kind, type) and issubclass(kind, LRScheduler)):
                return instantiate(value, _convert_="all")
            settings = {name: made(part) for name, part in value.items() if name not in ("_target_", *HOW)}
            return kind(optimizer, **settings) if kind is not ChainedScheduler else kind(**settings)

        return made(self.hparams["scheduler"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """So that the file alone is enough to rebuild the network, where its class is known."""
        checkpoint["model"], checkpoint["model_class"] = type(self).__name__, class_path(type(self))
