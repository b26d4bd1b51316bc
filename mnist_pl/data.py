"""Files on disk, verified -> tensors in memory -> whole batches. `python -m mnist_pl.data` downloads and verifies."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from lightning import LightningDataModule
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from torch import Tensor
from torch.utils.data import SequentialSampler

from mnist_pl.files import SOURCES, Split, fetch, locate, read

log = logging.getLogger(__name__)

AUGMENT = "mnist_pl.augment.Augment"
DIGITS = "digits"  # scikit-learn's 1,797 scanned digits, part of its package
SPLIT_SEED = 0  # the validation split is the same for every run
AT_ONCE = 1024  # training images handed to Lightning at a time, where nothing acts on single batches
EVALUATION_BATCH = 250  # small enough for the activations to stay in a processor's cache


class Batches:
    """Whole batches by indexing; shuffled when `seed` is given, by (seed, epoch) alone.

    In training each of `world_size` processes takes an equal share, so up to `world_size - 1` images sit an epoch out
    (a different few each time); in evaluation every image is seen by exactly one process.
    """

    batch_sampler = None  # Lightning asks whoever has a `sampler`

    def __init__(
        self, split: Split, batch_size: int, seed: int | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.images, self.labels = split
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.epoch = 0
        self.done = self.skip = 0  # images of this process in this epoch: handed out; handed out before a resume

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lightning calls it when it resumes in the middle of an epoch."""
        self.skip = state["done"] % self._share()

    def batches_before(self, done: int) -> int | None:
        """How many of this epoch's batches come before the one that `done` images lead to; None at an epoch's end."""
        left = self._share() - done
        return len(self) - -(-left // self.batch_size) if 0 < left < self._share() else None

    @property
    def sampler(self) -> Any:
        """Lightning calls `set_epoch` on it, and looks at it to tell shuffled from sequential."""
        return self if self.seed is not None else SequentialSampler(self.labels)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def _share(self) -> int:
        extra = self.rank < len(self.labels) % self.world_size
        return len(self.labels) // self.world_size + (0 if self.seed is not None else int(extra))

    def __len__(self) -> int:
        return -(-self._share() // self.batch_size)

    def __iter__(self) -> Iterator[Split]:  # (B, 28, 28) uint8, (B,)
        if self.seed is None:
            order = torch.arange(len(self.labels))
        else:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(len(self.labels), generator=generator)
        order = order[self.rank :: self.world_size][: self._share()].to(self.labels.device)
        self.done, self.skip = self.skip, 0
        for chosen in order[self.done :].split(self.batch_size):
            self.done += len(chosen)
            yield self.images[chosen], self.labels[chosen]


class MNISTDataModule(LightningDataModule):
    """MNIST or a data set of its form, in memory, on the training device.

    Args:
        dataset: one of SOURCES or EMBEDDED.
        data_dir: holds torchvision's `MNIST/raw` folder; may be read-only when the files are there.
        val_size: images held out of the 60,000 for validation; the test images are never among them.
        validate_on_test: score the test images after every epoch, as published scripts do. Nothing may be chosen by it.
        fallback: `digits`, to train on the embedded digits when the files are not to be had; None to fail instead.
        augment: arguments of `Augment`, or of another `_target_`, for training images only.
        mirrors: addresses that have the four .gz files, tried in turn; None for torchvision's, [] to download nothing.

    Raises:
        ValueError: a setting is out of range; the message names it.
        OSError: in `prepare_data` and `setup`, the files are neither there nor to be had, or damaged.
    """

    def __init__(
        self,
        dataset: str = "mnist",
        data_dir: str = "data",
        batch_size: int = 64,
        val_size: int = 5000,
        validate_on_test: bool = False,
        fallback: str | None = None,
        augment: dict[str, Any] | None = None,
        seed: int = 1,
        mirrors: list[str] | None = None,
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
        if not isinstance(val_size, int) or not 0 <= val_size < count:
            raise ValueError(
                f"data.val_size must be a whole number from 0 to {count - 1}, to leave something of the {count:,} "
                f"training images, got {val_size!r}"
            )
        listed = mirrors is None or isinstance(mirrors, list)
        if not listed or not all(isinstance(url, str) and re.fullmatch(r"\S+://\S+", url) for url in mirrors or []):
            raise ValueError(
                f"data.mirrors must be a list of addresses, as [https://my.server/mnist/], or null, got {mirrors!r}"
            )
        self.save_hyperparameters()
        self.augment = instantiate({"_target_": AUGMENT, **augment}) if augment else None
        self.splits: dict[str, Split] = {}

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

    def setup(self, stage: str) -> None:
        if not self.splits:
            self._split()
        if self.trainer is not None and not len(self.splits["val"][1]):
            self.trainer.limit_val_batches = 0  # else Lightning warns of an empty loader

    def _split(self) -> None:
        train, test = self._read()
        val_size = self.hparams["val_size"]
        if len(train[1]) <= val_size:  # after a fallback: the same share of a smaller set
            val_size = round(len(train[1]) * val_size / 60_000)
        kept, held_out = _hold_out(train, val_size)
        self.splits = {"train": kept, "val": test if self.hparams["validate_on_test"] else held_out, "test": test}

    def _read(self) -> tuple[Split, Split]:
        if self.dataset not in EMBEDDED:
            folder, problem = locate(self.dataset, self.hparams["data_dir"])
            if problem is None:
                return read(self.dataset, folder)
            if self.hparams["fallback"] is None or not isinstance(problem, FileNotFoundError):
                raise problem
            self.hparams["dataset"] = DIGITS
        return EMBEDDED[self.dataset]()

    @property
    def selects(self) -> bool:
        """Whether there are validation images that a choice may rest on."""
        return self.hparams["val_size"] > 0 and not self.hparams["validate_on_test"]

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.splits["train"][1]) // self.hparams["batch_size"])

    @property
    def batches_at_once(self) -> int:
        """Training batches in one of Lightning's steps, whose loop costs more than a small network's arithmetic.

        One, wherever something acts on each batch or counts them.
        """
        trainer: Any = self.trainer
        whole_epochs = (trainer.limit_train_batches, trainer.val_check_interval) == (1.0, 1.0) and not (
            isinstance(trainer.limit_train_batches, int) or isinstance(trainer.val_check_interval, int)
        )
        alone = (
            whole_epochs
            and trainer.max_steps == -1
            and trainer.world_size == 1
            and trainer.accumulate_grad_batches == 1
            and trainer.gradient_clip_val is None
            and "mixed" not in trainer.precision  # autocast keeps the weights that it has converted for a whole step
            and not any(map(_acts_on_batches, trainer.callbacks))
        )
        return max(1, AT_ONCE // self.hparams["batch_size"]) if alone else 1

    def train_dataloader(self) -> Batches:
        shuffle = self.trainer is None or not self.trainer.overfit_batches  # type: ignore[attr-defined]
        together = 1 if self.trainer is None else self.batches_at_once
        return self._batches("train", self.hparams["batch_size"] * together, self.hparams["seed"] if shuffle else None)

    def val_dataloader(self) -> Batches:
        return self._evaluation("val")

    def test_dataloader(self) -> Batches:
        return self._evaluation("test")

    def predict_dataloader(self) -> Batches:
        return self.test_dataloader()

    def _evaluation(self, name: str) -> Batches:
        """Large batches, but small enough that `limit_val_batches=0.1` leaves one."""
        limit = getattr(self.trainer, f"limit_{name}_batches", None)
        part = limit if isinstance(limit, float) and 0 < limit < 1 else 1.0
        return self._batches(name, max(1, min(EVALUATION_BATCH, int(len(self.splits[name][1]) * part))))

    def _batches(self, name: str, batch_size: int, seed: int | None = None) -> Batches:
        if self.trainer is None:
            return Batches(self.splits[name], batch_size, seed)
        device = self.trainer.strategy.root_device
        images, labels = self.splits[name]
        self.splits[name] = images.to(device), labels.to(device)  # once; a no-op afterwards
        return Batches(self.splits[name], batch_size, seed, self.trainer.global_rank, self.trainer.world_size)

    def on_after_batch_transfer(self, batch: Split, dataloader_idx: int) -> Split | list[Split]:
        """Images become (B, 1, 28, 28) floats in [0, 1]; in training, augmented, and a list of batches."""
        images, labels = batch
        images = to_float(images)
        if self.trainer is None or not self.trainer.training:
            return images, labels
        if self.augment is not None:
            images = self.augment(images)
        size = self.hparams["batch_size"]
        return list(zip(images.split(size), labels.split(size), strict=True))


def _hold_out(split: Split, count: int) -> tuple[Split, Split]:
    """What is kept, and `count` random ones, as views of `split`: in it, the random ones change places with the last.

    A copy of the kept ones would take as long as reading the files, and as much memory.
    """
    images, labels = split
    border = len(labels) - count
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))[:count]
    is_chosen = torch.zeros(len(labels), dtype=torch.bool)
    is_chosen[chosen] = True
    leaving, staying = is_chosen[:border].nonzero()[:, 0], (~is_chosen[border:]).nonzero()[:, 0] + border
    for part in split:
        part[torch.cat([leaving, staying])] = part[torch.cat([staying, leaving])]
    return (images[:border], labels[:border]), (images[border:], labels[border:])


def _acts_on_batches(callback: Callback) -> bool:
    if isinstance(callback, Checkpoint):  # ours, Lightning's
        return any(getattr(callback, name, None) for name in ("every_n_train_steps", "_every_n_train_steps"))
    hooks = {"on_train_batch_start", "on_train_batch_end", "on_before_zero_grad"}
    hooks |= {"on_before_backward", "on_after_backward"}
    own = any(getattr(type(callback), hook) is not getattr(Callback, hook) for hook in hooks)
    return own and not isinstance(callback, ProgressBar)


def to_float(images: Tensor) -> Tensor:  # (B, 28, 28) uint8 -> (B, 1, 28, 28) float in [0, 1]
    return images.unsqueeze(1).float().div_(255)


def embedded_digits() -> tuple[Split, Split]:
    """scikit-learn's 8x8 digits, laid out as MNIST's: 20x20 pixels in 28x28, centred by mass; 1,497 and 300."""
    from sklearn.datasets import load_digits  # a second of import that MNIST does not need

    from mnist_pl.pictures import centre_by_mass

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    images = torch.nn.functional.interpolate(images, size=(20, 20), mode="bicubic", align_corners=False)
    placed = np.stack([centre_by_mass(image) for image in (images[:, 0].clamp(0, 1) * 255).numpy()])
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, train = order.split([300, len(labels) - 300])
    tensor = torch.from_numpy(placed)
    return (tensor[train], labels[train]), (tensor[test], labels[test])


EMBEDDED: dict[str, Callable[[], tuple[Split, Split]]] = {DIGITS: embedded_digits}  # training, test; no download


def main(dataset: str = "mnist") -> None:
    if dataset not in SOURCES:
        sys.exit(f"error: there is no data set {dataset!r} to download; there are {', '.join(SOURCES)}")
    try:
        folder = fetch(dataset, os.environ.get("MNIST_ROOT", "data"))
    except OSError as error:
        sys.exit(f"error: {error}")
    train, test = read(dataset, folder)
    print(f"{dataset}: {len(train[1]):,} training and {len(test[1]):,} test images, verified, in {folder}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    main(*sys.argv[1:2])
