"""The networks, and the one LightningModule that trains them."""

from collections.abc import Sequence
from math import isfinite
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.utilities import dim_zero_cat

CLASSES = 10
MEAN, STD = 0.1307, 0.3081  # of the pixels of MNIST's 60,000 training images, in [0, 1]
Batch = tuple[Tensor, Tensor]  # images (B, 1, 28, 28) float in [0, 1], labels (B,)
RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # what an optimiser and its schedule keep of the learning rate
ALL_STEPS = "all_steps"  # in a scheduler's settings: the optimiser steps of the whole run
BINS = 15  # of confidence, equally wide: Guo et al., On Calibration of Modern Neural Networks, 2017
BLOCK = 10_000  # answers
NOT_FILLED = 255  # where an answer may yet come: no label


class Answers(NamedTuple):
    """What a network said about the test images."""

    images: Tensor  # (N, 28, 28) uint8
    labels: Tensor  # (N,)
    probabilities: Tensor  # (N, 10)

    def accuracy_of_each(self) -> Tensor:  # (10,); of a digit that does not occur, no number
        right = (self.probabilities.argmax(1) == self.labels).double()
        return torch.bincount(self.labels, right, CLASSES) / torch.bincount(self.labels, minlength=CLASSES)


class Gather(Metric):
    """Keeps every answer to the test images, of all processes, for what is drawn of them.

    In large blocks: a small piece for each batch, left between its activations, would cost a hundred megabytes.
    """

    full_state_update = False
    images: list[Tensor]
    labels: list[Tensor]
    probabilities: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in Answers._fields:
            self.add_state(name, [], dist_reduce_fx="cat")
        self.filled = 0  # of the last block

    def update(self, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        new = (images.squeeze(1) * 255).round().byte(), labels, logits.float().softmax(dim=1)
        blocks = self.images, self.labels, self.probabilities
        if not self.labels or self.filled + len(labels) > len(self.labels[-1]):
            for block, part in zip(blocks, new, strict=True):
                block.append(part.new_full((max(BLOCK, len(labels)), *part.shape[1:]), NOT_FILLED))
            self.filled = 0
        for block, part in zip(blocks, new, strict=True):
            block[-1][self.filled : self.filled + len(part)] = part
        self.filled += len(labels)

    def compute(self) -> Answers:
        images, labels, probabilities = (dim_zero_cat(getattr(self, name)).cpu() for name in Answers._fields)
        there = labels != NOT_FILLED
        return Answers(images[there], labels[there], probabilities[there])


class DigitClassifier(LightningModule):
    """Step, metrics and optimiser of every network here; a subclass only builds `self.net`.

    `optimizer` and `scheduler` are the plain dictionaries of conf/optimizer and conf/scheduler. A network that only
    predicts needs neither.

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
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"model.label_smoothing must be from 0 up to but not 1, got {label_smoothing!r}")
        self.mean, self.std, self.label_smoothing = mean, std, label_smoothing
        self.images_seen = 0  # training images, over all processes and epochs
        self.started = perf_counter()  # less the seconds of training before a checkpoint that this run goes on from
        for stage in ("train", "val", "test"):
            self.add_module(f"{stage}_loss", MeanMetric(nan_strategy="disable"))
            self.add_module(f"{stage}_acc", MulticlassAccuracy(CLASSES, average="micro", validate_args=False))
        self.gather = Gather()
        self.answers: Answers | None = None  # to the test images, once tested
        self.recorded: dict[str, float] = {}  # what the loggers were last given
        self._epoch_start = (self.started, 0)  # perf_counter, images seen
        self._gradient_norm = 0.0
        self._unscored: list[tuple[Tensor, Tensor]] = []  # logits and labels
        self._resumed: dict[str, Any] | None = None  # the "training" of the checkpoint that was loaded
        self._lengths: list[dict[str, Any]] = []  # of the schedules in the checkpoint that was loaded
        self._validated = 0  # training batches, of all epochs, when the network was last validated

    def forward(self, images: Tensor) -> Tensor:  # (B, 1, 28, 28) in [0, 1] -> (B, 10) logits
        return self.net((images - self.mean) / self.std)

    def features(self, images: Tensor) -> Tensor:  # (B, 1, 28, 28) in [0, 1] -> (B, F), what the last layer gets
        body = self.net[:-1] if isinstance(self.net, nn.Sequential) else self.net
        return body((images - self.mean) / self.std)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.automatic_optimization = self.trainer.datamodule.batches_at_once == 1  # type: ignore[attr-defined]

    def training_step(self, batches: list[Batch], _: int) -> Tensor | None:
        """One batch, whose loss Lightning takes a step for; or several, with a step of the optimiser for each."""
        if self.automatic_optimization:
            (batch,) = batches
            return self._loss(batch)
        optimizer: Any = self.optimizers()
        for batch in batches:
            loss = self._loss(batch)
            optimizer.zero_grad()
            loss.backward()  # manual_backward would call hooks that nothing here listens to: `batches_at_once`
            optimizer.step()
            self._after_step(self.global_step)
            self._step_schedules("step")
        # What Lightning's own `log` takes for the step: one less, for it is about to count this call as one.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step - 1
        return None

    def _loss(self, batch: Batch) -> Tensor:
        images, labels = batch
        logits = self(images)
        # Scored many batches at a time: a metric's update costs as much as a small network's step.
        self._unscored.append((logits.detach(), labels))
        self.images_seen += len(labels) * self.trainer.world_size
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's own step of the optimiser, one at a time; checkpoints of this step come after it."""
        super().optimizer_step(*args, **kwargs)
        self._after_step(self.global_step + 1)  # counted when this returns

    def _after_step(self, step: int) -> None:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0:
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            self._record({**self._score_training(), "lr": rate, "grad_norm": self._gradient_norm}, step)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The norm over all parameters, before clipping."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            self._gradient_norm = float(torch.nn.utils.get_total_norm(gradients))

    def _step_schedules(self, interval: str) -> None:
        """Lightning does it when it takes the optimiser's steps."""
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == interval and not self.automatic_optimization:
                config.scheduler.step()  # type: ignore[call-arg]

    def on_train_epoch_end(self) -> None:
        self._step_schedules("epoch")
        self.log_dict(self.scores("train"), logger=False)
        seconds, images = self.epoch_so_far()
        self._record({"seconds_per_epoch": seconds, "images_per_second": images / seconds}, self.global_step)

    def on_train_epoch_start(self) -> None:
        self._reset("train")
        self._epoch_start = perf_counter(), self.images_seen

    def epoch_so_far(self) -> tuple[float, int]:
        """Seconds, with validation, and training images."""
        return perf_counter() - self._epoch_start[0], self.images_seen - self._epoch_start[1]

    def on_validation_epoch_start(self) -> None:
        self._reset("val")

    def on_test_epoch_start(self) -> None:
        self._reset("test")
        self.gather.reset()

    def validation_step(self, batch: Batch, _: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, _: int) -> None:
        images, labels = batch
        self.gather.update(images, labels, self._evaluate("test", batch))

    def on_validation_epoch_end(self) -> None:
        self._publish("val")
        if not self.trainer.sanity_checking:
            self._validated = self._batches_trained()

    def on_test_epoch_end(self) -> None:
        self.answers = self.gather.compute()
        error = multiclass_calibration_error(self.answers.probabilities, self.answers.labels, CLASSES, BINS)
        each = {f"vs_digit/acc_{digit}": value for digit, value in enumerate(self.answers.accuracy_of_each())}
        self._publish("test", {"test/calibration_error": error, **each})

    def predict_step(self, batch: Batch | Tensor, _: int) -> Tensor:  # -> (B, 10) probabilities
        return self(batch if isinstance(batch, Tensor) else batch[0]).softmax(dim=1)

    def scores(self, stage: str) -> dict[str, Tensor]:
        """Loss (mean over images) and micro accuracy of what `stage` has seen in this epoch, over all processes."""
        if stage == "train":
            self._score_training()
        return {f"{stage}/{name}": self._metric(stage, name).compute() for name in ("loss", "acc")}

    def _score_training(self) -> dict[str, Tensor]:
        """Adds the unscored batches to the epoch's metrics; returns their own loss and accuracy on this process."""
        if not self._unscored:
            return {}
        logits, labels = (torch.cat(part) for part in zip(*self._unscored, strict=True))
        self._unscored.clear()
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        if not losses.isfinite().all():
            raise self._no_number("the training loss is no longer a number")
        return {
            "train/loss": self._metric("train", "loss")(losses),
            "train/acc": self._metric("train", "acc")(logits, labels),
        }

    def _no_number(self, what: str) -> ValueError:
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        return ValueError(
            f"{what}, noticed after step {self.global_step} at a learning rate of {rate:g}; try a smaller "
            "optimizer.lr, or trainer.gradient_clip_val=1; the checkpoints from before are kept"
        )

    def _evaluate(self, stage: str, batch: Batch) -> Tensor:  # -> (B, 10) logits
        images, labels = batch
        logits = self(images)
        self._metric(stage, "loss").update(F.cross_entropy(logits.float(), labels, reduction="none"))
        self._metric(stage, "acc").update(logits, labels)
        return logits

    def _publish(self, stage: str, more: dict[str, Tensor] | None = None) -> None:
        scores = {**self.scores(stage), **(more or {})}
        self.log_dict(scores, logger=False)  # for callbacks: the best checkpoint, early stopping
        self._record(scores, self.global_step)

    def _record(self, values: dict[str, Any], step: int) -> None:
        """Hands one dict to the loggers. `self.log` would not show the untrained network, scored before epoch 1."""
        self.recorded = values = {name: float(value) for name, value in values.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics({**values, "epoch": self.current_epoch, "images": self.images_seen}, step)

    def _metric(self, stage: str, name: str) -> Metric:
        return getattr(self, f"{stage}_{name}")

    def _reset(self, stage: str) -> None:
        for name in ("loss", "acc"):
            self._metric(stage, name).reset()

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Raises ValueError where a setting of `optimizer` is not one of its class, or out of range."""
        settings = self.hparams["optimizer"]
        if not settings:
            raise ValueError("optimizer: none was given, and training needs one")
        rate = settings.get("lr")
        if not isinstance(rate, int | float) or isinstance(rate, bool) or not rate > 0:
            raise ValueError(f"optimizer.lr must be a positive number, got {rate!r}")
        if settings.get("fused", False) is None:  # the same arithmetic in one pass: a fifth of an epoch of Adam
            scaled = self._trainer is not None and self.trainer.precision == "16-mixed"  # cannot be clipped if fused
            settings = {**settings, "fused": self.device.type in ("cpu", "cuda") and not scaled}
        return instantiate(settings, params=self.parameters())

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        if not self.hparams["scheduler"]:
            return optimizer
        settings = dict(self.hparams["scheduler"])
        interval = settings.pop("interval")
        steps = self._all_steps()
        settings = {name: steps if value == ALL_STEPS else value for name, value in settings.items()}
        scheduler = instantiate(settings, optimizer=optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def _all_steps(self) -> int | float:
        if self.automatic_optimization:
            return self.trainer.estimated_stepping_batches
        epochs = self.trainer.max_epochs
        per_epoch = self.trainer.datamodule.steps_per_epoch  # type: ignore[attr-defined]
        return per_epoch * epochs if epochs is not None and epochs > 0 else float("inf")

    def _batches_trained(self) -> int:
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not all(parameter.isfinite().all() for parameter in self.parameters()):
            raise self._no_number("the weights are no longer numbers")
        for logger in self.trainer.loggers:
            logger.save()  # the record goes at least as far as the checkpoint
        checkpoint["model"] = type(self).__name__
        checkpoint["images_seen"] = self.images_seen
        checkpoint["train_seconds"] = perf_counter() - self.started
        checkpoint["metrics"] = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        loader: Any = self.trainer.train_dataloader
        loop: Any = self.trainer.fit_loop
        checkpoint["epochs"] = loop.epoch_progress.current.processed
        due = loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        # What the rest of an epoch depends on, beside the weights: for resuming in its middle.
        seconds, images = self.epoch_so_far()
        checkpoint["training"] = {
            "epoch_seconds": seconds,
            "epoch_images": images,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "loader": None if loader is None else loader.state_dict(),
            "validate_first": due and self._validated != self._batches_trained(),
            "unscored": [(logits.clone(), labels.clone()) for logits, labels in self._unscored],
            "scores": {name: self._metric("train", name).metric_state for name in ("loss", "acc")},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.images_seen = checkpoint.get("images_seen", 0)
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        self._resumed = checkpoint["training"]
        # Lightning counts the optimiser's steps in one of two places; this run may use the other.
        loop = checkpoint["loops"]["fit_loop"]
        loop["epoch_loop.manual_optimization.optim_step_progress"]["total"]["completed"] = checkpoint["global_step"]
        steps = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
        steps["total"]["completed"] = checkpoint["global_step"]
        self._place_in_epoch(loop, checkpoint["training"])
        self._take_new_settings(checkpoint)
        # A schedule's position comes from the checkpoint, its length from this run, which may have more epochs.
        lengths = ("total_steps", "_schedule_phases", "T_max")
        schedulers = checkpoint.get("lr_schedulers", [])
        self._lengths = [{name: state.pop(name) for name in lengths if name in state} for state in schedulers]

    def _place_in_epoch(self, loop: dict[str, Any], training: dict[str, Any]) -> None:
        """Corrects the counters of Lightning's loops, where they would lead on to another point than was left."""
        batches, validation = loop["epoch_loop.batch_progress"], loop["epoch_loop.val_loop.batch_progress"]
        if training["validate_first"]:
            # Stopped after a batch that validation follows, or in that validation: Lightning would leave it out.
            # So the batch is marked as completed, and validation as begun.
            for counts in (batches["total"], batches["current"]):
                counts["completed"] = counts["processed"]
            validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            validation["current"] = dict.fromkeys(validation["current"], 0)
            validation["is_last_batch"] = False
        elif training["loader"] is not None:
            # This run may take another number of batches in one of Lightning's steps.
            loader = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
            done = loader.batches_before(**training["loader"])
            if done is not None:
                batches["current"] = {"ready": done, "started": done, "processed": done, "completed": done - 1}

    def _take_new_settings(self, checkpoint: dict[str, Any]) -> None:
        """Where this run's settings of the optimiser are others than the checkpoint's, these are meant."""
        before, now = checkpoint["hyper_parameters"]["optimizer"], self.hparams["optimizer"]
        changed = {name: value for name, value in now.items() if before.get(name) != value}
        factor = now["lr"] / before["lr"]  # of all rates, for a schedule goes on at its place
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            group.update({name: value for name, value in changed.items() if name in group and name != "lr"})
            group.update({name: group[name] * factor for name in RATES if name in group})
            if not self.hparams["scheduler"]:
                group["lr"] = now["lr"]
        for schedule in checkpoint.get("lr_schedulers", []):
            schedule["base_lrs"] = [rate * factor for rate in schedule["base_lrs"]]

    def on_train_start(self) -> None:
        if self._resumed is not None:
            began, before = perf_counter() - self._resumed["epoch_seconds"], self._resumed["epoch_images"]
            self._epoch_start = began, self.images_seen - before
            torch.set_rng_state(self._resumed["random"])
            if self.device.type == "cuda" and self._resumed["random_cuda"]:
                torch.cuda.set_rng_state_all(self._resumed["random_cuda"])
            loader: Any = self.trainer.train_dataloader
            if self._resumed["loader"] is not None:  # Lightning's own call comes too early where a schedule is used
                loader.load_state_dict(self._resumed["loader"])
            self._unscored = [
                (logits.to(self.device), labels.to(self.device)) for logits, labels in self._resumed["unscored"]
            ]
            for name, state in self._resumed["scores"].items():
                metric = self._metric("train", name)
                for part, value in state.items():
                    setattr(metric, part, value.to(self.device))
                metric._update_count = 1  # else torchmetrics takes it for unused
            self._resumed = None
        for config, lengths in zip(self.trainer.lr_scheduler_configs, self._lengths, strict=False):
            scheduler: Any = config.scheduler
            longer = any(getattr(scheduler, name) != value for name, value in lengths.items())
            if longer and hasattr(scheduler, "_get_closed_form_lr"):  # else each rate is computed from the one before
                for group, rate in zip(scheduler.optimizer.param_groups, scheduler._get_closed_form_lr(), strict=True):
                    group["lr"] = rate


class MLP(DigitClassifier):
    """Fully connected layers, each hidden one followed by ReLU and dropout."""

    def __init__(self, hidden: Sequence[int] = (200,), dropout: float = 0.0, **shared: Any) -> None:
        super().__init__(**shared)
        self.net = nn.Sequential(nn.Flatten(), *_dense(28 * 28, hidden, dropout))


class CNN(DigitClassifier):
    """Convolutions, each with channel dropout, maximum pooling, batch norm and ReLU; then fully connected layers.

    Pooling comes before ReLU: the same function, since both are monotone, and less work.
    """

    def __init__(
        self,
        channels: Sequence[int] = (24, 48),
        kernel_sizes: Sequence[int] = (5, 3),
        strides: Sequence[int] = (1, 1),
        pools: Sequence[int] = (2, 2),
        padding: int = 0,
        channel_dropout: Sequence[float] = (0.0, 0.0),
        batch_norm: bool = False,
        hidden: Sequence[int] = (200,),
        dropout: float = 0.0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        per_layer = {
            "kernel_sizes": kernel_sizes,
            "strides": strides,
            "pools": pools,
            "channel_dropout": channel_dropout,
        }
        for name, values in per_layer.items():
            if len(values) != len(channels):
                raise ValueError(
                    f"model.{name} must have one value for each of model.channels={list(channels)}, got {list(values)}"
                )
        layers: list[nn.Module] = []
        size, depth = 28, 1
        for width, kernel, stride, pool, drop in zip(channels, *per_layer.values(), strict=True):
            for name, value in {"channels": width, "kernel_sizes": kernel, "strides": stride, "pools": pool}.items():
                _check_whole(name, value)
            size = ((size + 2 * padding - kernel) // stride + 1) // pool
            if size < 1:
                raise ValueError(
                    f"model.kernel_sizes={list(kernel_sizes)}, model.strides={list(strides)} and "
                    f"model.pools={list(pools)} leave nothing of 28x28 pixels; take smaller or fewer ones"
                )
            layers += [nn.Conv2d(depth, width, kernel, stride, padding)]
            layers += [nn.Dropout2d(drop)] if drop else []
            layers += [nn.MaxPool2d(pool)] if pool > 1 else []
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
            layers += [nn.ReLU()]
            depth = width
        layers += [nn.Flatten(), *_dense(depth * size * size, hidden, dropout)]
        self.net = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # half the time of a step on a CPU


def _dense(inputs: int, hidden: Sequence[int], dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in hidden:
        _check_whole("hidden", width)
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
        inputs = width
    return [*layers, nn.Linear(inputs, CLASSES)]


def _check_whole(name: str, value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"model.{name} must hold positive whole numbers, got {value!r}")
