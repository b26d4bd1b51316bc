"""Test digits, letters and drawings -> strokes of a pen, as smooth shapes that can be drawn at any size.

A shape is a field: how far each point is inside the ink, in pixels of the field, negative outside. Its zero line is
the edge of the ink. A unit of the page is the longer side of MNIST's box for a digit, UNIT pixels of the field.
"""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Field = NDArray[np.float32]
Mask = NDArray[np.uint8]  # 0 or 1
Lines = list[NDArray[np.float64]]  # each (N, 2): x and y, in units

ZOOM = 5
UNIT = 20 * ZOOM
AROUND = 6.0  # pixels of the field around the ink; it is no lower than minus that
LEAST_HOLE = 0.6 * ZOOM**2  # pixels of the field; smaller ones are nothing but grain
# Not those that experiment=robust learns its letters from: what is scored should be new to it.
FONTS = ("DejaVuSerif.ttf", "DejaVuSerif-Italic.ttf", "DejaVuSansMono-Oblique.ttf", "cmss10.ttf", "cmr10.ttf")


def digit(image: NDArray[np.uint8], width: float, rng: Generator) -> Field:
    """A 28x28 image of MNIST, trimmed, written with a pen that is about `width` units wide.

    Where such a pen would fill a loop or join what is apart, it is a finer one: whoever could read the digit still can.
    """
    large = cv2.resize(image.astype(np.float32) / 255, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_CUBIC)
    large = cv2.GaussianBlur(large, (0, 0), 0.45 * ZOOM)
    mask = _without_debris(_mask(large))
    left, top, wide, high = cv2.boundingRect(mask)
    mask = np.pad(mask[top : top + high, left : left + wide], UNIT // 8)
    inside = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    bones = thin(mask)
    own = 2 * float(np.median(inside[bones > 0]))
    if inside.max() > 0.8 * own:  # a loop that is filled: its outline is all that is known of it
        width = max(width, 0.8 * own / UNIT)
    form = _form(mask)
    for wanted in (width * UNIT, (width * UNIT + own) / 2, own):
        if wanted < 0.8 * own:
            plain = _along(bones, wanted)
        else:
            outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
            plain = cv2.GaussianBlur(inside - outside, (0, 0), 0.25 * ZOOM) + (wanted - own) / 2
        field = plain + _pressure(plain.shape, wanted, rng)
        if _form((field > 0).astype(np.uint8)) == form:
            return _trim(field)
    return _trim(plain)


def _without_debris(mask: Mask) -> Mask:
    """Without small parts that are beside the digit, not over or under it: of what stood next to it on the form."""
    _, parts, about, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    main = 1 + int(about[1:, cv2.CC_STAT_AREA].argmax())
    left, right = about[:, cv2.CC_STAT_LEFT], about[:, cv2.CC_STAT_LEFT] + about[:, cv2.CC_STAT_WIDTH]
    beside = (right <= left[main]) | (left >= right[main])
    small = about[:, cv2.CC_STAT_AREA] < 0.3 * about[main, cv2.CC_STAT_AREA]
    return mask & ~np.isin(parts, np.flatnonzero(beside & small)).astype(np.uint8)


def _mask(large: Field) -> Mask:
    """Where the ink is in an enlarged image; a faint stroke does not fall to pieces, nor is a small loop filled."""
    mask, more, less, least = ((large > level).astype(np.uint8) for level in (0.45, 0.25, 0.6, 0.75))
    form = _form(mask)
    if _form(more)[0] < form[0]:
        return more
    for other in (less, least):
        parts, holes = _form(other)
        if parts == form[0] and holes > form[1]:
            return other
    return mask


def drawn(lines: Lines, width: float, rng: Generator, wobble: float = 0.02) -> Field:
    """Lines of a pen `width` units wide, by a hand that is `wobble` units off."""
    points = np.concatenate(lines)
    low = points.min(0) - 0.3
    shape = np.ceil((points.max(0) + 0.3 - low) * UNIT).astype(int)
    mask = np.zeros((shape[1], shape[0]), np.uint8)
    for line in lines:
        line = _smooth_noise(line, wobble, rng)
        cv2.polylines(mask, [np.round((line - low) * UNIT * 16).astype(np.int32)], False, 1, 1, cv2.LINE_8, 4)
    field = _along(mask, width * UNIT)
    return _trim(field + _pressure(field.shape, width * UNIT, rng))


def written(text: str, width: float, rng: Generator) -> Field:
    """Letters of a font, its strokes thinned to a pen's and bent as a hand bends them. A capital is a unit high."""
    font = _font(FONTS[rng.integers(len(FONTS))])
    left, top, right, bottom = font.getbbox(text)
    page = Image.new("L", (int(right - left) + UNIT, int(bottom - top) + UNIT))
    ImageDraw.Draw(page).text((UNIT / 2 - left, UNIT / 2 - top), text, 255, font)
    height, wide = page.height, page.width
    knots = (2, 3 * height // UNIT + 2, 3 * wide // UNIT + 2)
    bend = [cv2.resize(part.astype(np.float32), (wide, height)) for part in rng.normal(0, 0.05 * UNIT, knots)]
    y, x = np.mgrid[:height, :wide].astype(np.float32)
    slant = np.float32(rng.normal(0, 0.15))
    bent = cv2.remap(np.asarray(page), x + bend[0] + slant * (y - height / 2), y + bend[1], cv2.INTER_LINEAR)
    mask = (cv2.GaussianBlur(bent, (0, 0), 0.4 * ZOOM) > 110).astype(np.uint8)
    field = _along(thin(mask), width * UNIT)
    return _trim(field + _pressure(field.shape, width * UNIT, rng))


def thin(mask: Mask) -> Mask:
    """The middle of each stroke, one pixel wide (Zhang and Suen 1984)."""
    mask = np.pad(mask, 1)
    weights = np.array([[128, 1, 2], [64, 0, 4], [32, 16, 8]], np.float32)  # a bit for each neighbour, clockwise
    while True:
        before = mask
        for goes in _goes():
            around = cv2.filter2D(mask, cv2.CV_8U, weights)
            mask = mask & ~goes[around] & 1
        if (mask == before).all():
            return mask[1:-1, 1:-1]


@cache
def _goes() -> tuple[Mask, Mask]:
    """For each of the 256 neighbourhoods, whether the pixel goes: in the first half of a pass, and in the second."""
    first, second = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
    for code in range(256):
        n = [code >> bit & 1 for bit in range(8)]  # north, north-east, east, ...
        steps = sum(n[i] == 0 and n[(i + 1) % 8] == 1 for i in range(8))
        if 2 <= sum(n) <= 6 and steps == 1:
            first[code] = not (n[0] and n[2] and n[4]) and not (n[2] and n[4] and n[6])
            second[code] = not (n[0] and n[2] and n[6]) and not (n[0] and n[4] and n[6])
    return first, second


def _along(bones: Mask, width: float) -> Field:
    """The field of a round pen that follows the lines."""
    away = cv2.distanceTransform(1 - bones, cv2.DIST_L2, 5)
    smooth = min(0.3 * ZOOM, width / 4)
    return width / 2 + 0.4 * smooth - cv2.GaussianBlur(away, (0, 0), smooth)


def _pressure(shape: tuple[int, ...], width: float, rng: Generator) -> Field:
    coarse = rng.normal(0, 0.06 * width, [max(3, 3 * side // UNIT) for side in shape])
    return cv2.resize(coarse.astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC)


def _form(mask: Mask) -> tuple[int, int]:
    """How many parts there are, and how many holes."""
    return tuple(
        int((cv2.connectedComponentsWithStats(part, connectivity=ways)[2][1:, cv2.CC_STAT_AREA] > LEAST_HOLE).sum())
        for part, ways in ((mask, 8), (1 - np.pad(mask, 1), 4))
    )  # type: ignore[return-value]


def _trim(field: Field) -> Field:
    """To the ink, and a little around it."""
    left, top, width, height = cv2.boundingRect((field > 0).astype(np.uint8))
    room = int(AROUND)
    rows, columns = slice(max(top - room, 0), top + height + room), slice(max(left - room, 0), left + width + room)
    return np.maximum(field[rows, columns], -AROUND)


def _smooth_noise(line: NDArray[np.float64], amount: float, rng: Generator) -> NDArray[np.float64]:
    """The line in small steps, each point moved a little with its neighbours."""
    steps = np.r_[0, np.cumsum(np.hypot(*np.diff(line, axis=0).T))]
    count = max(8, int(steps[-1] / 0.04))
    at = np.linspace(0, steps[-1], count)
    fine = np.stack([np.interp(at, steps, line[:, axis]) for axis in (0, 1)], 1)
    knots = max(3, int(steps[-1] / 0.25))
    noise = cv2.resize(rng.normal(0, amount, (knots, 2)), (2, count), interpolation=cv2.INTER_CUBIC)
    return fine + noise


@cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    """matplotlib's, which are on every machine."""
    import matplotlib

    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), 200)
    left, top, right, bottom = font.getbbox("H")
    return font.font_variant(size=round(200 * UNIT / (bottom - top)))
