"""Images in MNIST's form that show no digit, for a network to learn to say no from (outlier exposure, Hendrycks,
Mazeika and Dietterich 2018): letters and signs by hand and in print, drawings, scribbles, textures, and what a wrong
cut leaves of a number: pieces of digits, and several in one box.

What a person could take for a digit is not among them: the letters B D G I J O Q S Z a b g i j l o q s y z, brackets,
slashes, rings and squares, & ! ? $ §; pieces such as the loop of a 6, the stem of a 9 or the right half of an 8.
"""

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mnist_pl.data.digits import BOX
from mnist_pl.data.strokes import SEED, Stroke, by_hand, in_form, render, rounded

Random = np.random.Generator
Images = NDArray[np.uint8]  # (N, 28, 28)

# By hand; strokes.py says what the figures mean.
LETTERS = {
    "A": "09 40 89; 26 66", "C": "90 60 23 06 28 59 99", "E": "80 00 00 09 09 89; 05 65", "F": "80 00 00 09; 04 64",
    "H": "00 09; 80 89; 04 84", "K": "00 09; 80 04 04 89", "L": "00 00 09 09 79", "M": "09 00 00 45 45 90 90 99",
    "N": "09 00 00 89 89 80", "P": "00 09; 00 60 83 65 05", "R": "00 09; 00 60 83 65 05 05 89", "T": "00 90; 50 49",
    "U": "00 06 39 69 86 80", "V": "00 00 49 49 90", "W": "00 29 29 44 44 69 69 90", "X": "00 99; 90 09",
    "Y": "00 45 45 90; 45 49", "d": "80 89; 86 48 07 03 31 64 87", "e": "05 75 72 40 12 06 28 59 88",
    "f": "70 50 32 39; 14 64", "h": "00 09; 05 32 63 69", "k": "00 09; 63 05; 25 79",
    "m": "09 02; 05 23 35 39; 35 53 65 69", "n": "02 09; 05 33 65 69", "r": "02 09; 05 33 62",
    "t": "40 47 69 78; 13 73", "v": "02 02 49 49 82", "w": "02 28 28 45 45 68 68 82",
    "x": "02 79; 72 09", "p": "02 09 09; 03 43 65 47 07; 09 09",
    "<": "50 50 02 02 98", "П": "00 90; 10 19; 80 89", "Δ": "09 40 40 89 89 09", "~": "05 25 40 65 85 99",
}  # fmt: skip
SIGNS = {
    "bar": "05 95", "plus": "40 49; 05 95", "star": "00 99; 90 09; 05 95", "hash": "10 18; 70 78; 02 92; 06 96",
    "equals": "02 92; 06 96", "wave": "05 22 54 86 93", "cross": "00 99; 90 09", "tick": "05 38 38 90 90",
    "colon": "44; 48", "quotes": "10 12; 50 52", "tally": "00 09; 40 49; 80 89", "percent": "90 09; 10 11; 88 89",
    "triangle": "09 40 40 99 99 09", "zigzag": "09 02 32 39 62 69 92 99", "lines": "01 91; 05 95; 09 99",
    "long wave": "05 20 35 50 65 80 95",
}  # fmt: skip
DRAWINGS = {
    "wheel": "50 11 04 18 49 88 95 81 50; 40 49; 05 95", "target": "50 11 04 18 49 88 95 81 50; 53 35 56 64 53",
    "clock": "50 11 04 18 49 88 95 81 50; 42 45 45 75", "no entry": "50 11 04 18 49 88 95 81 50; 25 75",
    "sun": "42 24 46 64 42; 40 41; 94 84; 48 49; 04 14; 11 22; 77 88; 71 80; 17 08", "bowl": "03 03 93 93 78 28 03",
    "bell": "40 22 17 08 98 77 62 40; 49", "boat": "06 06 96 96 79 79 19 19 06; 46 40 40 84 84 45",
    "chair": "00 09; 05 65 65 69", "table": "03 93; 13 19; 83 89", "ladder": "20 29; 70 79; 22 72; 25 75; 27 77",
    "fork": "10 14 44 74 70; 40 49", "comb": "00 90; 00 04; 20 24; 40 44; 60 64; 80 84", "bird": "02 21 44 44 71 92",
    "mountain": "09 32 32 55 55 71 71 99", "eye": "05 42 95 48 05; 44 55 46 35 44",
    "cat": "10 10 32 62 80 80 95 79 29 05 10; 34; 64; 47; 06 36; 66 96", "pi": "00 90; 20 19; 70 79",
    "car": "06 06 24 42 62 74 96 96 06; 27 38 29; 67 78 69", "plane": "04 94; 44 10; 44 19; 04 02",
    "scissors": "00 77; 90 27; 26 08 29 26; 76 67 99 76", "flower": "40 22 44 62 40; 44 49; 46 25; 47 65",
    "crown": "09 00 35 40 65 90 99 09", "hand": "09 05 10 24 30 34 50 54 71 66 59",
}  # fmt: skip
SHAPES = {
    "line": "40 49", "slope": "04 94", "ring": "40 11 04 18 49 88 95 81 50 40", "triangle": "09 40 40 99 99 09",
    "square": "00 90 90 99 99 09 09 00", "arc": "05 42 95", "corner": "00 99 99 90", "dot": "44",
}  # fmt: skip
IN_PRINT = '.ACEFHKLMNPRTUVWXYcdefhkmnprtuvwx#%@*+=<~:;"-_€ÄÉÑæñüµ÷×±¬'
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "STIXGeneralItalic", "cmtt10")
# Kept for measuring: nothing of this is trained on.
UNSEEN_IN_PRINT = "ΓΔΞΠΣΨΩαγκλμπψωДЖИЙЛЦШЩЮЯджийлцшщюя" + "AEFHKMNRWXdefhkmnwx"
UNSEEN_FONTS = ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic")
UNSEEN_SIGNS = {
    "house": "04 40 84; 14 19 19 79 79 74; 39 36 36 56 56 59", "arrow": "05 95; 62 95 95 68",
    "arrow up": "49 40; 13 40 40 73", "heart": "43 20 01 04 49 84 91 70 43",
    "face": "50 11 04 18 49 88 95 81 50; 33 34; 63 64; 26 48 66", "star": "09 40 40 89 89 03 03 93 93 09",
    "fish": "05 42 85 48 05; 85 93 97 85", "flag": "09 00 00 82 82 04", "cup": "00 19 19 69 69 80 80 00; 82 92 95 75",
    "tree": "40 05 05 85 85 40; 45 49", "man": "40 31 40 51 40; 42 46; 13 44 44 73; 19 46 46 79",
    "umbrella": "05 11 50 81 95 05; 45 48 69 67", "envelope": "00 99 99 90 90 09 09 00 00 90; 09 99",
}  # fmt: skip
# Which part of which digits no one would read as a digit.
PARTS = {"top": (0, 4), "bottom": (0, 2), "left": (3, 7, 9)}


