"""Splits, batches, augmentation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MNIST_ROOT, needs_mnist

from mnist_pl.data import EMBEDDED, Augment, Batches, MNISTDataModule, files


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
    assert all(torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels) for images, labels in batches)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    orders = {}
    for seed in (1, 2):
        for epoch in (0, 1):
            batches = Batches(numbered(50), 7, seed=seed)
            batches.sampler.set_epoch(epoch)
            orders[seed, epoch] = seen(batches)
            assert orders[seed, epoch] == seen(batches)
    assert len({tuple(order) for order in orders.values()}) == 4
    assert seen(Batches(numbered(50), 7)) == list(range(50))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_images(world_size: int) -> None:
    def shares(seed: int | None) -> list[list[int]]:
        return [seen(Batches(numbered(100), 8, seed, None, rank, world_size)) for rank in range(world_size)]

    for seed in (None, 1):
        assert sorted(sum(shares(seed), [])) == list(range(100))
        assert {len(share) - 100 // world_size for share in shares(seed)} <= {0, 1}


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
    ours = {image.numpy().tobytes() for name in ("train", "val") for image in modules[0].splits[name][0]}
    assert ours == {image.numpy().tobytes() for image in everything[0][0]} and len(ours) == 60_000


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


def test_a_batch_is_augmented_when_its_turn_comes() -> None:
    """So the random numbers are drawn in one order, however many batches are trained on in a round."""
    drawn = []

    def augment(images: torch.Tensor) -> torch.Tensor:
        drawn.append(len(images))
        return images + 1

    batches = iter(Batches(numbered(20), 8, seed=1, augment=augment))
    assert next(batches)[0].min() >= 1 and drawn == [8]


def test_an_epoch_is_continued_where_it_was_left() -> None:
    whole = seen(Batches(numbered(50), 8, seed=1))
    first, second = Batches(numbered(50), 8, seed=1), Batches(numbered(50), 8, seed=1)
    iterator = iter(first)
    left = [label for _ in range(3) for label in next(iterator)[1].tolist()]
    second.load_state_dict(first.state_dict())
    assert left + seen(second) == whole == seen(second), "and then a whole epoch again"


def test_a_data_set_that_hands_out_the_same_tensors_twice_is_split_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = (numbered(200), numbered(20))
    monkeypatch.setitem(EMBEDDED, "mine", lambda: tensors)
    modules = [MNISTDataModule("mine", val_size=50) for _ in range(2)]
    for module in modules:
        module.setup("fit")
    assert torch.equal(modules[0].splits["val"][1], modules[1].splits["val"][1])
    assert torch.equal(tensors[0][1], torch.arange(200))
    with pytest.raises(ValueError, match=r"data.val_size=200: mine has 200 training images; hold out fewer"):
        MNISTDataModule("mine", val_size=200).setup("fit")


@pytest.mark.parametrize(("val_size", "images"), [(None, 125), (0, 0), (200, 200)])
def test_validation_images(val_size: int | None, images: int) -> None:
    module = MNISTDataModule("digits", val_size=val_size)
    module.setup("fit")
    assert len(module.splits["val"][1]) == images and module.selects is (images > 0)
    assert module.val_dataloader() == [] if images == 0 else len(module.val_dataloader()) >= 10


def test_without_mnist_the_fallback_is_another_data_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = MNISTDataModule(data_dir=str(tmp_path), fallback="digits", mirrors=[])
    module.prepare_data()
    module.setup("fit")
    assert module.dataset == "digits" and len(module.splits["train"][1]) == 1497 - 125
    assert "training on scikit-learn's 1,797 embedded digits instead" in caplog.text
    module = MNISTDataModule(data_dir=str(tmp_path), fallback="digits", mirrors=[], val_size=10_000)
    module.setup("fit")
    assert len(module.splits["val"][1]) == 250 == module.hparams["val_size"], "the same share, and known to a resume"
    with pytest.raises(FileNotFoundError, match="data.mirrors is empty"):
        MNISTDataModule(data_dir=str(tmp_path), mirrors=[]).prepare_data()
