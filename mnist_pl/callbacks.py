"""What a run shows while it lasts, draws at its end, and remembers."""

import csv
import io
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning
import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from tqdm import tqdm

from mnist_pl import checkpoint, plots
from mnist_pl.data import MNISTDataModule
from mnist_pl.models import DigitClassifier
from mnist_pl.plots import near

log = logging.getLogger(__name__)


class Progress(ProgressBar):
    """A line for each epoch, with a live bar below it on a terminal; a log file gets the lines alone."""

    def __init__(self) -> None:
        super().__init__()
        self.bar = tqdm(disable=True)
        self.live = sys.stderr.isatty()
        self.started = perf_counter()

    def disable(self) -> None:
        self.live = False

    def enable(self) -> None:
        self.live = sys.stderr.isatty()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = perf_counter()
        self.bar = tqdm(
            desc=f"epoch {trainer.current_epoch + 1}",
            total=self.total_train_batches,
            disable=not self.live,
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}% {bar} {elapsed}<{remaining}{postfix}",
        )

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: DigitClassifier, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.live:
            self.bar.set_postfix({k: f"{v:.4g}" for k, v in pl_module.recorded.items()}, refresh=False)
            self.bar.update()  # tqdm draws ten times a second at the most

    def on_validation_end(self, trainer: Trainer, pl_module: DigitClassifier) -> None:  # type: ignore[override]
        if trainer.sanity_checking:
            name = "untrained" if pl_module.images_seen == 0 else "so far"
            self._say(name, trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: DigitClassifier) -> None:  # type: ignore[override]
        self.bar.close()
        last = trainer.max_epochs if trainer.max_epochs not in (None, -1) else "?"
        name = f"epoch {trainer.current_epoch + 1}/{last}"
        scores = {**trainer.callback_metrics, **pl_module.scores("train")}
        self._say(name, scores, f"  {perf_counter() - self.started:.1f} s")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.bar.close()

    @rank_zero_only
    def _say(self, name: str, scores: dict[str, torch.Tensor], end: str = "") -> None:
        parts = [
            f"{stage} loss {scores[f'{stage}/loss']:.4f} acc {scores[f'{stage}/acc']:.2%}"
            for stage in ("train", "val")
            if f"{stage}/loss" in scores
        ]
        log.info("%s", f"{name:11} " + "  ".join(parts) + end)


class MetricsCSV(Logger):
    """`metrics.csv`: a row for each record, with the step, the epoch and the training images seen."""

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir, "metrics.csv")
        self.rows: list[dict[str, float]] = []
        self.written = 0
        self.columns: list[str] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run's settings are in .hydra and in summary.json."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step or 0, **metrics}
        if row not in self.rows[-2:]:  # after a resume, the last step may be scored again
            self.rows.append(row)

    @rank_zero_only
    def save(self) -> None:
        new = [name for row in self.rows[self.written :] for name in row if name not in self.columns]
        self.columns += dict.fromkeys(new)
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        if new or (self.rows and not self.written):  # a column that the header lacks: write everything anew
            writer.writeheader()
            writer.writerows(self.rows)
            checkpoint.write(self.path, text.getvalue().encode())
        elif self.written < len(self.rows):
            writer.writerows(self.rows[self.written :])
            with open(self.path, "a", newline="") as file:
                file.write(text.getvalue())
        self.written = len(self.rows)

    def rewind(self, step: int) -> None:
        """Takes up the rows of an earlier process in the same folder, up to `step`: those after it are made again."""
        if self.path.exists():
            with open(self.path, newline="") as file:
                whole = [line for line in file if line.endswith("\n")]  # not one that a killed process had begun
            rows = [{name: _number(value) for name, value in row.items() if value} for row in csv.DictReader(whole)]
            self.rows = [row for row in rows if row["step"] <= step]
            self.written, self.columns = 0, []

    def finalize(self, status: str) -> None:
        if self.rows:
            self.save()


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def rewind(loggers: Sequence[Logger], step: int) -> None:
    """Before the loggers' first record: what an earlier process left in the same folder counts up to `step`."""
    for logger in loggers:
        if isinstance(logger, MetricsCSV):
            logger.rewind(step)
        elif isinstance(logger, TensorBoardLogger):
            logger._kwargs["purge_step"] = step + 1  # an argument of its SummaryWriter


