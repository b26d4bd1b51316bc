"""Whole-batch augmentation: every image of a batch changed by its own amount in one call."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BENDS = 5  # points a side of the grid whose random moves bend an image


@dataclass(frozen=True)
class Augment:
    """Random changes, drawn uniformly and independently for each image; what is 0 is not done.

    The ink is moved, then changed as pens, paper and cameras do.
    """

    shift: float = 0.0  # pixels, in each direction
    rotate: float = 0.0  # degrees, either way
    scale: float = 0.0  # share of the size, either way; 0.1 gives 0.9 to 1.1 of it
    shear: float = 0.0  # pixels sideways for each pixel upwards, either way: a slant
    elastic: float = 0.0  # pixels by which parts of the image are moved in each direction
    thickness: float = 0.0  # share of a pixel by which strokes grow or shrink on each side; at most 1
    gaps: float = 0.0  # pixels, of a straight gap across the strokes of every second image
    blur: float = 0.0  # share of a smoothing over 3x3 pixels; at most 1
    gamma: float = 0.0  # 1 gives brightness to the power of 1/2 to 2: faint edges become strong, or the reverse
    contrast: float = 0.0  # share of the brightness that is taken away; at most 1
    background: float = 0.0  # brightness of a slope and of grain behind the ink of every second image; at most 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"data.augment.{name} must be a number from 0 up, got {value!r}")
            if name in ("thickness", "blur", "contrast", "background") and value > 1:
                raise ValueError(f"data.augment.{name} is a share, and must be a number from 0 to 1, got {value!r}")

    def __call__(self, images: Tensor) -> Tensor:  # (B, 1, 28, 28) in [0, 1] -> the same
        images = self._moved(images)
        if self.thickness:
            images = _thickened(images, self._each(images) * self.thickness)
        if self.gaps:
            images = images * _beyond_gap(images, self._each(images) * self.gaps)
        if self.blur:
            images = torch.lerp(images, _smoothed(images), self._each(images).abs() * self.blur)
        if self.gamma:
            images = images.clamp(0, 1) ** (1 + self.gamma) ** self._each(images)
        if self.contrast:
            images = images * (1 - self._each(images).abs() * self.contrast)
        if self.background:
            images = images + (1 - images) * _paper(images, self._each(images).clamp(min=0) * self.background)
        return images

    @staticmethod
    def _each(images: Tensor) -> Tensor:  # (B, 1, 1, 1) in [-1, 1]
        return torch.rand(len(images), 1, 1, 1, device=images.device) * 2 - 1

    def _moved(self, images: Tensor) -> Tensor:
        count, size = len(images), images.shape[-1]
        u = torch.rand(4, count, device=images.device) * 2 - 1
        angle = u[0] * math.radians(self.rotate)
        zoom = 1 / (1 + u[1] * self.scale)  # the grid says where each pixel comes from, hence the inverse
        offsets = u[2:] * self.shift * 2 / size  # (2, B); the grid spans -1 to 1
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        theta = torch.stack((cos, -sin, offsets[0], sin, cos, offsets[1]), dim=1).view(count, 2, 3)
        if self.shear:
            slant = self._each(images).view(count, 1) * self.shear
            theta[:, 0] += slant * theta[:, 1]
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        if self.elastic:
            moves = torch.rand(count, 2, BENDS, BENDS, device=images.device) * 2 - 1
            moves = F.interpolate(moves, size=(size, size), mode="bilinear", align_corners=True)
            grid = grid + moves.permute(0, 2, 3, 1) * (self.elastic * 2 / size)
        return F.grid_sample(images, grid, align_corners=False)


def _thickened(images: Tensor, amounts: Tensor) -> Tensor:  # amounts: (B, 1, 1, 1) in [-1, 1]
    """Part of the way to the highest, or to the lowest, value around each pixel."""
    wider = torch.where(amounts > 0, images, 1 - images)  # where strokes shrink, the paper grows
    wider = torch.lerp(wider, F.max_pool2d(wider, 3, stride=1, padding=1), amounts.abs())
    return torch.where(amounts > 0, wider, 1 - wider)


def _beyond_gap(images: Tensor, widths: Tensor) -> Tensor:  # widths: (B, 1, 1, 1) in pixels -> (B, 1, 28, 28)
    """0 on a line across the image, 1 elsewhere; where the width is not positive, 1 everywhere."""
    x, y = _axes(images)
    angle = torch.rand(len(images), 1, 1, 1, device=images.device) * math.pi
    place = (torch.rand(len(images), 1, 1, 1, device=images.device) * 2 - 1) * 8  # within the box of the ink
    distance = (x * angle.cos() + y * angle.sin() - place).abs()
    return torch.where(widths > 0, (distance - widths / 2 + 0.5).clamp(0, 1), 1.0)


def _smoothed(images: Tensor) -> Tensor:
    kernel = torch.tensor([1.0, 2.0, 1.0], device=images.device) / 4
    return F.conv2d(images, kernel.outer(kernel)[None, None], padding=1)


def _paper(images: Tensor, brightness: Tensor) -> Tensor:  # brightness: (B, 1, 1, 1) in [0, 1] -> (B, 1, 28, 28)
    """A slope in any direction, and grain."""
    x, y = _axes(images)
    angle = torch.rand(len(images), 1, 1, 1, device=images.device) * 2 * math.pi
    slope = 0.5 + (x * angle.cos() + y * angle.sin()) / (2 * images.shape[-1])
    return brightness * slope * torch.rand_like(images)


def _axes(images: Tensor) -> tuple[Tensor, Tensor]:  # (28,), (28, 1): pixels from the centre
    steps = torch.arange(images.shape[-1], device=images.device) - (images.shape[-1] - 1) / 2
    return steps, steps[:, None]
