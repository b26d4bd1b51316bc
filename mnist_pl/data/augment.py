"""Whole-batch augmentation: every image of a batch moved by its own amount in one call."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Augment:
    """Random shifts, rotations and scalings, drawn uniformly and independently for each image.

    Args:
        shift: pixels, in each direction.
        rotate: degrees, either way.
        scale: share of the size, either way; 0.1 gives 0.9 to 1.1 of it.
    """

    def __init__(self, shift: float = 0.0, rotate: float = 0.0, scale: float = 0.0) -> None:
        for name, value in {"shift": shift, "rotate": rotate, "scale": scale}.items():
            if not isinstance(value, int | float) or value < 0:
                raise ValueError(f"data.augment.{name} must be a number from 0 up, got {value!r}")
        self.shift, self.rotate, self.scale = shift, rotate, scale

    def __call__(self, images: Tensor) -> Tensor:  # (B, 1, 28, 28) in [0, 1] -> the same
        count = len(images)
        u = torch.rand(4, count, device=images.device) * 2 - 1
        angle = u[0] * math.radians(self.rotate)
        zoom = 1 / (1 + u[1] * self.scale)  # the grid says where each pixel comes from, hence the inverse
        offsets = u[2:] * self.shift * 2 / images.shape[-1]  # (2, B); the grid spans -1 to 1
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        theta = torch.stack((cos, -sin, offsets[0], sin, cos, offsets[1]), dim=1).view(count, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)
