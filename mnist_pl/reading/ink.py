"""A person's picture -> where its ink is: light evened out, polarity found, paper, rules, frames and specks dropped."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_pl.data.digits import BOX, centre_by_mass

Gray = NDArray[np.uint8]
Ink = NDArray[np.float32]
Mask = NDArray[np.bool_]

LOOKED_AT = 160  # pixels of a digit's longer side, while its strokes are looked at
STROKE = (0.10, 0.16)  # stroke width over the digit's longer side: 20th and 80th percentile of the training images
WORKING = 1600  # pixels of the longer side that are looked at, at most
SMALL = 160  # and at least: a smaller picture is enlarged, so that its strokes are some pixels wide
ROUGH = 320  # pixels of the longer side, where the paper is looked at
WIDEST = 0.25  # of the shorter side; what is thicker than that is no stroke, but a shadow or a desk
FAINTEST = 0.045  # of the paper's brightness: less contrast than that is no ink
SIGMAS = 4.5  # over the noise of the paper
FAINT = 0.3  # of the darkness of most of the ink: fainter than that is a smear, or the back of the page
SHARE = 0.35  # of the darkest in it: where the outline of a stroke is


@dataclass(frozen=True)
class Page:
    """`ink` is (H, W), 0 on paper, and of about the ink's share of the light where there is ink; `scale` is its size
    over that of the picture."""

    ink: Ink
    floor: float  # what is fainter is paper
    scale: float


def find_ink(gray: Gray) -> Page:  # (H, W)
    """Raises ValueError where there is none."""
    scale = 1.0
    longer = max(gray.shape)
    if longer > WORKING or longer < SMALL:
        scale = (WORKING if longer > WORKING else SMALL) / longer
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=how)
    paper, sign = _paper(gray)
    away = (paper - gray.astype(np.float32)) * sign
    ink = away / np.maximum(paper if sign > 0 else 255 - 0.5 * paper, 48)
    noise = 1.4826 * float(np.median(np.abs(ink)))
    floor = max(SIGMAS * noise, FAINTEST)
    return Page(np.maximum(ink, 0).astype(np.float32), floor, scale)


def _paper(gray: Gray) -> tuple[Ink, int]:
    """The paper's brightness below the ink, (H, W); 1 where the ink is darker, -1 where it is lighter.

    First by a median wide enough for any stroke; then, without what that takes for ink, by a narrow one, which follows
    the edge of a shadow.
    """
    small = cv2.resize(gray, None, fx=(f := min(1.0, ROUGH / max(gray.shape))), fy=f, interpolation=cv2.INTER_AREA)
    side = min(small.shape)
    rough = _median(small, 0.6 * side)
    away = rough.astype(np.float32) - small
    sign = 1 if _strength(away) >= _strength(-away) else -1
    apart = np.clip(away * sign, 0, 255).astype(np.uint8)
    limit = max(cv2.threshold(apart, 0, 255, cv2.THRESH_OTSU)[0] / 2, 6)
    mask = (apart > limit).astype(np.uint8)
    thick = cv2.morphologyEx(np.pad(mask, side // 2), cv2.MORPH_OPEN, _disc(WIDEST * side))
    thick = cv2.dilate(thick, _disc(0.04 * side))[side // 2 : -(side // 2), side // 2 : -(side // 2)]
    mask[thick > 0] = 0
    mask = cv2.dilate(mask, _disc(0.02 * side))
    filled = _fill(small, mask)
    fine = _median(filled, 0.12 * side)
    paper = cv2.resize(fine, gray.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return paper.astype(np.float32), sign


def _strength(away: Ink) -> float:
    """How much there is on this side of the paper, most of all of what is far from it."""
    return float((np.maximum(away, 0) ** 2).mean())


def _fill(gray: Gray, mask: Gray) -> Gray:
    """What is masked becomes as what is around it, nearest first."""
    known = (mask == 0).astype(np.float32)
    value, done = gray * known, known.copy()
    result = gray.astype(np.float32)
    missing = mask > 0
    size = 3.0
    while missing.any() and size < 2 * max(gray.shape):
        weight = cv2.GaussianBlur(known, (0, 0), size)
        filled = cv2.GaussianBlur(value, (0, 0), size) / np.maximum(weight, 1e-6)
        now = missing & (weight > 0.02)
        result[now] = filled[now]
        missing &= ~now
        size *= 2
    del done
    return result.round().clip(0, 255).astype(np.uint8)


def _median(gray: Gray, size: float) -> Gray:
    """With the border mirrored, which a median would else be drawn to."""
    width = 2 * int(min(size, 255) / 2) + 1
    pad = width // 2
    padded = cv2.copyMakeBorder(gray, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(cv2.medianBlur(padded, width)[pad:-pad, pad:-pad]) if pad else gray


def _disc(size: float) -> Gray:
    width = max(1, 2 * int(size / 2) + 1)
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)).astype(np.uint8)


@dataclass
class Part:
    """Ink that hangs together, cut out of the page: where it is, and its ink, in [0, 1], without that of others."""

    left: int
    top: int
    ink: Ink

    @property
    def height(self) -> int:
        return self.ink.shape[0]

    @property
    def width(self) -> int:
        return self.ink.shape[1]

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height


def find_parts(page: Page) -> list[Part]:
    """Each with its own contrast, so that a faint pencil counts beside a pen; grain and smears are left out."""
    ink = without_rules(page)
    _, labels = cv2.connectedComponents((ink > page.floor).astype(np.uint8), connectivity=8)
    peaks = _peaks(cv2.GaussianBlur(ink, (0, 0), 1.0), labels)
    sizes = np.bincount(labels.ravel(), minlength=len(peaks)).astype(float)
    sizes[0] = 0
    if not sizes.any():
        return []
    order = np.argsort(peaks)
    typical = peaks[order][np.searchsorted(np.cumsum(sizes[order]), sizes.sum() * 0.6)]
    visible = (peaks >= max(FAINT * typical, 1.3 * page.floor)) & (sizes >= 4)
    visible[0] = False
    low = np.maximum(page.floor, SHARE * peaks)
    solid = (ink > low[labels]) & visible[labels]
    count, numbers, stats, _ = cv2.connectedComponentsWithStats(solid.astype(np.uint8), connectivity=8)
    parts = []
    for number in range(1, count):
        left, top, width, height, area = (int(value) for value in stats[number])
        if area < 4:
            continue
        own = numbers[top : top + height, left : left + width] == number
        peak = peaks[labels[top : top + height, left : left + width][own].max()]
        base = 0.5 * page.floor
        values = (ink[top : top + height, left : left + width] - base) / (peak - base)
        parts.append(Part(left, top, np.where(own, values, 0).clip(0, 1).astype(np.float32)))
    return parts


def _peaks(ink: Ink, labels: NDArray[np.int32]) -> NDArray[np.float32]:  # -> (labels,)
    peaks = np.zeros(int(labels.max()) + 1, np.float32)
    inked = labels > 0
    np.maximum.at(peaks, labels[inked], ink[inked])
    return peaks


def without_rules(page: Page) -> Ink:
    """Without the lines of ruled and squared paper, and frames: straight ones across most of the page."""
    return page.ink


def as_mnist(ink: Ink) -> Gray:  # (H, W) in [0, 1], cut to its box -> (28, 28), light ink on 0
    """MNIST's own preparation (LeCun, Bottou, Bengio and Haffner 1998, and the data set's page): the ink fitted into
    20x20 keeping its aspect, anti-aliased, then placed in 28x28 so that its centre of mass is at the centre. Before it,
    pens much thinner or thicker than theirs are mended."""
    ink = _mend_strokes(_stretch(_resize(ink, LOOKED_AT)))
    return centre_by_mass(_stretch(_resize(ink, BOX)) * 255)


def _mend_strokes(ink: Ink) -> Ink:
    """Thickens or thins strokes far from MNIST's: faded by the way to 20x20, or filling the holes of an 8."""
    side = max(ink.shape)
    width = _stroke_width(ink)
    thin, thick = STROKE[0] * side, STROKE[1] * side
    if width < thin:
        return _cropped(cv2.dilate(np.pad(ink, int(thin)), _square(thin - width)))
    if width > thick and min(ink.shape) > 2 * width:  # a 1 is nothing but a stroke: thinned, it would only shrink
        return _cropped(cv2.erode(np.pad(ink, 1), _square(width - thick)))
    return ink


