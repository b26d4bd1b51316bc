"""What a network said about the test images, of all processes: for the pictures that are drawn of it."""

from typing import Any, NamedTuple

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics.aggregation import CatMetric
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from mnist_pl.models import CLASSES

BINS = 15  # of confidence, equally wide: Guo et al., On Calibration of Modern Neural Networks, 2017
ROOM = 10_000  # rows at first
# MNIST's test images in which most of five people did not see the label, and the digit that most of them saw (None: no
# digit got most votes). Northcutt, Athalye and Mueller, Pervasive Label Errors in Test Sets Destabilize Machine
# Learning Benchmarks, 2021: mturk/mnist_mturk.json of github.com/cleanlab/label-errors.
LABEL_ERRORS: dict[int, int | None] = {947: 9, 1621: 6, 1901: 4, 2130: None, 2462: 0, 2597: 3, 2654: None, 3520: None}
LABEL_ERRORS |= {3558: 0, 5937: 3, 6651: 6, 6783: 6, 8527: None, 9679: None, 9729: 6}


class Answers(NamedTuple):
    position: Tensor  # (N,) of the image among the test images
    labels: Tensor  # (N,)
    probabilities: Tensor  # (N, 10)


class GatherAnswers(Callback):
    """Logs the calibration error, the accuracy of each digit, and of MNIST, how many of the wrong answers are to images
    that are known as wrongly labelled.

    Keeps what `test_step` returns, the logits, in one large piece of memory: small ones, left between the activations,
    would cost a hundred megabytes.
    """

    def __init__(self) -> None:
        self.answers: Answers | None = None
        self._rows, self._filled = torch.empty(0, 1 + CLASSES), 0

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows, self._filled = torch.empty(ROOM, 1 + CLASSES), 0

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if isinstance(outputs, Tensor) and outputs.shape[1:] == (CLASSES,):
            end = self._filled + len(outputs)
            if end > len(self._rows):
                self._rows = torch.cat([self._rows, torch.empty(end, 1 + CLASSES)])
            self._rows[self._filled : end, 0] = batch[1]
            self._rows[self._filled : end, 1:] = outputs.float().softmax(dim=1)
            self._filled = end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = self._rows[: self._filled]
        if not len(rows):
            return
        index = trainer.global_rank + trainer.world_size * torch.arange(len(rows))  # as the images were dealt out
        gathered = CatMetric(nan_strategy="disable").to(pl_module.device)
        gathered.update(torch.cat([index[:, None], rows], dim=1).to(pl_module.device))
        table: Tensor = gathered.compute().cpu()
        table = table[table[:, 0].argsort()]
        self.answers = Answers(table[:, 0].long(), table[:, 1].long(), table[:, 2:])
        self._rows = torch.empty(0, 1 + CLASSES)
        probabilities, labels = self.answers.probabilities, self.answers.labels
        error = multiclass_calibration_error(probabilities, labels, CLASSES, BINS)
        each = multiclass_accuracy(probabilities, labels, CLASSES, average=None)
        seen = torch.bincount(labels, minlength=CLASSES) > 0
        scores = {f"vs_digit/acc_{digit}": each[digit] for digit in range(CLASSES) if seen[digit]}
        if getattr(trainer.datamodule, "dataset", None) == "mnist":  # type: ignore[attr-defined]
            wrong = self.answers.position[probabilities.argmax(1) != labels].tolist()
            scores["test/label_errors"] = torch.tensor(float(len(LABEL_ERRORS.keys() & wrong)))
        pl_module.log_dict({"test/calibration_error": error, **scores}, sync_dist=True)


def find_answers(trainer: Trainer) -> Answers | None:
    """What the GatherAnswers among the Trainer's callbacks has kept."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback.answers for callback in callbacks if isinstance(callback, GatherAnswers)), None)
