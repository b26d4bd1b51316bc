"""What a run shows while it lasts, and draws at its end."""

import logging
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image, ImageColor
from torch import nn
from tqdm import tqdm

from mnist_pl import plots
from mnist_pl.data import EVALUATION_BATCH, MNISTDataModule, to_float
from mnist_pl.loggers import MetricsCSV, log_picture
from mnist_pl.models import BINS, CLASSES, DigitClassifier

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


class Progress(ProgressBar):
    """A table with a line for each epoch, and a live bar below it on a terminal; a log file gets the lines alone."""

    def __init__(self) -> None:
        super().__init__()
        self.bar = tqdm(disable=True)
        self.live = sys.stderr.isatty()
        self.short = shutil.get_terminal_size().columns < 60  # then without the losses

    def disable(self) -> None:
        self.live = False

    def enable(self) -> None:
        self.live = sys.stderr.isatty()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        losses = ("", "") if self.short else ("train loss", "val loss")
        self._line("epoch", losses[0], "train acc", losses[1], "val acc", "seconds")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
            now = pl_module.recorded
            names = ("acc",) if self.short else ("loss", "acc")
            figures = {name: f"{now[f'train/{name}']:.4f}" for name in names if f"train/{name}" in now}
            self.bar.set_postfix(figures, refresh=False)
            self.bar.update()  # tqdm draws ten times a second at the most

    def on_validation_end(self, trainer: Trainer, pl_module: DigitClassifier) -> None:  # type: ignore[override]
        if trainer.sanity_checking:  # the untrained network, or where this run goes on from
            loop: Any = trainer.fit_loop
            self._epoch(trainer, loop.epoch_progress.current.processed, trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: DigitClassifier) -> None:  # type: ignore[override]
        self.bar.close()
        scores = {**trainer.callback_metrics, **pl_module.scores("train")}
        self._epoch(trainer, trainer.current_epoch + 1, scores, f"{pl_module.epoch_so_far()[0]:.1f}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.bar.close()

    def _epoch(self, trainer: Trainer, number: int, scores: dict[str, torch.Tensor], seconds: str = "") -> None:
        last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        cells = []
        for stage in ("train", "val"):
            known = f"{stage}/loss" in scores
            cells.append(f"{scores[f'{stage}/loss']:.4f}" if known and not self.short else "")
            cells.append(f"{scores[f'{stage}/acc']:.2%}" if known else "")
        self._line(f"{number}{last}", *cells, seconds)

    @rank_zero_only
    def _line(self, *cells: str) -> None:
        widths = (7, 0, 11, 0, 9, 9) if self.short else (7, 12, 11, 12, 9, 9)
        log.info("%s", "".join(map(str.rjust, cells, widths)).rstrip())


class Drawing(Callback):
    """A picture of a finished run: a file in its folder that bears the class's name, and for loggers that show it.

    Drawn after the test, once, by the first of several processes.
    """

    def draw(self, trainer: Trainer, model: DigitClassifier, data: MNISTDataModule) -> "Figure | Image.Image | None":
        """None where there is nothing to be seen."""
        raise NotImplementedError

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: DigitClassifier) -> None:  # type: ignore[override]
        picture = self.draw(trainer, pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        if picture is not None:
            name = type(self).__name__.lower()
            path = plots.save(picture, Path(trainer.default_root_dir, f"{name}.png"))
            for logger in trainer.loggers:
                log_picture(logger, name, path, trainer.global_step)


class Samples(Drawing):
    """Ten training images with their labels."""

    def draw(self, trainer: Trainer, model: DigitClassifier, data: MNISTDataModule) -> Image.Image:
        images, labels = data.splits["train"]
        return plots.grid(images[:10].cpu().numpy(), [str(int(label)) for label in labels[:10]])


class Curves(Drawing):
    """Loss and accuracy against the training examples seen, from the rows of metrics.csv."""

    def draw(self, trainer: Trainer, model: DigitClassifier, data: MNISTDataModule) -> "Figure | None":
        rows = [row for logger in trainer.loggers if isinstance(logger, MetricsCSV) for row in logger.rows]
        if not any("val/loss" in row or "train/loss" in row for row in rows):
            return None
        held_out = "test" if data.hparams["validate_on_test"] else "validation"
        return plots.curves(rows, f"{type(model).__name__} on {data.dataset}", held_out)


class Confusion(Drawing):
    """Which digits are taken for which."""

    def draw(self, trainer: Trainer, model: DigitClassifier, data: MNISTDataModule) -> "Figure":
        assert model.answers is not None
        labels, guesses = model.answers.labels.numpy(), model.answers.probabilities.argmax(1).numpy()
        right = f"{int((labels == guesses).sum()):,} of {len(labels):,} test images right"
        return plots.confusion(labels, guesses, f"{type(model).__name__} on {data.dataset}: {right}")


class Mistakes(Drawing):
    """The wrong answers to test images that the network was surest of."""

    def draw(self, trainer: Trainer, model: DigitClassifier, data: MNISTDataModule) -> Image.Image | None:
        assert model.answers is not None
        images, labels, probabilities = model.answers
        confidences, guesses = probabilities.max(1)
        wrong = (guesses != labels).nonzero()[:, 0]
        worst = wrong[confidences[wrong].argsort(descending=True, stable=True)][:20]
        titles = [f"is {labels[i]}, said {guesses[i]}\n{confidences[i]:.1%} sure" for i in worst]
        return plots.grid(images[worst].numpy(), titles) if titles else None


class Calibration(Drawing):
    """Whether the network is as often right as it is sure."""

    def draw(self, trainer: Trainer, model: DigitClassifier, data: MNISTDataModule) -> "Figure":
        assert model.answers is not None
        confidences, guesses = model.answers.probabilities.max(1)
        right = (guesses == model.answers.labels).numpy()
        error = float(trainer.callback_metrics["test/calibration_error"])
        return plots.calibration(confidences.numpy(), right, BINS, error, f"{type(model).__name__} on {data.dataset}")


class Filters(Drawing):
    """The weights of the first layer, up to 64 units of it."""

    def draw(self, trainer: Trainer, model: DigitClassifier, data: MNISTDataModule) -> Image.Image | None:
        weight = next((layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)), None)
        if weight is None or weight[0].numel() not in (weight.shape[-1] ** 2, 28 * 28):
            return None
        pixels = weight[:64].detach().float().cpu().numpy()
        return plots.filters(pixels.reshape(len(pixels), 28, 28) if weight.ndim == 2 else pixels[:, 0])


