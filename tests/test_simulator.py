"""Pictures that are made: a function of the seed, laid out and named as they say, and as they should be."""

import csv
import io
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import MNIST_ROOT, needs_mnist
from PIL import Image, ImageOps

from mnist_pl.data import simulator
from mnist_pl.data.digits import embedded_digits
from mnist_pl.data.simulator import drawings, strokes

FEW = {"single": 6, "several": 3, "none": 10}
FEWER = {"single": 2, "several": 1, "none": 2}


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    _, (images, labels) = embedded_digits()
    return images.numpy(), labels.numpy()


@pytest.fixture(scope="module")
def made(digits: tuple[np.ndarray, np.ndarray]) -> list[simulator.Made]:
    return list(simulator.simulate(*digits, counts=FEW))


def test_pictures_are_a_function_of_the_seed_their_kind_and_number(
    digits: tuple[np.ndarray, np.ndarray], made: list[simulator.Made]
) -> None:
    contents = {one.file: one.content for one in made}
    fewer = list(simulator.simulate(*digits, counts=FEWER))
    assert len(fewer) == 5 and all(contents[one.file] == one.content for one in fewer)
    other = simulator.simulate(*digits, seed=2, counts=FEWER)
    assert not {one.content for one in other} & set(contents.values())


def test_no_image_is_used_twice(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Its place stands in for its label."""
    places = [
        one.label for one in simulator.simulate(digits[0], np.arange(300), counts=FEW | {"several": 0, "none": 0})
    ]
    assert len(set(places)) == len(places) == FEW["single"]
    assert simulator.DIGITS_OF["several"] >= simulator.COUNTS["single"]


def test_names_and_the_table_say_what_is_in_the_pictures(
    digits: tuple[np.ndarray, np.ndarray], made: list[simulator.Made], tmp_path: Path
) -> None:
    simulator.build(tmp_path / "set", *digits, counts=FEWER)
    assert not list(tmp_path.glob(".*.part"))
    with open(tmp_path / "set" / "pictures.csv") as file:
        rows = list(csv.DictReader(file))
    files = [row["file"] for row in rows]
    expected = [one for one in made if one.file in files]
    assert files == [one.file for one in expected] and len(files) == 5
    assert {path.relative_to(tmp_path / "set").as_posix() for path in (tmp_path / "set").glob("*/*")} == {
        row["file"] for row in rows
    }
    for row, one in zip(rows, expected, strict=True):
        kind, label = re.fullmatch(r"(single|several|none)/([\d-]+|none)_\d{4}\.(?:png|jpg)", row["file"]).groups()
        assert row["label"] == ("" if kind == "none" else label.replace("-", "/"))
        if kind == "several":
            assert 1 <= len(row["label"].split("/")) <= 3
            assert all(2 <= len(line) <= 8 for line in row["label"].split("/"))
        assert (tmp_path / "set" / row["file"]).read_bytes() == one.content
        assert (row["wide"], row["high"]) == tuple(map(str, one.look.pixels))


def test_pictures_are_of_the_sizes_that_are_said_and_show_something(made: list[simulator.Made]) -> None:
    for one in made:
        with Image.open(io.BytesIO(one.content)) as picture:
            assert picture.format == ("PNG" if one.file.endswith("png") else "JPEG")
            seen = ImageOps.exif_transpose(picture)
        assert seen.size == one.look.pixels and 28 <= max(seen.size) <= 3200
        assert one.look.unit >= 16
        if one.what not in ("blank", "texture"):
            assert np.ptp(np.asarray(seen.convert("RGBA")).astype(int), axis=(0, 1)).max() > 30


def test_a_set_is_made_anew_only_where_it_is_another(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    folder, counts = tmp_path / "set", {"single": 1, "several": 0, "none": 0}
    simulator.build(folder, *digits, counts=counts)
    (picture,) = folder.glob("single/*")
    before = picture.stat().st_mtime_ns
    simulator.build(folder, *digits, counts=counts)
    assert picture.stat().st_mtime_ns == before and simulator.is_built(folder, counts=counts)
    assert not simulator.is_built(folder, seed=2, counts=counts)
    simulator.build(folder, *digits, seed=2, counts=counts)
    assert simulator.is_built(folder, seed=2, counts=counts) and len(list(folder.glob("single/*"))) == 1
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").touch()
    with pytest.raises(ValueError, match="own: holds something else"):
        simulator.build(own, *digits, counts=counts)
    assert [path.name for path in own.iterdir()] == ["thesis.txt"]


def form(mask: np.ndarray) -> tuple[int, int]:
    """Parts and holes."""
    parts, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    holes, _ = cv2.connectedComponents(1 - np.pad(mask, 1).astype(np.uint8), connectivity=4)
    return parts - 1, holes - 2


def ring() -> np.ndarray:
    """An image of a 0 in MNIST's form."""
    image = np.zeros((28, 28), np.uint8)
    cv2.ellipse(image, (14, 14), (7, 9), 0, 0, 360, 255, 2, cv2.LINE_AA)
    return image


@pytest.mark.parametrize("width", [0.04, 0.08, 0.12, 0.2])
def test_a_pen_is_as_wide_as_it_is_said_and_leaves_the_form(width: float) -> None:
    field = strokes.digit(ring(), width, np.random.default_rng(1))
    inside = cv2.distanceTransform((field > 0).astype(np.uint8), cv2.DIST_L2, 5)
    bones = strokes.thin((field > 0).astype(np.uint8)) > 0
    measured = (2 * np.median(inside[bones]) - 1) / strokes.UNIT  # from a pixel's middle to that of the first outside
    assert measured == pytest.approx(width, abs=0.012)
    assert form(field > 0) == (1, 1)


def test_a_broad_pen_does_not_fill_a_small_loop() -> None:
    small = np.zeros((28, 28), np.uint8)
    cv2.ellipse(small, (14, 8), (3, 4), 0, 0, 360, 255, 1, cv2.LINE_AA)
    cv2.line(small, (17, 9), (13, 24), 255, 1, cv2.LINE_AA)
    assert form(strokes.digit(small, 0.21, np.random.default_rng(1)) > 0) == (1, 1)


def test_what_stood_beside_a_digit_is_left_out_and_a_loose_bar_is_not() -> None:
    image = ring()
    image[12:15, 24:26] = 255  # beside it
    assert form(strokes.digit(image, 0.1, np.random.default_rng(1)) > 0) == (1, 1)
    image = np.zeros((28, 28), np.uint8)
    cv2.ellipse(image, (14, 18), (6, 6), 0, 0, 360, 255, 2, cv2.LINE_AA)
    image[3:6, 12:22] = 255  # over it
    assert form(strokes.digit(image, 0.1, np.random.default_rng(1)) > 0) == (2, 1)


def test_what_is_no_digit_is_drawn(made: list[simulator.Made]) -> None:
    rng = np.random.default_rng(1)
    for kind in drawings.KINDS.values():
        for _ in range(20):
            assert (strokes.drawn(kind(rng), 0.05, rng) > 0).sum() > strokes.UNIT
    assert not set(drawings.LETTERS) & set("BDGIJLOPQSYZabdegijlopqstuyz")
    for word in (*drawings.LETTERS, *drawings.WORDS):
        assert (strokes.written(word, 0.05, rng) > 0).any()
    assert len({one.what for one in made if not one.label}) > 3


@needs_mnist
def test_the_set_is_of_mnists_test_images_alone() -> None:
    from mnist_pl.data.files import locate, read
    from mnist_pl.evaluate import test_digits as given

    folder, _ = locate("mnist", MNIST_ROOT)
    _, (images, labels) = read("mnist", folder)
    found = given(MNIST_ROOT, needed=True)
    assert found is not None and (found[0] == images.numpy()).all() and (found[1] == labels.numpy()).all()
    assert set(simulator.shuffled(1, 10_000)) == set(range(10_000)) - set(simulator.UNREADABLE)
    assert set(simulator.shuffled(1, 300)) == set(range(300))