class Samples(Callback):
    """`samples.png`: ten training images with their labels, also in TensorBoard."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        images, labels = trainer.datamodule.splits["train"]  # type: ignore[attr-defined]
        _draw(trainer, "samples", plots.grid(images[:10].cpu().numpy(), [str(int(label)) for label in labels[:10]]))


class Curves(Callback):
    """`curves.png`: loss and accuracy against the training examples seen, from the rows of metrics.csv."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = [row for logger in trainer.loggers if isinstance(logger, MetricsCSV) for row in logger.rows]
        if rows:
            data: MNISTDataModule = trainer.datamodule  # type: ignore[attr-defined]
            held_out = "test" if data.hparams["validate_on_test"] else "validation"
            _draw(trainer, "curves", plots.curves(rows, f"{type(pl_module).__name__} on {data.dataset}", held_out))


@rank_zero_only
def _draw(trainer: Trainer, name: str, picture: Any) -> None:
    path = plots.save(picture, Path(trainer.default_root_dir, f"{name}.png"))
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")


def header(trainer: Trainer, model: DigitClassifier, data: MNISTDataModule) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = " / ".join(f"{len(data.splits[name][1]):,}" for name in ("train", "val", "test"))
    return (
        f"{data.dataset} ({sizes} images) · {type(model).__name__}, {parameters:,} parameters · "
        f"{trainer.strategy.root_device} · {near(trainer.default_root_dir)}"
    )


def summarise(
    trainer: Trainer, model: DigitClassifier, data: MNISTDataModule, best: Path | None, facts: dict[str, Any]
) -> dict[str, Any]:
    """One flat object: what was run, on what, and what came out; `facts` are added as they are."""
    best_scores = checkpoint.read(best).get("metrics", {}) if best else {}
    scores = {**trainer.callback_metrics, **{name: best_scores.get(name) for name in ("val/acc", "val/loss")}}
    optimizer = model.hparams["optimizer"]
    return {
        "data": data.dataset,
        "model": type(model).__name__,
        "optimizer": optimizer["_target_"].rpartition(".")[2],
        "lr": optimizer["lr"],
        "batch_size": data.hparams["batch_size"],
        **facts,
        "epochs": trainer.current_epoch,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": _device(trainer),
        **{name: _figure(scores.get(name)) for name in ("val/acc", "val/loss", "test/acc", "test/loss")},
        "best_checkpoint": near(best) if best else None,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "git_commit": _git_commit(),
    }


def _figure(score: torch.Tensor | float | None) -> float | None:
    return None if score is None else round(float(score), 6)  # float32 holds no more


def write_summary(folder: str, summary: dict[str, Any]) -> None:
    checkpoint.write(Path(folder, "summary.json"), (json.dumps(summary, indent=2) + "\n").encode())


def table(summary: dict[str, Any], folder: str) -> str:
    lines = [f"{'':12}{'loss':>10}{'accuracy':>12}"]
    for stage in ("val", "test"):
        if summary[f"{stage}/acc"] is not None:
            lines.append(f"{stage:12}{summary[f'{stage}/loss']:>10.4f}{summary[f'{stage}/acc']:>12.2%}")
    if summary["train_seconds"]:
        lines.append(f"{'time':12}{summary['train_seconds']:>8.1f} s{summary['images_per_second']:>10,.0f} images/s")
    return "\n".join([*lines, f"everything is in {near(folder)}"])


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)


def _git_commit() -> str | None:
    """Of the code that runs; None where it is not in a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
