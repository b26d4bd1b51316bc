"""The networks. Each builds `self.net`; step, metrics and optimiser are those of DigitClassifier."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mnist_pl.models.classifier import DigitClassifier
from mnist_pl.models.metrics import CLASSES


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
        if padding < 0:
            raise ValueError(f"model.padding must be a whole number of pixels from 0, got {padding!r}")
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


class RefusingCNN(CNN):
    """A CNN that learns from images labelled -1, which show no digit, that none of the ten is likelier than another
    (outlier exposure, Hendrycks, Mazeika and Dietterich 2018). So its highest probability falls to 0.1 where it sees no
    digit, and says for anything how likely the answer is right. The training scores count digits alone.

    nondigit_weight: of the loss on such an image, where a digit's is 1; a half as in that paper.
    """

    refuses = True

    def __init__(self, nondigit_weight: float = 0.5, **rest: Any) -> None:
        super().__init__(**rest)
        if not isinstance(nondigit_weight, int | float) or not nondigit_weight >= 0:
            raise ValueError(f"model.nondigit_weight must be a number from 0 up, got {nondigit_weight!r}")
        self.nondigit_weight = nondigit_weight

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        logits = self(images)
        is_digit = labels >= 0
        self.train_scores.update(logits[is_digit], labels[is_digit])
        targets = nn.functional.one_hot(labels.clamp(min=0), CLASSES).float()
        targets = torch.where(is_digit[:, None], targets, 1 / CLASSES)
        losses = nn.functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction="none")
        return torch.where(is_digit, losses, self.nondigit_weight * losses).mean()


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