def nondigits(count: int, digits: tuple[Tensor, Tensor], seed: int = SEED, unseen: bool = False) -> Tensor:
    """As many images (N, 28, 28) uint8; the pieces and the groups are of `digits`, images of that form and labels.
    `unseen`: of the kinds and fonts that are kept for measuring, and of no others."""
    random = np.random.default_rng([seed, 2, unseen])
    images, labels = digits[0].numpy(), digits[1].numpy()
    shares: dict[Callable[[int], Images], int] = {
        lambda n: _by_hand(n, LETTERS, random): 6,
        lambda n: _printed(n, IN_PRINT, FONTS, random): 5,
        lambda n: _by_hand(n, SIGNS, random): 2,
        lambda n: _by_hand(n, DRAWINGS, random): 4,
        lambda n: _figures(n, random): 3,
        lambda n: _scribbles(n, random): 2,
        lambda n: _textures(n, random): 2,
        lambda n: _pieces(n, images, labels, random): 4,
        lambda n: _groups(n, images, labels, random): 4,
    }
    if unseen:
        shares = {
            lambda n: _printed(n, UNSEEN_IN_PRINT, UNSEEN_FONTS, random): 6,
            lambda n: _by_hand(n, UNSEEN_SIGNS, random): 4,
        }
    sizes = np.diff(np.cumsum(list(shares.values())) * count // sum(shares.values()), prepend=0)
    made = [make(int(size)) for make, size in zip(shares, sizes, strict=True) if size]
    return torch.from_numpy(np.concatenate(made) if made else np.zeros((0, 28, 28), np.uint8))


def _by_hand(count: int, templates: dict[str, str], random: Random) -> Images:
    chosen = random.choice(list(templates.values()), count)
    return render([by_hand(template, random) for template in chosen], random)


def _figures(count: int, random: Random) -> Images:
    """Lines and shapes at random places, too many for any digit: what a drawing of something else is made of."""

    def figure() -> list[Stroke]:
        parts = []
        for template in random.choice(list(SHAPES.values()), random.integers(4, 8)):
            size = random.uniform(0.2, 1.0)
            place = random.random(2) * (1.2 - size)
            parts += [stroke * size + place for stroke in by_hand(template, random)]
        return parts

    return render([figure() for _ in range(count)], random)


def _scribbles(count: int, random: Random) -> Images:
    """The pen wanders: too many turns for any digit."""

    def wander() -> Stroke:
        steps = random.normal(0, 1, (random.integers(16, 40), 2)) * random.uniform(0.3, 1, 2)
        return rounded(np.cumsum(steps, axis=0) if random.random() < 0.5 else steps)

    return render([[wander()] for _ in range(count)], random)


def _printed(count: int, letters: str, fonts: tuple[str, ...], random: Random) -> Images:
    """Of the fonts that matplotlib brings, so that every machine has them."""
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    loaded = [ImageFont.truetype(folder / f"{name}.ttf", 40) for name in fonts]
    kinds = [(letter, font) for font in loaded for letter in letters if _has(font, letter)]
    made = []
    for _ in range(count):
        letter, font = kinds[random.integers(len(kinds))]
        picture = Image.new("L", (96, 96))
        ImageDraw.Draw(picture).text((48, 48), letter, 255, font, "mm", stroke_width=int(random.integers(3)))
        slant, turn = random.normal(0, 0.15), random.normal(0, 0.1)
        matrix = (1, slant + turn, -48 * (slant + turn), -turn, 1, 48 * turn)
        made.append(_fit(picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)))
    return in_form(np.array(made))


