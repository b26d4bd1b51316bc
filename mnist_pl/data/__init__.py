"""What is learnt from: the files of MNIST and its kin, verified, as whole batches of images in [0, 1]."""

from mnist_pl.data.augment import Augment
from mnist_pl.data.batches import Batches, to_float
from mnist_pl.data.module import EMBEDDED, MNISTDataModule

__all__ = ["EMBEDDED", "Augment", "Batches", "MNISTDataModule", "to_float"]
