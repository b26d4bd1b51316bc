"""The two scores of every network: mean cross entropy and accuracy over the images."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

CLASSES = 10
SCORED_TOGETHER = 1 << 16  # images, some three megabytes of logits


class CrossEntropy(Metric):
    """The mean over the images, so that a short last batch counts for what it is."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:  # (B, 10), (B,)
        self.total = self.total + F.cross_entropy(logits.float(), labels, reduction="sum")
        self.count = self.count + len(labels)

    def compute(self) -> Tensor:
        return self.total / self.count


class Scores(MetricCollection):
    """`loss` and `acc`, scored many batches at a time: an update costs as much as a small network's training step."""

    def __init__(self, prefix: str) -> None:
        accuracy = MulticlassAccuracy(CLASSES, average="micro", validate_args=False)
        super().__init__({"loss": CrossEntropy(), "acc": accuracy}, prefix=prefix, compute_groups=False)
        self.pending: list[tuple[Tensor, Tensor]] = []

    @torch.compiler.disable  # else each batch would be compiled anew, since the list is longer
    def update(self, logits: Tensor, labels: Tensor) -> None:  # (B, 10), (B,)
        self.pending.append((logits.detach(), labels))
        if len(self.pending) * len(labels) >= SCORED_TOGETHER:
            self.score_pending()

    @property
    def has_scored(self) -> bool:
        return bool(self.pending) or any(metric.update_called for metric in self.values())

    def score_pending(self) -> dict[str, Tensor]:
        """The scores of the batches that were not scored yet, alone; they count in `compute` from now on."""
        if not self.pending:
            return {}
        logits, labels = (torch.cat(part) for part in zip(*self.pending, strict=True))
        self.pending.clear()
        return super().forward(logits, labels)

    def compute(self) -> dict[str, Any]:
        self.score_pending()
        return super().compute()

    def reset(self) -> None:
        self.pending.clear()
        super().reset()
