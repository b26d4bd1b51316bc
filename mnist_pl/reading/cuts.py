"""Where to cut ink that may be several digits that touch: straight cuts, and ways that wind through least ink."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import minimum_filter1d

from mnist_pl.reading.ink import Ink, Part, scaled, stroke_width

MOST = 12  # of each kind
NARROW = 0.12  # of the digits' height: nearer the part's ends there are none
THROUGH = 3.0  # strokes that a cut may go through
SLANTS = (-0.4, -0.2, 0.0, 0.2, 0.4)  # of the straight ones: to the left, for each pixel down
HIGH = 48  # pixels of a part, where the winding ones are looked for
ASIDE, FURTHEST = 0.1, 2  # of these: the price of a column aside, in pixels of ink, and the most of them in a row
APART = 0.15  # of a 1: where there is less ink between two ways, they are one
SLIVER = 0.12  # of a piece's ink: less than that, apart from the rest of it, is cut off


@dataclass(frozen=True)
class Cut:
    """In each row the first column to its right, (H,); `ink` is what it goes through, in strokes."""

    columns: NDArray[np.intp]
    ink: float


def straight_cuts(part: Part, tall: float) -> list[Cut]:
    """Where there is least ink, upright and slanting. `tall`: the digits' height, in pixels."""
    ink = part.ink
    height, width = ink.shape
    stroke = max(stroke_width(ink), 1.0)
    margin, reach = max(2, int(NARROW * tall)), max(1, int(NARROW * tall))
    found: list[tuple[int, float, float]] = []  # column in the middle row, slant, strokes
    for slant in SLANTS:
        matrix = np.array([[1, slant, -slant * height / 2], [0, 1, 0]], np.float32)
        upright = cv2.warpAffine(ink, matrix, (width, height)) if slant else ink
        profile = np.convolve(upright.sum(axis=0), np.ones(3) / 3, mode="same") / stroke
        least = (profile <= minimum_filter1d(profile, 2 * reach + 1)) & (profile < THROUGH)
        found += [(x, slant, float(profile[x])) for x in range(margin, width - margin) if least[x]]
    apart: list[tuple[int, float, float]] = []
    for x, slant, strokes in sorted(found, key=lambda one: one[2] + 0.3 * abs(one[1])):
        if all(abs(x - other) > reach / 2 or abs(slant - another) > 0.3 for other, another, _ in apart):
            apart.append((x, slant, strokes))
    down = np.arange(height) - height / 2
    return [Cut(np.round(x - slant * down).astype(int), strokes) for x, slant, strokes in apart[:MOST]]


def winding_cuts(part: Part, tall: float) -> list[Cut]:
    """The best ways through each place on the middle row, but where they part the ink as a better one does."""
    ink = part.ink
    height = len(ink)
    share = min(1.0, HIGH / height)
    small = scaled(ink, share)
    high, wide = small.shape
    middle = high // 2
    down, up = _ways(small[middle:]), _ways(small[middle::-1])
    stroke = max(stroke_width(small), 1.0)
    cost = (down[0] + up[0] - small[middle]) / stroke
    columns = np.concatenate([up[1][:0:-1], down[1]])  # (rows, places)
    before = np.take_along_axis(np.cumsum(small, axis=1), columns, axis=1)  # the ink to the left of it, in each row
    margin, apart = max(1, int(NARROW * tall * share)), APART * tall * share * stroke
    found: list[int] = []
    for x in sorted(range(margin, wide - margin), key=lambda x: cost[x]):
        if cost[x] < THROUGH and all(np.abs(before[:, x] - before[:, other]).sum() > apart for other in found):
            found.append(x)
    rows = np.minimum((np.arange(height) * share).astype(int), high - 1)
    return [Cut(np.round((columns[rows, x] + 0.5) / share).astype(int), float(cost[x])) for x in found[:MOST]]


def _ways(ink: Ink) -> tuple[NDArray[np.float64], NDArray[np.intp]]:  # (H, W) -> (W,), (H, W)
    """From each place on the first row the way to the last through least ink: that ink, and the columns it goes by."""
    width = ink.shape[1]
    asides = np.arange(-FURTHEST, FURTHEST + 1)
    cost, steps = ink[-1].astype(float), []
    for row in ink[-2::-1]:
        around = np.pad(cost, FURTHEST, constant_values=np.inf)
        ways = np.stack([around[FURTHEST + aside :][:width] + ASIDE * abs(aside) for aside in asides])
        steps.append(asides[ways.argmin(axis=0)])
        cost = ways.min(axis=0) + row
    columns = [np.arange(width)]
    for step in steps[::-1]:
        columns.append(columns[-1] + step[columns[-1]])
    return cost, np.stack(columns)


def between(part: Part, start: Cut, end: Cut) -> Part | None:
    """The piece, without what is left in it of the neighbours; None where there is none."""
    x = np.arange(part.width)
    ink = np.where((x >= start.columns[:, None]) & (x < end.columns[:, None]), part.ink, 0)
    labels = cv2.connectedComponents((ink > 0.25).astype(np.uint8))[1]
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = sizes >= max(SLIVER * sizes.sum(), 1)
    if not kept.any():
        return None
    ink = np.where(kept[labels] | (labels == 0), ink, 0)
    left, top, width, height = cv2.boundingRect((ink > 0.25).astype(np.uint8))
    return Part(part.left + left, part.top + top, ink[top : top + height, left : left + width], part.darkness)
