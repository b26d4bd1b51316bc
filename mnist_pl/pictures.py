"""A person's picture -> the 28x28 that the networks were trained on.

MNIST's own preparation (LeCun, Bottou, Bengio and Haffner 1998, and the data set's page): the ink fitted into 20x20
keeping its aspect, anti-aliased, then placed in 28x28 so that its centre of mass is at the centre. Before that come
what a scanner of forms did not need: polarity, paper that is not white, and pens much thinner or thicker than theirs.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

SIDE, BOX = 28, 20
CENTRE = 14.0  # row and column of the centre of mass: 14.00 in the mean over the training images
WORKING = 160  # pixels of the ink's longer side while its strokes are looked at
STROKE = (0.10, 0.16)  # stroke width over the ink's longer side: 20th and 80th percentile of the training images
SUFFIXES = (".png", ".jpg", ".jpeg")

Gray = NDArray[np.uint8]
Ink = NDArray[np.float32]


def find_pictures(path: str | os.PathLike[str]) -> list[Path]:
    """The PNG and JPEG files of a folder and those below it, in order; or the one file named.

    Raises:
        ValueError: there are none.
    """
    start = Path(path)
    if not start.is_dir():
        if not start.exists():
            raise ValueError(f"input={path}: there is no such file or folder")
        return [start]
    found = sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(start)
        for name in names
        if name.lower().endswith(SUFFIXES)
    )
    if not found:
        raise ValueError(f"input={path}: the folder holds no picture; PNG and JPEG files are read")
    return [Path(name) for name in found]


def read_pictures(paths: Sequence[str | os.PathLike[str]]) -> tuple[Gray, list[str], list[str]]:
    """-> (N, 28, 28), light ink on 0, of the pictures that can be read; their paths; a line for each of the others."""
    whole: list[Gray] = []
    names, errors = [], []
    for path in paths:
        try:
            gray = _load(path)
            # MNIST's own size is looked at for many at a time: ten thousand such digits are no rare folder.
            whole.append(gray if gray.shape == (SIDE, SIDE) else prepare(gray))
            names.append(os.fspath(path))
        except ValueError as error:
            errors.append(f"{os.fspath(path)}: {error}")
    images = np.stack(whole) if whole else np.empty((0, SIDE, SIDE), np.uint8)
    bad = set()
    for index in np.flatnonzero(~_is_prepared(images)):
        try:
            images[index] = prepare(images[index])
        except ValueError as error:
            errors.append(f"{names[index]}: {error}")
            bad.add(index)
    kept = [index for index in range(len(names)) if index not in bad]
    return images[kept], [names[index] for index in kept], errors


def _load(path: str | os.PathLike[str]) -> Gray:
    """(H, W). Raises ValueError where the file is not a readable picture."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            picture.draft("L", (2 * WORKING, 2 * WORKING))  # lets the JPEG decoder skip what would be thrown away
            return _gray(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not a PNG or JPEG picture" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(reason) from None


def _gray(picture: Image.Image) -> Gray:
    """(H, W) luminance, turned as the camera was held; transparent parts become paper in contrast to the ink."""
    if picture.mode.startswith("I"):  # 16 bits a pixel; convert("L") would clip it
        return (np.asarray(picture, dtype=np.float32) / 257).clip(0, 255).astype(np.uint8)
    if picture.format == "JPEG" or "exif" in picture.info:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode == "L" and "transparency" not in picture.info:
        return np.asarray(picture)
    gray, alpha = picture.convert("RGBA").convert("LA").split()
    luminance, opacity = np.asarray(gray, dtype=np.float32), np.asarray(alpha, dtype=np.float32) / 255
    weight = opacity.sum()
    paper = 255.0 if weight == 0 or (luminance * opacity).sum() / weight < 128 else 0.0
    if opacity.min() == 1:
        return np.asarray(gray)
    return (luminance * opacity + paper * (1 - opacity)).astype(np.uint8)


def prepare(gray: Gray) -> Gray:  # (H, W) -> (28, 28), light ink on 0
    """Raises ValueError where the picture shows nothing."""
    ink = _stretch(_resize(_crop(_ink(gray)), WORKING))
    ink = _crop(_mend_strokes(ink), floor=0.05)
    return centre_by_mass(_stretch(_resize(ink, BOX)) * 255)


def _is_prepared(images: Gray) -> NDArray[np.bool_]:  # (N, 28, 28) -> (N,)
    """Which are in MNIST's form already: ink in a box of 20x20 on plain 0, its centre of mass at the centre."""
    sides, centres = [], []
    for axis in (1, 2):  # the profile over the columns, then over the rows
        profile = images.sum(axis=axis, dtype=np.int64)  # (N, 28)
        inked = profile > 0
        sides.append(SIDE - inked.argmax(axis=1) - inked[:, ::-1].argmax(axis=1))
        centres.append(profile @ np.arange(SIDE) / np.maximum(profile.sum(axis=1), 1))
    side = np.maximum(*sides)
    return (side >= BOX - 1) & (side <= BOX) & (np.abs(np.stack(centres) - CENTRE).max(axis=0) <= 1)


def _ink(gray: Gray) -> Ink:  # -> (H, W) in [0, 1]: how far each pixel is from the paper, on the ink's side of it
    frame = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    paper = float(np.median(frame))
    away = gray.astype(np.float32) - paper
    ink = np.maximum(-away, 0) if -away.min() > away.max() else np.maximum(away, 0)
    if ink.max() < 16:  # of 255: a photograph of blank paper varies by as much
        raise ValueError("shows no ink")
    ink /= ink.max()
    # What is fainter than a third of the step between paper and ink is shadow, grain or JPEG noise.
    floor = _otsu(ink) / 3
    return np.clip((ink - floor) / (1 - floor), 0, 1)


def _otsu(ink: Ink) -> float:
    """The threshold that splits the values into two groups of least variance (Otsu 1979)."""
    counts, edges = np.histogram(ink, bins=64, range=(0, 1))
    middles = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts), counts.sum()
    above = total - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(middles[np.nanargmax(between)])


