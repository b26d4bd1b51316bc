"""Callbacks that draw what a finished run looks like: one picture each, after the test."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image, ImageColor
from torch import Tensor, nn

from mnist_pl.data import MNISTDataModule, to_float
from mnist_pl.figures import plots
from mnist_pl.figures.answers import BINS, LABEL_ERRORS, Answers, find_answers
from mnist_pl.models import CLASSES, Ensemble

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREFIX = "view_"  # before the tags of pictures, so that TensorBoard's first page begins with scores
FEATURES = "last_layer"  # the projector's tag
MOST_MISTAKES = 50  # which is all, of a good network


class Run(NamedTuple):
    """What there is to draw of a finished run."""

    model: LightningModule
    data: MNISTDataModule
    answers: Answers | None  # to the test images, where GatherAnswers is among the callbacks
    folder: Path

    @property
    def title(self) -> str:
        return f"{type(self.model).__name__} on {self.data.dataset}"


class Drawing(Callback):
    """A picture of a finished run: `name`.png in its folder, and for the loggers that show pictures. Drawn after the
    test, once, by the first of several processes."""

    name: str

    def draw(self, run: Run) -> "Figure | Image.Image | None":
        """None where there is nothing to be seen."""
        raise NotImplementedError

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data, folder = trainer.datamodule, Path(trainer.default_root_dir)  # type: ignore[attr-defined]
        if not isinstance(data, MNISTDataModule):
            return
        for logger in trainer.loggers:
            logger.save()  # curves are drawn of the record
        picture = self.draw(Run(pl_module, data, find_answers(trainer), folder))
        if picture is not None:
            path = plots.save(picture, folder / f"{self.name}.png")
            for logger in trainer.loggers:
                log_picture(logger, self.name, path, trainer.global_step)


class Samples(Drawing):
    """Ten training images with their labels."""

    name = "samples"

    def draw(self, run: Run) -> Image.Image:
        images, labels = run.data.splits["train"]
        return plots.grid(images[:10].numpy(), [str(int(label)) for label in labels[:10]])


class Curves(Drawing):
    """Loss and accuracy against the training examples seen, from the rows of metrics.csv."""

    name = "curves"

    def draw(self, run: Run) -> "Figure | None":
        if isinstance(run.model, Ensemble):  # which has no course
            return None
        rows = [row for row in plots.rows(run.folder / "metrics.csv") if "images" in row]  # Record counts them
        if not any("val/loss" in row or "train/loss" in row for row in rows):
            return None
        held_out = "test" if run.data.hparams["validate_on_test"] else "validation"
        return plots.curves(rows, run.title, held_out)


class Confusion(Drawing):
    """Which digits are taken for which."""

    name = "confusion"

    def draw(self, run: Run) -> "Figure | None":
        if run.answers is None:
            return None
        labels, guesses = run.answers.labels.numpy(), run.answers.probabilities.argmax(1).numpy()
        right = f"{int((labels == guesses).sum()):,} of {len(labels):,} test images right"
        return plots.confusion(labels, guesses, f"{run.title}: {right}")


class Mistakes(Drawing):
    """The wrong answers to test images, the surest first; red where MNIST's label is known as wrong."""

    name = "mistakes"

    def draw(self, run: Run) -> Image.Image | None:
        if run.answers is None:
            return None
        position, labels, probabilities = run.answers
        confidences, guesses = probabilities.max(1)
        wrong = (guesses != labels).nonzero()[:, 0]
        worst = wrong[confidences[wrong].argsort(descending=True, stable=True)][:MOST_MISTAKES]
        titles = [f"is {labels[i]}, said {guesses[i]}\n{confidences[i]:.1%} sure" for i in worst]
        known = LABEL_ERRORS if run.data.dataset == "mnist" else {}
        places = position[worst].tolist()
        for number, place in enumerate(places):
            if place in known:
                titles[number] += "\nlabel error: " + ("unclear" if known[place] is None else f"{known[place]}?")
        images = run.data.splits["test"][0][position[worst]].numpy()
        return plots.grid(images, titles, [place in known for place in places]) if titles else None


class Calibration(Drawing):
    """Whether the network is as often right as it is sure."""

    name = "calibration"

    def draw(self, run: Run) -> "Figure | None":
        if run.answers is None:
            return None
        confidences, guesses = run.answers.probabilities.max(1)
        right = (guesses == run.answers.labels).numpy()
        return plots.calibration(confidences.numpy(), right, BINS, run.title)


class Filters(Drawing):
    """The weights of the first layer, up to 64 units of it; of an ensemble, of its first network."""

    name = "filters"

    def draw(self, run: Run) -> Image.Image | None:
        weight = next((layer.weight for layer in run.model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)), None)
        if weight is None or weight[0].numel() not in (weight.shape[-1] ** 2, 28 * 28):
            return None
        pixels = weight[:64].detach().float().cpu().numpy()
        return plots.filters(pixels.reshape(len(pixels), 28, 28) if weight.ndim == 2 else pixels[:, 0])


class PRCurves(Callback):
    """Precision against recall for each digit, in TensorBoard."""

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        answers = find_answers(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and answers is not None:
                for digit in range(CLASSES):
                    truth, probability = answers.labels == digit, answers.probabilities[:, digit]
                    logger.experiment.add_pr_curve(f"digit/{digit}", truth, probability, trainer.global_step)


class Projector(Callback):
    """What the last layer gets of the first `images` test images, as points in TensorBoard's projector, each the image
    itself in the colour of its digit."""

    def __init__(self, images: int = 1000) -> None:
        self.images = images

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards or not isinstance(data, MNISTDataModule):
            return
        images, labels = (part[: self.images].cpu() for part in data.splits["test"])
        points = _last_layer_inputs(pl_module, to_float(images))
        if points is None:
            return
        colors = torch.tensor([ImageColor.getrgb(color) for color in plots.DIGITS]) / 255
        pictures = 1 - to_float(images) * (1 - colors[labels, :, None, None])  # (N, 3, 28, 28), on white
        for board in boards:
            board.experiment.add_embedding(points, labels.tolist(), pictures, trainer.global_step, FEATURES)


def _last_layer_inputs(model: LightningModule, images: Tensor) -> Tensor | None:  # (N, 1, 28, 28) -> (N, F)
    """Of an ensemble, its last network's. None where `model` asks no linear layer, or the last one repeatedly."""
    images = images.to(model.device).to(next(model.parameters()).dtype)
    seen: dict[nn.Module, list[Tensor]] = {}  # by layer, the one that was asked last at the end

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[layer] = [*seen.pop(layer, []), inputs[0].cpu()]

    hooks = [layer.register_forward_pre_hook(keep) for layer in model.modules() if isinstance(layer, nn.Linear)]
    with torch.inference_mode():
        for part in images.split(250):
            model(part)
    for hook in hooks:
        hook.remove()
    points = torch.cat([part.flatten(1).float() for part in [*seen.values()][-1]]) if seen else images[:0]
    return points if len(points) == len(images) else None


def log_picture(logger: Logger, name: str, path: Path, step: int) -> None:
    """Hands a picture file to a logger that shows pictures."""
    if isinstance(logger, TensorBoardLogger):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        logger.experiment.add_image(PREFIX + name, pixels, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [str(path)], step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_artifact(logger.run_id, str(path))
