"""Splits, batches, augmentation."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import MNIST_ROOT, needs_mnist

from mnist_pl import files
from mnist_pl.augment import Augment
from mnist_pl.data import Batches, MNISTDataModule


def numbered(count: int) -> files.Split:
    """Images and labels that say which they are."""
    labels = torch.arange(count)
    return labels.to(torch.uint8).view(-1, 1, 1).expand(-1, 28, 28), labels


def seen(batches: Batches) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist()


def test_every_image_is_seen_once_and_stays_with_its_label() -> None:
    batches = Batches(numbered(103), 10, seed=1)
    assert len(batches) == len(list(batches)) == 11
    assert sorted(seen(batches)) == list(range(103)) != seen(batches)
    assert all(torch.equal(images[:, 0, 0].long(), labels) for images, labels in batches)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    orders = {}
    for seed in (1, 2):
        for epoch in (0, 1):
            batches = Batches(numbered(50), 7, seed=seed)
            batches.set_epoch(epoch)
            orders[seed, epoch] = seen(batches)
            assert orders[seed, epoch] == seen(batches)
    assert len({tuple(order) for order in orders.values()}) == 4
    assert seen(Batches(numbered(50), 7)) == list(range(50))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_images(world_size: int) -> None:
    def shares(seed: int | None) -> list[list[int]]:
        return [seen(Batches(numbered(100), 8, seed, rank, world_size)) for rank in range(world_size)]

    exact, equal = shares(None), shares(1)
    assert sorted(sum(exact, [])) == list(range(100))
    assert {len(share) for share in equal} == {100 // world_size}
    assert len(set(sum(equal, []))) == 100 // world_size * world_size


def test_the_embedded_digits_are_split_without_overlap() -> None:
    module = MNISTDataModule("digits", val_size=200)
    module.setup("fit")
    rows = {name: {image.numpy().tobytes() for image in images} for name, (images, _) in module.splits.items()}
    assert {name: len(labels) for name, (_, labels) in module.splits.items()} == {
        "train": 1297,
        "val": 200,
        "test": 300,
    }
    assert not rows["train"] & rows["val"] and not rows["train"] & rows["test"] and not rows["val"] & rows["test"]
    images = module.splits["train"][0]
    assert images.dtype == torch.uint8 and images.max() == 255


@needs_mnist
def test_mnist_is_split_the_same_for_every_seed_and_without_overlap() -> None:
    modules = [MNISTDataModule("mnist", MNIST_ROOT, seed=seed) for seed in (1, 2)]
    for module in modules:
        module.prepare_data()
        module.setup("fit")
    sizes = {name: len(labels) for name, (_, labels) in modules[0].splits.items()}
    assert sizes == {"train": 55_000, "val": 5_000, "test": 10_000}
    assert all(torch.equal(modules[0].splits[name][0], modules[1].splits[name][0]) for name in sizes)
    everything = files.read("mnist", files.raw_folder("mnist", MNIST_ROOT))
    assert all(torch.equal(*pair) for pair in zip(modules[0].splits["test"], everything[1], strict=True))
    # The same images, each once: MNIST itself holds no two equal training images.
    whole = torch.cat([modules[0].splits["train"][0], modules[0].splits["val"][0]]).flatten(1).numpy()
    assert len(np.unique(whole, axis=0)) == len(np.unique(everything[0][0].flatten(1).numpy(), axis=0)) == 60_000


@pytest.mark.parametrize(
    "mirrors", ["https://my.server", [""], [3], ["my.server/mnist"], ["https://a\n"], {"https://a": 1}]
)
def test_mirrors_are_a_list_of_addresses(mirrors: Any) -> None:
    with pytest.raises(ValueError, match=r"^data\.mirrors must be a list of addresses, .*, got .*$"):
        MNISTDataModule(mirrors=mirrors)


def test_augmentation_moves_each_image_by_its_own_amount() -> None:
    torch.manual_seed(0)
    images = torch.zeros(64, 1, 28, 28)
    images[:, :, 12:16, 12:16] = 1
    moved = Augment(shift=3)(images)
    assert moved.shape == images.shape and moved.min() >= 0 and moved.max() <= 1
    columns = torch.arange(28.0)
    centres = (moved.sum(2)[:, 0] * columns).sum(1) / moved.sum((1, 2, 3))
    assert centres.std() > 1 and (centres - 13.5).abs().max() <= 3.01
    assert torch.allclose(Augment()(images), images, atol=1e-5)
    turned = Augment(rotate=180)(images[:, :, :, :].roll(6, 2))
    assert (turned.sum((1, 2, 3)) - 16).abs().max() < 1
