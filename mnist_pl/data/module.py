"""The LightningDataModule: verified files -> images in memory -> whole batches."""

import logging
import re
from collections.abc import Callable
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import LightningDataModule

from mnist_pl.data.batches import Batches, rank_and_world_size
from mnist_pl.data.digits import embedded_digits
from mnist_pl.data.files import SOURCES, Split, fetch, locate, read
from mnist_pl.data.nondigits import nondigits as make_nondigits
from mnist_pl.data.strokes import drawn_digits as draw_digits

log = logging.getLogger(__name__)

DIGITS = "digits"
# Data sets that need no download, by name: a function that returns training and test images.
EMBEDDED: dict[str, Callable[[], tuple[Split, Split]]] = {DIGITS: embedded_digits}
AUGMENT = "mnist_pl.data.augment.Augment"
SPLIT_SEED = 0  # the validation split is the same for every run
EVALUATION_BATCH = 250  # images; small enough for the activations to stay in a processor's cache
MOST_MADE = 1_000_000  # images, of some 0.8 kB and 0.2 ms each
NO_DIGIT = -1  # the label of an image that shows none
FEWEST_BATCHES = 10  # of an evaluation, so that limit_val_batches=0.1 leaves one


class MNISTDataModule(LightningDataModule):
    """MNIST or a data set of its form, in memory. A batch is images (B, 1, 28, 28) in [0, 1] and labels (B,).

    Args:
        dataset: one of SOURCES or EMBEDDED.
        data_dir: holds torchvision's `MNIST/raw` folder, and may be read-only when the files are there. None: what
            MNIST_ROOT names, or `data`.
        val_size: training images held out for validation; the test images are never among them. None: a twelfth, which
            is 5,000 of MNIST's 60,000.
        validate_on_test: score the test images after every epoch, as published scripts do. Nothing may be chosen by it.
        fallback: `digits`, to train on the embedded digits when the files are not to be had; None to fail instead.
        augment: arguments of `Augment`, or of another `_target_`, for training images only.
        drawn_digits: images added to the training images, of digits in forms that MNIST hardly has (strokes.py).
        nondigits: images added to them that show no digit (nondigits.py), labelled -1, for a network whose loss takes
            that label, such as RefusingCNN. Neither changes what is held out, nor depends on `seed`.
        seed: of the order of the training images.
        mirrors: addresses that have the four .gz files, tried in turn; None for torchvision's, [] to download nothing.

    Raises:
        ValueError: a setting is out of range; the message names it.
        OSError: in `prepare_data` and `setup`, the files are neither there nor to be had, or damaged.
    """

    def __init__(
        self,
        dataset: str = "mnist",
        data_dir: str | None = None,
        batch_size: int = 64,
        val_size: int | None = None,
        validate_on_test: bool = False,
        fallback: str | None = None,
        augment: dict[str, Any] | None = None,
        seed: int = 1,
        mirrors: list[str] | None = None,
        drawn_digits: int = 0,
        nondigits: int = 0,
    ) -> None:
        super().__init__()
        known = [*SOURCES, *EMBEDDED]
        if dataset not in known:
            raise ValueError(f"data.dataset must be one of {', '.join(known)}, got {dataset!r}")
        if fallback not in (None, DIGITS):
            raise ValueError(f"data.fallback must be {DIGITS} or null, got {fallback!r}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"data.batch_size must be a positive whole number, got {batch_size!r}")
        count = 1497 if dataset == DIGITS else 60_000
        if val_size is not None and not (isinstance(val_size, int) and 0 <= val_size < count):
            raise ValueError(
                f"data.val_size must be a whole number from 0 to {count - 1}, to leave something of the {count:,} "
                f"training images, or null for a twelfth of them, got {val_size!r}"
            )
        listed = mirrors is None or isinstance(mirrors, list)
        if not listed or not all(isinstance(url, str) and re.fullmatch(r"\S+://\S+", url) for url in mirrors or []):
            raise ValueError(
                f"data.mirrors must be a list of addresses, as [https://my.server/mnist/], or null, got {mirrors!r}"
            )
        for name, made in {"drawn_digits": drawn_digits, "nondigits": nondigits}.items():
            if not isinstance(made, int) or not 0 <= made <= MOST_MADE:
                raise ValueError(f"data.{name} must be a whole number from 0 to {MOST_MADE:,}, got {made!r}")
        if drawn_digits and dataset in SOURCES and dataset != "mnist":
            raise ValueError(
                f"data.drawn_digits={drawn_digits}: are digits, and data.dataset={dataset} has none; say 0"
            )
        self.save_hyperparameters()
        self.augment = instantiate({"_target_": AUGMENT, **augment}) if augment else None
        self.fell_back = False  # to the embedded digits
        self.splits: dict[str, Split] = {}  # "train", "val", "test"
        self.made: list[Split] = []  # what is added to "train" in training

    @property
    def dataset(self) -> str:
        """What is trained on: `digits` after a fallback."""
        return self.hparams["dataset"]

    def prepare_data(self) -> None:
        if self.dataset in EMBEDDED:
            return
        try:
            fetch(self.dataset, self.hparams["data_dir"], self.hparams["mirrors"])
        except FileNotFoundError as error:  # but not where they are damaged: that is to be known
            if self.hparams["fallback"] is None:
                raise
            log.warning("WARNING: training on scikit-learn's 1,797 embedded digits instead: %s", error)

    def setup(self, stage: str | None = None) -> None:
        """For the `stage`; None: for all. Raises ValueError where the data set has no more images than `val_size`."""
        if not self.splits:
            self._read_and_split()
        if stage in ("fit", None) and not self.made:
            train, digits, others = self.splits["train"], self.hparams["drawn_digits"], self.hparams["nondigits"]
            self.made += [draw_digits(digits)] if digits else []
            self.made += [(make_nondigits(others, train), torch.full((others,), NO_DIGIT))] if others else []

    def _read_and_split(self) -> None:
        train, test = self._read()
        val_size, count = self.hparams["val_size"], len(train[1])
        if val_size is None:
            val_size = round(count / 12)
        elif val_size >= count and self.fell_back:  # the same share of the smaller set
            self.hparams["val_size"] = val_size = round(count * val_size / 60_000)
        if val_size >= count:
            raise ValueError(
                f"data.val_size={val_size}: {self.dataset} has {count:,} training images; hold out fewer, or say null "
                "for a twelfth of them"
            )
        kept, held_out = _hold_out(train, val_size)
        self.splits = {"train": kept, "val": test if self.hparams["validate_on_test"] else held_out, "test": test}

    def _read(self) -> tuple[Split, Split]:
        if self.dataset not in EMBEDDED:
            folder, problem = locate(self.dataset, self.hparams["data_dir"])
            if problem is None:
                return read(self.dataset, folder)
            if self.hparams["fallback"] is None or not isinstance(problem, FileNotFoundError):
                raise problem
            self.hparams["dataset"], self.fell_back = DIGITS, True
        train, test = EMBEDDED[self.dataset]()
        return (train[0].clone(), train[1].clone()), test  # the function may hand out the same tensors again

    @property
    def selects(self) -> bool:
        """Whether there are validation images that a choice may rest on."""
        return self.hparams["val_size"] != 0 and not self.hparams["validate_on_test"]

    def train_dataloader(self) -> Batches:
        self.setup("fit")  # a Trainer has called it; who has none may not have
        overfit = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        seed = None if overfit else self.hparams["seed"]
        _, world_size = rank_and_world_size()
        if len(self.splits["train"][1]) < world_size:
            raise ValueError(f"{len(self.splits['train'][1])} training images are too few for {world_size} processes")
        images, labels = (torch.cat(parts) for parts in zip(self.splits["train"], *self.made, strict=True))
        return Batches((images, labels), self.hparams["batch_size"], seed, self.augment)

    def val_dataloader(self) -> Batches | list[Batches]:
        self.setup("validate")
        return self._evaluation("val") if len(self.splits["val"][1]) else []

    def test_dataloader(self) -> Batches:
        self.setup("test")
        return self._evaluation("test")

    def predict_dataloader(self) -> Batches:
        return self.test_dataloader()

    def _evaluation(self, name: str) -> Batches:
        _, world_size = rank_and_world_size()
        share = len(self.splits[name][1]) // world_size
        size = max(1, min(EVALUATION_BATCH, share // FEWEST_BATCHES))
        return Batches(self.splits[name], size)


def _hold_out(split: Split, count: int) -> tuple[Split, Split]:
    """What is kept, and `count` random ones, as views of `split`: in it, the random ones change places with the last. A
    copy of the kept ones would take as long as reading the files, and as much memory."""
    images, labels = split
    border = len(labels) - count
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))[:count]
    is_chosen = torch.zeros(len(labels), dtype=torch.bool)
    is_chosen[chosen] = True
    leaving, staying = is_chosen[:border].nonzero()[:, 0], (~is_chosen[border:]).nonzero()[:, 0] + border
    for part in split:
        part[torch.cat([leaving, staying])] = part[torch.cat([staying, leaving])]
    return (images[:border], labels[:border]), (images[border:], labels[border:])
