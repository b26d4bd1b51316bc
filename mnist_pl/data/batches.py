"""Tensors in memory -> whole batches: what the data module hands to a Trainer as its loaders."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler

from mnist_pl.data.files import Split

Batch = tuple[Tensor, Tensor]  # images (B, 1, 28, 28) float in [0, 1], labels (B,)


class EpochSampler(Sampler[int]):
    """Another order every epoch, by (seed, epoch) alone."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it before each epoch."""
        self.epoch = epoch

    def order(self) -> Tensor:  # (count,)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.count, generator=generator)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def __len__(self) -> int:
        return self.count


class Batches:
    """Whole batches by indexing; shuffled when `seed` is given, augmented when `augment` is.

    It has a DataLoader's `sampler`, and the `state_dict` of a loader that can be resumed within an epoch, but is none:
    that would cost another 15 µs a batch, 2 % of an epoch of a small network, and Lightning would ask for workers.

    Of several processes each takes every `world_size`-th image of the order: together they see each image once, and in
    the same batches as one process with the joint batch size. All take as many batches. The last of these are of sizes
    that differ by one at the most; where there are fewer images than processes left for it, they join the one before.
    `rank` and `world_size` are PyTorch's where they are not given, of the moment: a loader may be older than they.
    """

    batch_sampler = None  # Lightning asks whoever has a `sampler`

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.images, self.labels = split
        self.batch_size, self.augment, self._rank, self._world_size = batch_size, augment, rank, world_size
        count = len(self.labels)
        self.sampler: Any = SequentialSampler(self.labels) if seed is None else EpochSampler(count, seed)
        self.done = self.skip = 0  # of the share, in this epoch: handed out; handed out before a resume
        self.weight = 1.0  # of the newest batch's mean in the mean over the processes, so that each image counts alike

    @property
    def rank(self) -> int:
        return rank_and_world_size()[0] if self._rank is None else self._rank

    @property
    def world_size(self) -> int:
        return rank_and_world_size()[1] if self._world_size is None else self._world_size

    @property
    def least(self) -> int:
        """Images of any process; in an evaluation, some may have none."""
        return len(self.labels) // self.world_size or int(self.rank < len(self.labels))

    def to(self, device: torch.device) -> None:
        """Keeps the images there, so that no batch has to be moved."""
        self.images, self.labels = self.images.to(device), self.labels.to(device)

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lightning calls it when it resumes in the middle of an epoch."""
        self.skip = state["done"] if state["done"] < self.least else 0

    @property
    def seen(self) -> int:
        """Images that all processes together have handed out in this epoch, as each of them knows it."""
        return len(self.labels) if self.done >= self.least else self.done * self.world_size

    def __len__(self) -> int:
        return -(-self.least // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        shuffled = isinstance(self.sampler, EpochSampler)
        order = self.sampler.order() if shuffled else torch.arange(len(self.labels))
        rank, world_size, least = self.rank, self.world_size, self.least
        order = order[rank::world_size].to(self.labels.device)
        before = self.done, self.weight
        done, self.skip = self.skip, 0  # `done` is this iterator's: whoever looks at a batch has one of their own
        try:
            while done < least:
                is_last = done + self.batch_size >= least
                chosen = order[done:] if is_last else order[done : done + self.batch_size]
                left = len(self.labels) - done * world_size  # of all processes
                done += len(chosen)
                self.done, self.weight = done, len(chosen) * world_size / left if is_last else 1.0
                images = to_float(self.images[chosen])
                yield images if self.augment is None else self.augment(images), self.labels[chosen]
        except GeneratorExit:  # somebody only looked: an epoch under way is where it was
            if self.done == done:
                self.done, self.weight = before
            raise


def rank_and_world_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def to_float(images: Tensor) -> Tensor:  # (B, 28, 28) uint8 -> (B, 1, 28, 28) float in [0, 1]
    return images.unsqueeze(1).float().div_(255)