class PRCurves(Callback):
    """Precision against recall for each digit, in TensorBoard."""

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: DigitClassifier) -> None:  # type: ignore[override]
        assert pl_module.answers is not None
        _, labels, probabilities = pl_module.answers
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for digit in range(CLASSES):
                    logger.experiment.add_pr_curve(
                        f"digit/{digit}", labels == digit, probabilities[:, digit], trainer.global_step
                    )


class Projector(Callback):
    """What the last layer gets of the first `images` test images, as points in TensorBoard's projector.

    A point is the image itself, in the colour of its digit.
    """

    def __init__(self, images: int = 1000) -> None:
        self.images = images

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: DigitClassifier) -> None:  # type: ignore[override]
        assert pl_module.answers is not None
        images, labels, _ = (part[: self.images] for part in pl_module.answers)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                ink = to_float(images)
                with torch.inference_mode():
                    parts = ink.to(pl_module.device).split(EVALUATION_BATCH)
                    points = torch.cat([pl_module.features(part).flatten(1).float().cpu() for part in parts])
                colors = torch.tensor([ImageColor.getrgb(color) for color in plots.DIGITS]) / 255
                pictures = 1 - ink * (1 - colors[labels, :, None, None])  # (N, 3, 28, 28), on white
                logger.experiment.add_embedding(points, labels.tolist(), pictures, trainer.global_step, "last_layer")