def _crop(ink: Ink, floor: float = 0.25) -> Ink:
    """To the box of what is darker than `floor`; specks of under a thousandth of the ink do not count."""
    dark = ink > floor
    speck = dark.sum() / 1000
    rows, columns = np.flatnonzero(dark.sum(axis=1) > speck), np.flatnonzero(dark.sum(axis=0) > speck)
    if len(rows) == 0 or len(columns) == 0:
        raise ValueError("shows no ink")
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _mend_strokes(ink: Ink) -> Ink:
    """Thickens or thins strokes far from MNIST's: faded by the way to 20x20, or filling the holes of an 8."""
    side = max(ink.shape)
    width = _stroke_width(ink)
    thin, thick = STROKE[0] * side, STROKE[1] * side
    padded = np.pad(ink, int(thin))
    if width < thin:
        return _filter(padded, ImageFilter.MaxFilter(_odd(thin - width)))
    if width > thick and min(ink.shape) > 2 * width:  # a 1 is nothing but a stroke: thinned, it would only shrink
        return _filter(padded, ImageFilter.MinFilter(_odd(width - thick)))
    return ink


def _stroke_width(ink: Ink) -> float:
    """Pixels: a stroke of width w and length l has area w * l and an outline of about 2 * l."""
    dark = np.pad(ink > 0.5, 1)
    across, down = dark[:, 1:] != dark[:, :-1], dark[1:] != dark[:-1]
    # A step of an outline has a crossing in each direction where it is diagonal: count those once, sqrt(2) long.
    outline = (across.sum() + down.sum()) * np.pi / 4
    return float(2 * dark.sum() / max(outline, 1))


def _odd(size: float) -> int:
    return 2 * round(size / 2) + 1


def _filter(ink: Ink, kernel: ImageFilter.Filter) -> Ink:
    picture = Image.fromarray((ink * 255).astype(np.uint8)).filter(kernel)
    return np.asarray(picture, dtype=np.float32) * np.float32(1 / 255)


def _resize(ink: Ink, longer_side: int) -> Ink:
    """Keeps the aspect. A box filter, when shrinking, lets a thin line fade evenly rather than fall between pixels."""
    height, width = (max(1, round(side * longer_side / max(ink.shape))) for side in ink.shape)
    method = Image.Resampling.BOX if longer_side < max(ink.shape) else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(ink).resize((width, height), method))


def _stretch(ink: Ink) -> Ink:
    return ink * np.float32(1 / max(float(ink.max()), 1e-6))


def centre_by_mass(ink: NDArray[np.float32]) -> Gray:  # (H, W) of at most 20x20, in [0, 255] -> (28, 28)
    """Places the ink, by whole pixels as MNIST does, so that its centre of mass is at the centre of 28x28."""
    offsets = np.round(CENTRE - _centre_of_mass(ink)).astype(int)
    top, left = np.clip(offsets, 0, SIDE - np.array(ink.shape))
    placed = np.zeros((SIDE, SIDE), np.uint8)
    placed[top : top + ink.shape[0], left : left + ink.shape[1]] = np.round(ink)
    return placed


def _centre_of_mass(ink: NDArray) -> NDArray[np.float64]:  # -> (row, column)
    rows, columns = ink.sum(axis=1, dtype=np.float64), ink.sum(axis=0, dtype=np.float64)
    mass = rows.sum()
    return np.array([rows @ np.arange(len(rows)) / mass, columns @ np.arange(len(columns)) / mass])
