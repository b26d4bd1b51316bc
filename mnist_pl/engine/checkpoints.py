"""Which checkpoints a run keeps, and how they are written: best.ckpt, last.ckpt, each whole whatever happens.

Buys: a killed, stopped or starved run has a whole checkpoint to resume from, for 0.1 % of an epoch.
Without it: delete `plugins += [DurableIO()]` in runs/build.py.
Without it: delete `best: ` in conf/callbacks/minimal.yaml.
Without it: delete `last: ` in conf/callbacks/minimal.yaml.
(conf/experiment/robust.yaml sets what `best` monitors: without it, there too.)
"""

import io
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from mnist_pl.engine.record import COURSE
from mnist_pl.signals import STOPPING, advice, end_at_once_next_time
from mnist_pl.storage import remove_parts, short_path, write

log = logging.getLogger(__name__)


class DurableIO(TorchCheckpointIO):
    """Lightning's, but written beside the target, flushed to disk and renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        if "://" in str(path):  # a file system that is not this machine's, by fsspec
            return super().save_checkpoint(checkpoint, str(path), storage_options)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write(Path(path), content.getbuffer())


class Best(ModelCheckpoint):
    """`best.ckpt`: the weights of the best validation score; with `monitor` None, the last epoch's.

    Every checkpoint gets the newest scores, as `metrics`.
    """

    continued: Path | None = None  # the checkpoint that this project's run is resumed from
    is_resumed = False

    def __init__(self, dirpath: str, monitor: str | None = "val/acc", mode: str = "max") -> None:
        super().__init__(dirpath, filename="best", monitor=monitor, mode=mode, enable_version_counter=False)
        self._scores: dict[str, float] = {}  # before the checkpoint that was resumed from

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.continued = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or self.monitor in trainer.callback_metrics:  # else it was not validated yet
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where the training ended before the first validation, the last weights."""
        super().on_train_end(trainer, pl_module)
        if not self.best_model_path and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.best_model_path = str(Path(str(self.dirpath), "best.ckpt"))
            trainer.save_checkpoint(self.best_model_path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name not in COURSE}
        checkpoint["metrics"] = {**self._scores, **scores}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called before `load_state_dict`."""
        self.is_resumed = trainer.state.fn == TrainerFn.FITTING  # else the best is to be tested
        if self.is_resumed:
            self._scores = checkpoint.get("metrics", {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run that continues another in a folder of its own takes the other's best along, until it does better."""
        if not self.is_resumed or self.dirpath is None or state_dict["monitor"] != self.monitor:
            return
        if self.continued is None:
            return super().load_state_dict(state_dict) if state_dict["dirpath"] == self.dirpath else None
        theirs, ours = self.continued.with_name("best.ckpt"), Path(self.dirpath, "best.ckpt")
        if not theirs.is_file():
            return
        # Its own score: a killed run may have written it after the checkpoint that is resumed from.
        metrics = torch.load(theirs, map_location="cpu", weights_only=True).get("metrics")
        score = state_dict["best_model_score"] if metrics is None else metrics.get(self.monitor)
        if self.monitor is not None:
            if score is None:  # written before the first validation
                return
            score = torch.as_tensor(score)
        if theirs.resolve() != ours.resolve() and getattr(rank_zero_only, "rank", 0) == 0:
            write(ours, theirs.read_bytes())
        paths = {"best_model_path": str(ours), "kth_best_model_path": str(ours), "dirpath": self.dirpath}
        scores = {"best_model_score": score, "kth_value": score, "best_k_models": {str(ours): score}}
        super().load_state_dict({**state_dict, **paths, **scores, "last_model_path": ""})


