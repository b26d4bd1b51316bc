"""Several optimiser steps in one round of Lightning's loop, and the images on the device once.

Buys: an epoch of seed_mlp in 1.3 x the bare loop instead of 1.8 x; the same weights to the last bit.
Without it: delete `strategy = FastSingleDevice.where_it_fits(settings, strategy)` in runs/build.py.
"""

from collections.abc import Mapping
from typing import Any

from lightning import LightningDataModule, LightningModule
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import LBFGS

from mnist_pl.data import Batches

OPTIMIZERS = ("torch.optim.", "mnist_pl.")  # others may ask for the loss again, as LBFGS does
TOGETHER = 1024  # training images, at the most, in one round of Lightning's loop
# What someone may do at each batch: where anyone does, batches go one by one.
STEP_HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_optimizer_step")
CALLBACK_HOOKS = (*STEP_HOOKS, "on_before_zero_grad", "on_before_backward", "on_after_backward")
MODULE_HOOKS = (*CALLBACK_HOOKS, "backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping")
BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class FastSingleDevice(SingleDeviceStrategy):
    """Takes the optimiser steps of several batches where Lightning's loop asks for one.

    The rounds end where something happens: at a step that is logged or saved, at the end of an epoch or of the
    training. There, everything is Lightning's own; between, a batch is fetched, trained on and counted as it does,
    without the hooks, which cost as much as a small network's step. All of Lightning's counters stay those of batches.
    """

    @classmethod
    def where_it_fits(cls, trainer: Mapping[str, Any], strategy: Any) -> Any:
        """For one device and no strategy of the user's own, this; else `strategy`. `trainer`: a Trainer's arguments."""
        if strategy != "auto" or trainer.get("devices") not in (1, "1") or trainer.get("num_nodes", 1) != 1:
            return strategy
        accelerator = trainer.get("accelerator", "auto")
        if accelerator in ("auto", "gpu", "cuda") and CUDAAccelerator.is_available():
            return cls("cuda:0")
        if accelerator in ("auto", "gpu", "mps") and MPSAccelerator.is_available():
            return cls("mps:0")
        return cls("cpu") if accelerator in ("auto", "cpu") else strategy

    def process_dataloader(self, dataloader: Any) -> Any:
        if isinstance(dataloader, Batches):
            dataloader.to(self.root_device)
        return dataloader

    def on_train_start(self) -> None:
        module = self.lightning_module
        assert module is not None
        trainer: Any = module.trainer
        hooked = any(is_overridden(hook, module, LightningModule) for hook in MODULE_HOOKS + BATCH_HOOKS)
        if trainer.datamodule is not None:
            hooked |= any(is_overridden(hook, trainer.datamodule, LightningDataModule) for hook in BATCH_HOOKS)
        intervals = [_every_n_steps(callback) for callback in trainer.callbacks]
        self.intervals = {interval for interval in [*intervals, trainer.log_every_n_steps] if interval}
        self.together = (
            isinstance(trainer.train_dataloader, Batches)
            and type(self.precision_plugin) is Precision  # autocast keeps converted weights for a whole step
            and type(trainer.profiler) is PassThroughProfiler
            and trainer.gradient_clip_val is None
            and getattr(trainer, "val_check_interval", None) == 1.0  # which one by time leaves out
            and not trainer.fast_dev_run
            and module.automatic_optimization
            and type(trainer.optimizers[0]).__module__.startswith(OPTIMIZERS)
            and not isinstance(trainer.optimizers[0], LBFGS)
            and not hooked
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for _ in range(self._steps_ahead(batch, batch_idx)):
            self._step(batch, batch_idx)
            batch, batch_idx = self._next_batch(), batch_idx + 1
        return super().training_step(batch, batch_idx)

    def _steps_ahead(self, batch: Any, batch_idx: int) -> int:
        """How many steps there are before one that Lightning has to take itself."""
        trainer: Any = self.lightning_module.trainer  # type: ignore[union-attr]
        if not self.together or trainer.accumulate_grad_batches != 1:  # a callback may change it
            return 0
        step = trainer.global_step + 1  # the one of this batch
        ends = [TOGETHER // len(batch[1]) - 1, trainer.num_training_batches - batch_idx - 1]
        ends += [-step % interval for interval in self.intervals]
        ends += [trainer.max_steps - step] if trainer.max_steps >= 0 else []
        return max(0, min(ends))

    def _step(self, batch: Any, batch_idx: int) -> None:
        """One batch, as Lightning's automatic optimisation takes it; then its counters and learning rate schedules."""
        module: Any = self.lightning_module
        loop = module.trainer.fit_loop.epoch_loop
        optimizer = module.trainer.optimizers[0]
        output = super().training_step(batch, batch_idx)
        loss = output if isinstance(output, Tensor | None) else output["loss"]
        steps = loop.automatic_optimization.optim_progress.optimizer.step
        steps.increment_ready()
        optimizer.zero_grad()
        if loss is not None:
            loss.backward()
        optimizer.step()
        steps.increment_completed()
        loop.batch_progress.increment_processed()
        for is_plateau in (False, True):
            loop.update_lr_schedulers("step", update_plateau_schedulers=is_plateau)
        loop.batch_progress.increment_completed()
        loop._batches_that_stepped += 1

    def _next_batch(self) -> Any:
        loop: Any = self.lightning_module.trainer.fit_loop  # type: ignore[union-attr]
        batch, _, _ = next(loop._data_fetcher)
        progress = loop.epoch_loop.batch_progress
        progress.is_last_batch = loop._data_fetcher.done
        progress.increment_ready()
        progress.increment_started()
        results = loop.epoch_loop._results  # where `log` looks for the size of the batch
        results.batch, results.batch_size = batch, None
        return batch


def _every_n_steps(callback: Callback) -> int | None:
    """At which steps a callback has to see the batch: none, or multiples of this; 1: at each.

    A class tells by its `hooks_every_n_steps`; what has none, or adds hooks below it, by the hooks it overrides.
    """
    for owner in type(callback).__mro__:
        if "hooks_every_n_steps" in vars(owner):
            return callback.hooks_every_n_steps  # type: ignore[attr-defined]
        if owner is ModelCheckpoint:
            assert isinstance(callback, ModelCheckpoint)
            return 1 if callback._train_time_interval else callback._every_n_train_steps
        if owner is not Callback and any(hook in vars(owner) for hook in CALLBACK_HOOKS):
            return 1
    return 1 if any(is_overridden(hook, callback, Callback) for hook in CALLBACK_HOOKS) else None  # LambdaCallback