def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether it draws something else than the box that stands for what it lacks."""
    return bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))


def _textures(count: int, random: Random) -> Images:
    """Blots, stripes, clouds and specks, as of photographs that show something else."""
    made = []
    for _ in range(count):
        field = random.random(random.integers(2, 15, 2)) ** random.choice([1, 3])
        way = random.choice([Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
        ink = np.asarray(Image.fromarray((field * 255).astype(np.uint8)).resize((BOX, BOX), way), np.float32)
        if random.random() < 0.7:  # with hard edges
            ink = np.clip((ink - np.quantile(ink, random.uniform(0.2, 0.8))) * 0.1 + 0.5, 0, 1) * 255
        made.append(_fit(ink))
    return in_form(np.array(made))


def _pieces(count: int, images: Images, labels: NDArray, random: Random) -> Images:
    made = []
    for number in range(count):
        side = list(PARTS)[number % len(PARTS)]
        image = _one_of(images, labels, PARTS[side], random)
        image = image.T if side == "left" else image
        share = np.cumsum(image.sum(axis=1, dtype=np.float64)) / max(image.sum(dtype=np.float64), 1)
        border = int(np.searchsorted(share, random.uniform(0.4, 0.6)))
        part = image[border:] if side == "bottom" else image[:border]
        made.append(_fit(part.T if side == "left" else part))
    return in_form(np.array(made))


def _groups(count: int, images: Images, labels: NDArray, random: Random) -> Images:
    """Two or three digits side by side, apart, touching or overlapping; a few one above the other."""
    made = []
    for number in range(count):
        if number % 8 == 0:  # round or straight ones would make an 8 or a 1
            row = [_ink_of(_one_of(images, labels, (2, 3, 4, 5), random)).T for _ in range(2)]
            made.append(_fit(_beside(row, random).T))
        else:
            row = [_ink_of(_one_of(images, labels, range(10), random)) for _ in range(3 if number % 8 == 1 else 2)]
            made.append(_fit(_beside(row, random)))
    return in_form(np.array(made))


def _beside(parts: list[NDArray], random: Random) -> NDArray:
    gap = int(random.integers(-3, 5))  # pixels
    high = max(len(part) for part in parts)
    canvas = np.zeros((high, sum(part.shape[1] + max(gap, 0) for part in parts)), np.uint8)
    right = 0
    for part in parts:
        top = random.integers(high - len(part) + 1)
        left = max(0, right + gap) if right else 0
        right = left + part.shape[1]
        place = canvas[top : top + len(part), left:right]
        np.maximum(place, part, out=place)
    return canvas


def _one_of(images: Images, labels: NDArray, wanted: Collection[int], random: Random) -> NDArray:
    """An image with one of the `wanted` labels, where there are some."""
    for _ in range(100):
        index = random.integers(len(labels))
        if labels[index] in wanted:
            break
    return images[index]


def _ink_of(image: NDArray) -> NDArray:
    """The box that holds all that is not faint."""
    inked = image > 50
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else image


def _fit(picture: "NDArray | Image.Image") -> NDArray[np.float32]:  # (H, W) in [0, 255] -> (20, 20)
    """The ink, keeping its aspect, in the middle of MNIST's box; a full box where there is none."""
    ink = np.ascontiguousarray(_ink_of(np.asarray(picture)), np.float32)
    if not ink.any():
        return np.full((BOX, BOX), 255, np.float32)
    height, width = (max(1, round(side * BOX / max(ink.shape))) for side in ink.shape)
    way = Image.Resampling.BOX if max(ink.shape) > BOX else Image.Resampling.BILINEAR
    fitted = np.zeros((BOX, BOX), np.float32)
    top, left = (BOX - height) // 2, (BOX - width) // 2
    fitted[top : top + height, left : left + width] = np.asarray(Image.fromarray(ink).resize((width, height), way))
    return fitted * np.float32(255 / fitted.max())