class Last(Checkpoint):
    """`last.ckpt`: where to resume from. Written after each epoch, at a signal, and as often as is set.

    Never between the last batch before a validation and that validation's end: whoever resumed there would have to
    validate first. A signal is acted upon after the batch under way, or after the validation. Where the training ends
    within an epoch (max_steps, max_time, EarlyStopping), it is written there, as at a signal.

    Args:
        every_n_train_steps: steps of the optimiser.
        every_n_minutes: of wall time; looked at between two rounds of Lightning's loop.

    Raises ValueError where one of them is not positive.
    """

    hooks_every_n_steps: int | None = None

    def __init__(
        self, dirpath: str, every_n_train_steps: int | None = None, every_n_minutes: float | None = None
    ) -> None:
        for name, value in {"every_n_train_steps": every_n_train_steps, "every_n_minutes": every_n_minutes}.items():
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"callbacks.last.{name} must be a positive number or null, got {value!r}")
        self.path = Path(dirpath, "last.ckpt")
        self.hooks_every_n_steps, self.every_n_minutes = every_n_train_steps, every_n_minutes
        self.signal: int | None = None
        self.stop_later = self.ended_within_epoch = False
        self.handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning's answer to SIGTERM waits, within it, for the other processes, which may wait elsewhere."""
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = lambda: None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            remove_parts(self.path.parent)
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()
        self.stop_later = self.ended_within_epoch = False
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self._note) for number in STOPPING}

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
        end_at_once_next_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop: Any = trainer.fit_loop.epoch_loop
        batches = loop.batch_progress.current.ready  # of this epoch
        interval: Any = trainer.val_check_batch
        counted = loop.total_batch_idx + 1 if trainer.check_val_every_n_epoch is None else batches
        validation_is_next = trainer.is_last_batch or (interval is not None and counted % interval == 0)
        if self._postpones_ending(trainer, batches) or validation_is_next:
            return
        step, minutes = trainer.global_step, (time.monotonic() - self.saved_time) / 60
        every = self.hooks_every_n_steps
        due = every is not None and step % every == 0 and step != self.saved_step
        if self.every_n_minutes is not None:
            due |= trainer.strategy.broadcast(minutes >= self.every_n_minutes)  # by the clock of the first process
        if is_ending(trainer):
            due = self.ended_within_epoch = True
            loop._skip_next_val = True  # a run that is not stopped here does not validate here
            for callback in trainer.early_stopping_callbacks:
                callback.strict = False  # perhaps there is no score yet
        if due:
            self._save(trainer)
        self._stop_if_asked(trainer)

    def _postpones_ending(self, trainer: Trainer, batches: int) -> bool:
        """Whether gradients are incomplete after `batches` of this epoch, which an end here would lose."""
        incomplete = not trainer.is_last_batch and batches % trainer.accumulate_grad_batches != 0
        self.stop_later |= trainer.should_stop
        trainer.should_stop = self.stop_later and not incomplete
        return incomplete

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batch_progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or batch_progress.is_last_batch:
            return
        if not self._postpones_ending(trainer, batch_progress.current.ready) and is_ending(trainer):
            self.ended_within_epoch = True
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.ended_within_epoch:
            self._save(trainer)
        self._stop_if_asked(trainer)

    def _save(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()

    def _stop_if_asked(self, trainer: Trainer) -> None:
        """Here, between two batches, a checkpoint holds all that is needed to resume exactly."""
        number = self.signal or 0
        if trainer.world_size > 1:  # any process may have got it
            told = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(told, reduce_op="max"))
        if not number:
            return
        if trainer.global_step != self.saved_step:
            self._save(trainer)
        if trainer.is_global_zero:
            name = signal.Signals(number).name
            how = advice(f"the checkpoint is {short_path(self.path)}", number)
            log.warning("stopped by %s after step %d; %s", name, trainer.global_step, how)
        trainer.strategy.barrier()  # the first process has told
        raise SystemExit(128 + number)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._hand_signals_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning tears nothing down then."""
        self._hand_signals_back()

    def _hand_signals_back(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


def is_ending(trainer: Trainer) -> bool:
    """Whether Lightning will end the training after this batch, or this validation."""
    loop: Any = trainer.fit_loop
    return 0 <= trainer.max_steps <= trainer.global_step or (trainer.should_stop and loop._can_stop_early)
