"""What a run shows in the terminal while it lasts."""

import logging
import shutil
import sys
from time import perf_counter
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from mnist_pl.models import DigitClassifier

log = logging.getLogger(__name__)


class Progress(ProgressBar):
    """A table with a line for each epoch, and a live bar below it on a terminal; a log file gets the lines alone."""

    hooks_every_n_steps = None  # the bar may skip a few

    def __init__(self) -> None:
        super().__init__()
        self.bar = tqdm(disable=True)
        self.live = sys.stderr.isatty()
        self.short = shutil.get_terminal_size().columns < 60  # then without the losses
        self.headed = False
        self.started = perf_counter()
        self.validated: dict[str, Any] = {}  # the scores of a validation in this epoch

    def disable(self) -> None:
        self.live = False

    def enable(self) -> None:
        self.live = sys.stderr.isatty()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._head()  # not before: other callbacks say something at the start, as ModelSummary does

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._head()
        self.started = perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started, self.validated = perf_counter(), {}
        self.bar = tqdm(
            desc=f"epoch {trainer.current_epoch + 1}",
            total=self.total_train_batches,
            disable=not self.live,
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}% {bar} {elapsed}<{remaining}{postfix}",
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.live:
            callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
            now: dict[str, float] = next(
                (callback.recorded for callback in callbacks if hasattr(callback, "recorded")), {}
            )
            names = ("acc",) if self.short else ("loss", "acc")
            figures = {name: f"{now[f'train/{name}_step']:.4f}" for name in names if f"train/{name}_step" in now}
            self.bar.set_postfix(figures, refresh=False)
            self.bar.update(trainer.fit_loop.batch_idx + 1 - self.bar.n)  # tqdm draws ten times a second at the most

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.clear()  # of what other callbacks say now
        if trainer.sanity_checking:  # the untrained network, or where this run continues from
            loop: Any = trainer.fit_loop
            self._epoch(trainer, loop.epoch_progress.current.processed, trainer.callback_metrics)
        else:
            self.validated = dict(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.close()
        trained = pl_module.train_scores.compute() if isinstance(pl_module, DigitClassifier) else {}
        seconds = f"{perf_counter() - self.started:.1f}"
        part = trainer.fit_loop.batch_idx + 1, trainer.num_training_batches
        number = f"{trainer.current_epoch + part[0] / part[1]:.1f}" if part[0] < part[1] else trainer.current_epoch + 1
        self._epoch(trainer, number, {**self.validated, **trained}, seconds)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.bar.close()

    def _head(self) -> None:
        if not self.headed:
            losses = ("", "") if self.short else ("train loss", "val loss")
            self._line("epoch", losses[0], "train acc", losses[1], "val acc", "seconds")
        self.headed = True

    def _epoch(self, trainer: Trainer, number: int | str, scores: dict[str, Any], seconds: str = "") -> None:
        last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        cells = []
        for stage in ("train", "val"):
            loss, accuracy = scores.get(f"{stage}/loss"), scores.get(f"{stage}/acc")
            cells.append("" if loss is None or self.short else f"{float(loss):.4f}")
            cells.append("" if accuracy is None else f"{float(accuracy):.2%}")
        self._line(f"{number}{last}", *cells, seconds)

    @rank_zero_only
    def _line(self, *cells: str) -> None:
        widths = (7, 0, 11, 0, 9, 9) if self.short else (7, 12, 11, 12, 9, 9)
        log.info("%s", "".join(map(str.rjust, cells, widths)).rstrip())
