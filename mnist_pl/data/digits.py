"""scikit-learn's scanned digits in MNIST's layout: a data set for any machine, without a download."""

import numpy as np
import torch
from numpy.typing import NDArray

from mnist_pl.data.files import Split

SIDE, BOX = 28, 20  # pixels of an image, and of the box that MNIST fits the ink into
CENTRE = 14.0  # row and column of the centre of mass: 14.00 in the mean over the training images
SPLIT_SEED = 0  # which of them are test images


def embedded_digits() -> tuple[Split, Split]:
    """The 8x8 digits enlarged to 20x20 pixels in 28x28, centred by mass: 1,497 training and 300 test images."""
    from sklearn.datasets import load_digits  # a second of import that MNIST does not need

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    images = torch.nn.functional.interpolate(images, size=(BOX, BOX), mode="bicubic", align_corners=False)
    placed = np.stack([centre_by_mass(image) for image in (images[:, 0].clamp(0, 1) * 255).numpy()])
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, train = order.split([300, len(labels) - 300])
    tensor = torch.from_numpy(placed)
    return (tensor[train], labels[train]), (tensor[test], labels[test])


def centre_by_mass(ink: NDArray[np.float32]) -> NDArray[np.uint8]:  # (H, W) of at most 20x20, in [0, 255] -> (28, 28)
    """Places the ink, by whole pixels as MNIST does, so that its centre of mass is at the centre of 28x28."""
    profiles = [ink.sum(axis=axis, dtype=np.float64) for axis in (1, 0)]
    centre = np.array([profile @ np.arange(len(profile)) / profiles[0].sum() for profile in profiles])
    top, left = np.clip(np.round(CENTRE - centre).astype(int), 0, SIDE - np.array(ink.shape))
    placed = np.zeros((SIDE, SIDE), np.uint8)
    placed[top : top + ink.shape[0], left : left + ink.shape[1]] = np.round(ink)
    return placed
