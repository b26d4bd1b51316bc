"""Test-time augmentation: what a network says of an image, and of the same image moved a little."""

from collections.abc import Callable, Iterable
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 28  # pixels


def check_shifts(shifts: object) -> None:
    """Raises ValueError where an image cannot be moved by so many pixels."""
    if not isinstance(shifts, int) or not 0 <= shifts < SIDE:
        raise ValueError(f"model.shifts must be a whole number of pixels from 0 to {SIDE - 1}, got {shifts!r}")


def say_mean(network: Callable[[Tensor], Tensor], images: Tensor, shifts: int) -> Tensor:
    """What the network says of images (B, 1, 28, 28), as log probabilities (B, 10).

    With `shifts`, the mean of its probabilities for them and for them moved by so many pixels up, down, left and right.
    """
    looks = [images]
    if shifts:
        wide = F.pad(images, (shifts, shifts, shifts, shifts))
        for top, left in ((2, 1), (0, 1), (1, 2), (1, 0)):
            looks.append(wide[:, :, shifts * top :, shifts * left :][:, :, :SIDE, :SIDE])
    return mean(network(look).float().log_softmax(dim=1) for look in looks)


def mean(logs: Iterable[Tensor]) -> Tensor:  # of probabilities, (..., 10) each, as their logarithms
    stacked = torch.stack(list(logs))
    return stacked.logsumexp(dim=0) - log(len(stacked))
