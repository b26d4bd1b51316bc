"""What is learnt: LightningModules for images of digits, which any Trainer, loader and callback can use."""

from mnist_pl.models.classifier import DigitClassifier
from mnist_pl.models.ensemble import Ensemble
from mnist_pl.models.metrics import CLASSES
from mnist_pl.models.networks import CNN, MLP, RefusingCNN
from mnist_pl.models.pairs import ReadingCNN

__all__ = ["CLASSES", "CNN", "MLP", "DigitClassifier", "Ensemble", "ReadingCNN", "RefusingCNN"]
