"""Splits, batches, the files and their download."""

import gzip
import hashlib
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MNIST_ROOT, Run, needs_mnist, one_line
from torchvision.datasets import MNIST

from mnist_pl import data
from mnist_pl.augment import Augment
from mnist_pl.data import Batches, MNISTDataModule

NAMES = [name for name, _ in MNIST.resources]


def numbered(count: int) -> data.Split:
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
    everything = data.read("mnist", data.raw_folder("mnist", MNIST_ROOT))
    assert all(torch.equal(*pair) for pair in zip(modules[0].splits["test"], everything[1], strict=True))
    # The same images, each once: MNIST itself holds no two equal training images.
    whole = torch.cat([modules[0].splits["train"][0], modules[0].splits["val"][0]]).flatten(1).numpy()
    assert len(np.unique(whole, axis=0)) == len(np.unique(everything[0][0].flatten(1).numpy(), axis=0)) == 60_000


@needs_mnist
def test_our_reading_is_torchvisions(tmp_path: Path) -> None:
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    folder = data.raw_folder("mnist", MNIST_ROOT)
    for name in NAMES:
        content = gzip.decompress((folder / name).read_bytes())
        (tmp_path / "MNIST" / "raw" / name.removesuffix(".gz")).write_bytes(content)
    (images, labels), (test_images, test_labels) = data.read("mnist", folder)
    train, test = MNIST(tmp_path), MNIST(tmp_path, train=False)
    assert torch.equal(images, train.data) and torch.equal(labels, train.targets)
    assert torch.equal(test_images, test.data) and torch.equal(test_labels, test.targets)
    extracted = data.read("mnist", data.fetch("mnist", tmp_path))  # the files that torchvision users have
    assert torch.equal(extracted[0][0], images)
    assert abs(float(images.float().mean() / 255) - 0.1307) < 1e-4


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[MNIST]]:
    """A data set of MNIST's form, its four files served by a real web server, and in the folder `source`."""
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 256, (60, 28, 28)), random.integers(0, 10, 60)]
    arrays += [random.integers(0, 256, (20, 28, 28)), random.integers(0, 10, 20)]
    source = tmp_path / "source"
    source.mkdir()
    for name, array in zip(NAMES, arrays, strict=True):
        (source / name).write_bytes(idx(array))
    handler = partial(SimpleHTTPRequestHandler, directory=str(source))
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sums = [(name, hashlib.md5((source / name).read_bytes()).hexdigest()) for name in NAMES]
        mirrors = [f"http://127.0.0.1:{server.server_port}/"]
        kind = type("MNIST", (MNIST,), {"resources": sums, "mirrors": mirrors})
        monkeypatch.setitem(data.SOURCES, "mnist", kind)
        yield kind
        server.shutdown()


def test_missing_files_are_downloaded_and_verified(small: type[MNIST], tmp_path: Path) -> None:
    folder = data.fetch("mnist", tmp_path / "data")
    assert all((folder / name).read_bytes() == (tmp_path / "source" / name).read_bytes() for name in NAMES)
    (folder / NAMES[0]).write_bytes(b"<html>not found</html>")
    assert data.fetch("mnist", tmp_path / "data") == folder
    assert (folder / NAMES[0]).read_bytes() == (tmp_path / "source" / NAMES[0]).read_bytes()


def test_wrong_content_is_never_left_under_the_final_name(small: type[MNIST], tmp_path: Path) -> None:
    (tmp_path / "source" / NAMES[1]).write_bytes(b"something else")
    with pytest.raises(FileNotFoundError, match="wrong content"):
        data.fetch("mnist", tmp_path / "data")
    left = {path.name for path in (tmp_path / "data" / "MNIST" / "raw").iterdir()}
    assert left <= {NAMES[0], ".lock"}


def test_a_mirror_that_never_answers_is_not_waited_for(
    small: type[MNIST], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        small.mirrors = [f"http://127.0.0.1:{silent.getsockname()[1]}/", *small.mirrors]
        folder = data.fetch("mnist", tmp_path / "data")
        assert (folder / NAMES[3]).exists(), "the next mirror was tried"
        small.mirrors = small.mirrors[:1] * 2
        with pytest.raises(FileNotFoundError, match="no answer within 0.5 s|timed out"):
            data.fetch("mnist", tmp_path / "other")


@pytest.mark.parametrize("harm", ["truncate", "flip a bit", "empty", "swap", "web page"])
@pytest.mark.parametrize("number", range(4))
def test_a_damaged_file_is_noticed(small: type[MNIST], tmp_path: Path, harm: str, number: int) -> None:
    folder = data.fetch("mnist", tmp_path / "data")
    small.mirrors = ["http://127.0.0.1:1/"]
    victim = folder / NAMES[number]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    harmed = {
        "truncate": bytes(content[: len(content) // 2]),
        "flip a bit": bytes(content),
        "empty": b"",
        "swap": (folder / NAMES[number - 1]).read_bytes(),
        "web page": b"<html>hello</html>",
    }
    victim.write_bytes(harmed[harm])
    module = MNISTDataModule("mnist", str(tmp_path / "data"), fallback="digits")
    with pytest.raises(OSError, match=f"{victim.name} is damaged.*Put the four") as caught:
        module.prepare_data()
    assert "\n" not in str(caught.value)
    assert victim.read_bytes() == harmed[harm]


def test_a_truncated_extracted_file_is_noticed(small: type[MNIST], tmp_path: Path) -> None:
    folder = data.fetch("mnist", tmp_path / "data")
    small.mirrors = []
    content = gzip.decompress((folder / NAMES[0]).read_bytes())
    (folder / NAMES[0]).unlink()
    (folder / NAMES[0]).with_suffix("").write_bytes(content)
    data.fetch("mnist", tmp_path / "data")
    (folder / NAMES[0]).with_suffix("").write_bytes(content[:-1])
    with pytest.raises(OSError, match="not a whole IDX file"):
        data.fetch("mnist", tmp_path / "data")


@needs_mnist
def test_a_damaged_mnist_file_stops_a_run(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).symlink_to(data.raw_folder("mnist", MNIST_ROOT).resolve() / name)
    content = (folder / NAMES[2]).read_bytes()
    (folder / NAMES[2]).unlink()
    (folder / NAMES[2]).write_bytes(content[:-1000])
    line = one_line(run("train.py"))
    assert f"{NAMES[2]} is damaged" in line and "MNIST_ROOT" in line


@pytest.mark.parametrize("words", [["experiment=seed_mlp"], ["data.fallback=null"], ["data=kmnist"]])
def test_without_mnist_and_fallback_a_run_fails(run: Run, words: list[str], tmp_path: Path) -> None:
    line = one_line(run("train.py", *words, limit=30))
    assert "lacks train-images-idx3-ubyte.gz" in line and "not downloaded (http" in line and "MNIST_ROOT" in line
    assert not list(tmp_path.glob("**/checkpoints"))


def test_the_download_command(run: Run) -> None:
    assert "not downloaded" in one_line(run("mnist_pl/data.py", limit=30))
    assert "there is no data set 'cifar'" in one_line(run("mnist_pl/data.py", "cifar"))


@needs_mnist
def test_the_download_command_finds_files_laid_by_hand(run: Run) -> None:
    ended = run("mnist_pl/data.py", MNIST_ROOT=MNIST_ROOT)
    assert ended.code == 0 and "60,000 training and 10,000 test images, verified, in" in ended.out


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
