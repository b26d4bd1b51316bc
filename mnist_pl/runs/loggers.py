"""Where a run's figures go while it lasts: metrics.csv, and what the tabs of TensorBoard show."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from mnist_pl.figures import plots
from mnist_pl.storage import write

SEEN = "vs_images/"  # before the tags of scores that are drawn against the training images seen
COURSE = ("epoch", "images", "lr", "grad_norm", "seconds_per_epoch", "images_per_second")  # below trainer/
SCORES = {"loss": "loss", "accuracy": "acc"}
CHARTED = ("train/{}_step", "val/{}", "test/{}")  # together in one chart
COLUMNS = ("data", "model", "optimizer", "lr", "batch_size", "epochs", "seed", "parameters", "experiment")
COMPARED = ("val/acc", "val_best/acc", "test/acc")  # figures of the HParams tab; best: of the checkpoint that is tested


class MetricsCSV(Logger):
    """`metrics.csv`: a row for each record, with the step, the epoch and the training images seen."""

    name, version = "csv", ""

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir, "metrics.csv")
        self.rows: list[dict[str, float]] = []
        self.written = 0
        self.columns: list[str] = []

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run's settings are in .hydra and in summary.json."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append({"step": step or 0, **metrics})

    @rank_zero_only
    def save(self) -> None:
        new = [name for row in self.rows[self.written :] for name in row if name not in self.columns]
        self.columns += dict.fromkeys(new)
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        if new or (self.rows and not self.written):  # a column that the header lacks: write everything anew
            writer.writeheader()
            writer.writerows(self.rows)
            write(self.path, text.getvalue().encode())
        elif self.written < len(self.rows):
            writer.writerows(self.rows[self.written :])
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                file.write(text.getvalue())
        self.written = len(self.rows)

    def rewind(self, step: int, within_epoch: bool) -> None:
        """Takes up the rows of an earlier process in the same folder, up to `step`: those after it are made again.

        So are those of a test, and of an epoch that ended there but is not over.
        """
        self.rows = [row for row in plots.rows(self.path) if row["step"] <= step and "test/acc" not in row]
        if within_epoch:
            self.rows = [row for row in self.rows if row["step"] < step or "seconds_per_epoch" not in row]
        self.written, self.columns = 0, []

    def finalize(self, status: str) -> None:
        if self.rows:
            self.save()


class TensorBoard(TensorBoardLogger):
    """Lightning's, with scores against the images seen too, charts on common axes, and an HParams tab without gaps.

    Tags sort so that what is looked at most comes first: test, train, trainer, val, and the rest.
    The event files lie in a folder of the run that bears the run's name: TensorBoard names runs by their folders.
    """

    name = ""  # where Lightning has a property, which cannot be set

    def __init__(self, save_dir: str, name: str = "", version: str = "") -> None:
        super().__init__(save_dir, name, version)
        self.name = name

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        super().log_metrics({f"trainer/{n}" if n in COURSE else n: value for n, value in metrics.items()}, step)
        if "images" in metrics:  # runs with other batch sizes take other numbers of steps
            super().log_metrics(_against_images(metrics), int(metrics["images"]))

    @rank_zero_only
    def log_hyperparams(  # type: ignore[override]
        self, params: dict[str, Any], metrics: dict[str, Any] | None = None, step: int | None = None
    ) -> None:
        """The columns of the HParams tab; their figures are those of the scalars with the names in COMPARED.

        Lightning's own would write a figure of -1 until there is one.
        """
        from torch.utils.tensorboard.summary import hparams

        values = {name: value if isinstance(value, int | float) else str(value) for name, value in params.items()}
        self.hparams.update(values)
        for summary in hparams(values, dict.fromkeys(metrics or COMPARED, 0)):
            self.experiment.file_writer.add_summary(summary)

    @rank_zero_only
    def show_settings_and_charts(self, settings: dict[str, Any]) -> None:
        """The settings as text, and charts that show several curves."""
        self.experiment.add_text("settings", f"```yaml\n{OmegaConf.to_yaml(OmegaConf.create(settings))}```")
        charts = {
            axis: {
                title: ["Multiline", [f"^{prefix}{tag.format(name)}$" for tag in CHARTED]]
                for title, name in SCORES.items()
            }
            for axis, prefix in (("by optimiser steps", ""), ("by images seen", SEEN))
        }
        self.experiment.add_custom_scalars(charts)

    @rank_zero_only
    def rewind(self, step: int, kept: Sequence[dict[str, float]]) -> None:
        """TensorBoard forgets what an earlier process left in the same folder from `step` on.

        It takes all axes for steps. What is to stay is written again, from the rows of metrics.csv that are `kept`.
        """
        from torch.utils.tensorboard import SummaryWriter

        earlier = next(Path(self.save_dir).glob("*/events.out.tfevents.*"), None)
        if earlier is None:
            return
        self.name = earlier.parent.name
        SummaryWriter(str(earlier.parent), purge_step=max(step, 0)).close()
        for row in kept:
            if row["step"] == step:
                self.log_metrics({name: value for name, value in row.items() if name != "step"}, step)
            elif row.get("images", 0) >= step:
                super().log_metrics(_against_images(row), int(row["images"]))


def _against_images(metrics: dict[str, float]) -> dict[str, float]:
    tags = ("train/{}", *CHARTED)
    names = (tag.format(name) for tag in tags for name in SCORES.values())
    return {SEEN + name: metrics[name] for name in names if name in metrics}


def start_loggers(
    trainer: Trainer, step: int, facts: dict[str, Any], settings: dict[str, Any], epoch_row: dict[str, float]
) -> None:
    """Before the first record: what an earlier process left in the same folder counts up to `step`.

    `epoch_row` is that of the epoch which ended there: the process may have ended before it was written.
    `facts` tell runs apart, one value each; `settings` are all that was composed.
    """
    columns = {name: facts[name] for name in COLUMNS if facts.get(name) is not None}
    kept: list[dict[str, float]] = []
    for logger in trainer.loggers:
        if isinstance(logger, MetricsCSV):
            logger.rewind(step, within_epoch=not epoch_row)
            kept = logger.rows
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.name = facts["run"]
            logger.rewind(step, kept)
            logger.show_settings_and_charts(settings)
            logger.log_hyperparams(columns)
        else:
            logger.log_hyperparams({**columns, "settings": settings})
    is_written = any(epoch_row.keys() <= row.keys() for row in kept if row["step"] == step)
    if kept and epoch_row and not is_written:
        for logger in trainer.loggers:
            logger.log_metrics({name: value for name, value in epoch_row.items() if name != "step"}, step)


def log_best(trainer: Trainer, scores: dict[str, float]) -> None:
    """The validation scores of the checkpoint that is tested."""
    best = {f"val_best/{name}": scores[f"val/{name}"] for name in SCORES.values() if f"val/{name}" in scores}
    for logger in trainer.loggers:
        if best and not isinstance(logger, MetricsCSV):  # it has them, at an earlier step
            logger.log_metrics(best, trainer.global_step)