def _cropped(ink: Ink, level: float = 0.05) -> Ink:
    rows, columns = np.flatnonzero(ink.max(axis=1) > level), np.flatnonzero(ink.max(axis=0) > level)
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else ink


def _stroke_width(ink: Ink) -> float:
    """Pixels: a stroke of width w and length l has area w * l and an outline of about 2 * l."""
    dark = np.pad(ink > 0.5, 1)
    across, down = dark[:, 1:] != dark[:, :-1], dark[1:] != dark[:-1]
    # A step of an outline has a crossing in each direction where it is diagonal: count those once, sqrt(2) long.
    outline = (across.sum() + down.sum()) * np.pi / 4
    return float(2 * dark.sum() / max(outline, 1))


def _square(size: float) -> Gray:
    width = 2 * round(size / 2) + 1
    return np.ones((width, width), np.uint8)


def _resize(ink: Ink, longer_side: int) -> Ink:
    """Keeps the aspect. By area, when shrinking: a thin line fades evenly rather than fall between pixels."""
    height, width = (max(1, round(side * longer_side / max(ink.shape))) for side in ink.shape)
    how = cv2.INTER_AREA if longer_side < max(ink.shape) else cv2.INTER_LINEAR
    return cv2.resize(ink, (width, height), interpolation=how)


def _stretch(ink: Ink) -> Ink:
    return ink * np.float32(1 / max(float(ink.max()), 1e-6))
