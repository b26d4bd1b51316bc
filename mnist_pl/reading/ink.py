"""A person's picture -> where its ink is: light evened out, polarity found, paper, rules, frames and specks dropped."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from mnist_pl.data.digits import BOX, centre_by_mass
from mnist_pl.reading.pictures import Gray

Ink = NDArray[np.float32]
Mask = NDArray[np.bool_]

LOOKED_AT = 160  # pixels of a digit's longer side, while its strokes are looked at
PAIR_SHAPE, PAIR = (28, 48), (22, 44)  # pixels of an image of two digits, and of their ink, at most
STROKE = (0.10, 0.16)  # stroke width over the digit's longer side: 20th and 80th percentile of the training images
WORKING = 1600  # pixels of the longer side that are looked at, at most
SMALL = 160  # and at least: a smaller picture is enlarged, so that its strokes are some pixels wide
ROUGH = 320  # pixels of the longer side, where the paper is looked at
PASTED = 0.9  # of its pixels differ from the ground
RINGING = 0.12  # of the step from one to the other, which JPEG leaves around it
FITS = 6  # of the light
FLAT, THICKEST = 0.6, 0.4  # of the pixels; of the shorter side
WIDEST, WIDEST_CORE = 0.22, 0.3  # of the shorter side; what is thicker is no stroke, but a shadow or a desk
BETWEEN = 0.06  # of the shorter side: strokes that are thinner than that do not part a bright place in two
GRAINS = (0.0008, 0.002, 0.005)  # of the longer side: what is averaged, until the noise is less than
GRAINY = 0.2  # of the paper's brightness
RULE = 0.55  # of the picture's width: lines at least that long are rules
GAP = 1.5  # pixels of a picture that had to be enlarged
MOST_PARTS = 500  # a page of the numbers to 100 has 200
BRIGHT = 128  # of the light, at least, where the two polarities are compared
DESK = 0.4  # of the paper's brightness: what is darker, and wide, is no paper
STEP = 0.05  # of the light, in one of ROUGH pixels: no light falls off like that
BRIDGE = 0.02  # of the shorter side: strokes are joined that the edge of a shadow has parted by less
ON_EDGE = 0.5  # of a part's pixels: then it is but the edge's
SLIVER, AT_BORDER, ALONG, HALF = 0.06, 0.15, 0.6, 0.4  # of the picture's side
WHOLE, BESIDE = 0.8, 0.35  # of a rule is inked, at least; and of what is above or below it, at most
FEW, DARKER = 0.25, 1.6  # than the faintest few of the rules: then a line is none of them
LIKE = 2.0  # times as thick and dark as the rules across it, at most, is a rule that is alone
THIN = 0.04  # of the shorter side: a rule is no bar of a digit that fills the picture
ACROSS = 0.85  # ... or that long, where there is but one
OVER = 0.075  # of that length: half of the widest stroke that crosses a rule
STEEPEST = 0.27  # of which none falls more than that, 15 degrees
FAINTEST = 0.045  # of the paper's brightness: less contrast than that is no ink
SIGMAS = 4.5  # over the noise of the paper
FAINT = 0.3  # of the darkness of most of the ink: fainter than that is a smear, or the back of the page
SHARE = 0.35  # of the darkest in it: where the outline of a stroke is


@dataclass(frozen=True)
class Page:
    """`ink` is (H, W): 0 on paper, and where there is ink the share of the light that it takes."""

    ink: Ink
    floor: float  # what is fainter is paper
    edges: Ink  # (H, W), by how much the paper's brightness jumps near by: the edge of a shadow or a page
    scale: float  # its size over that of what was looked at
    left: int  # of the picture's pixels, where that begins
    top: int


def find_ink(gray: Gray, smooth: bool = False, other: bool = False) -> Page:  # (H, W)
    """`smooth` takes the light to fall off smoothly, without shadows: then strokes may be of any width. `other` looks
    for ink of the less likely polarity."""
    left, top, gray = _pasted(gray)
    scale = 1.0
    longer = max(gray.shape)
    if longer > WORKING or longer < SMALL:
        scale = (WORKING if longer > WORKING else SMALL) / longer
        gray = scaled(gray, scale, cv2.INTER_CUBIC)
    flat = _flat(gray)
    if flat is None and not smooth:
        paper, over, sign = _paper(gray, other)
    else:
        paper = over = _smooth(gray).clip(0, 255) if flat is None else np.full(gray.shape, flat, np.float32)
        sign = 1 if (_strength(paper - gray) >= _strength(gray - paper)) != other else -1
    typical = float(np.median(paper))
    light = np.maximum(np.maximum(paper, 0.5 * typical) if sign > 0 else 255 - 0.5 * paper, 32)
    under = np.minimum(paper, over) if sign > 0 else np.maximum(paper, over)
    for grain in GRAINS:
        blurred = cv2.GaussianBlur(gray, (0, 0), grain * max(gray.shape))
        ink = (under - blurred) * np.float32(sign) / light
        level = float(np.median(ink))
        floor = level + max(SIGMAS * 1.4826 * float(np.median(np.abs(ink - level))), FAINTEST)
        if floor < GRAINY:
            break
    ink = without_rules(np.maximum(ink, 0).astype(np.float32), floor)
    return Page(ink, floor, _edges(paper, typical, float(np.median(light))), scale, left, top)


def _pasted(gray: Gray) -> tuple[int, int, Gray]:
    """Where the picture of a paper was pasted on a plain ground: its left and top, and that picture alone."""
    frame = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    ground = int(np.median(frame))
    away = np.abs(gray.astype(np.int16) - ground)
    if (away > 4).any() and (np.abs(frame.astype(np.int16) - ground) > 4).mean() < 0.02:
        other = away > max(4, RINGING * np.median(away[away > 4]))
        rows, columns = (np.flatnonzero(share > share.max() / 2) for share in (other.mean(axis=1), other.mean(axis=0)))
        if len(rows) > 0.3 * len(gray) and len(columns) > 0.3 * gray.shape[1]:
            top, bottom, left, right = rows[0] + 2, rows[-1] - 1, columns[0] + 2, columns[-1] - 1
            all_of_it = away[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] > 4
            is_alone = all_of_it.sum() > PASTED * (away > 4).sum()  # no loop of a thick 9, with a stem
            if is_alone and (away[top:bottom, left:right] > 4).mean() > PASTED:
                return int(left), int(top), gray[top:bottom, left:right]
    return 0, 0, gray


def _flat(gray: Gray) -> int | None:
    """The paper's brightness in a drawing on a screen: that of most of it, and what is not is no thicker than a stroke.
    None for any other picture."""
    counts = np.bincount(gray[:: max(1, len(gray) // 200), :: max(1, gray.shape[1] // 200)].ravel(), minlength=256)
    paper = int(counts.argmax())
    if counts[max(0, paper - 3) : paper + 4].sum() < FLAT * counts.sum():
        return None
    small = _small(gray)
    mask = (np.abs(small.astype(np.int16) - paper) > 20).astype(np.uint8)
    return None if _thick(mask, THICKEST * min(small.shape)).any() else paper


def _smooth(gray: Gray) -> Ink:
    """The paper's brightness, a polynomial of the place: fitted to the frame, then to all that is like it."""
    small = _small(gray, ROUGH // 2)
    height, width = small.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32) / max(height, width)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y])
    values = small.ravel().astype(np.float32)
    ring = max(1, min(height, width) // 12)
    frame = np.ones(small.shape, bool)
    frame[ring:-ring, ring:-ring] = False
    used = frame.ravel()
    for _ in range(FITS):
        fit = np.linalg.lstsq(terms[:, used].T, values[used], rcond=None)[0]
        away = np.abs(values - fit @ terms)
        used = away < max(2.5 * 1.4826 * float(np.median(away[used])), 4)
    trend = (fit @ terms).reshape(small.shape).astype(np.float32)
    return cv2.resize(trend, gray.shape[::-1], interpolation=cv2.INTER_LINEAR)


def _small(gray: Any, longer: int = ROUGH) -> Any:
    return scaled(gray, min(1.0, longer / max(gray.shape)))


def scaled(image: Any, share: float, enlarge: int = cv2.INTER_LINEAR) -> Any:
    height, width = (max(1, round(side * share)) for side in image.shape)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if share < 1 else enlarge)


def _paper(gray: Gray, other: bool) -> tuple[Ink, Ink, int]:
    """The paper's brightness below the ink, (H, W), twice; and 1 where the ink is darker, -1 where it is lighter.

    Ink is what stands out against both. It is looked for in either polarity: where there is none, only what the two do
    not follow of the light is left.
    """
    small = _small(gray)
    level = np.clip(small - _smooth(small) + 128, 0, 255).astype(np.uint8)
    away = _median(level, 0.6 * min(small.shape)).astype(np.float32) - level
    found = {sign: _below_ink(small, away * sign, sign) for sign in (1, -1)}
    blurred = cv2.GaussianBlur(small, (0, 0), 0.8)
    over_dark, over_light = (_beyond_strokes(blurred, sign) for sign in (1, -1))
    dark = (np.minimum(over_dark, np.minimum(*found[1])) - blurred) / np.maximum(found[1][0], BRIGHT)
    light = (blurred - np.maximum(over_light, np.maximum(*found[-1]))) / np.maximum(255 - 0.5 * found[-1][0], BRIGHT)
    desk = _desk(found[1][0], float(np.median(found[1][0])))  # from which the page stands out
    page = cv2.dilate(desk, _disc(WIDEST * min(small.shape))) == 0
    sign = 1 if (_strength(dark * page, 3) >= _strength(light * page, 3)) != other else -1
    back = gray.shape[::-1]
    paper, over = (cv2.resize(one, back, interpolation=cv2.INTER_LINEAR).astype(np.float32) for one in found[sign])
    return paper, over, sign


def _beyond_strokes(small: Gray, sign: int) -> Gray:
    """A closing (or opening), of what has no strokes of the other polarity: they part a bright place, or a dark one, in
    pieces that would be taken for ink."""
    narrow, wide = (np.ones(2 * [2 * int(size * min(small.shape) / 2) + 1], np.uint8) for size in (BETWEEN, WIDEST))
    first, then = (cv2.MORPH_OPEN, cv2.MORPH_CLOSE) if sign > 0 else (cv2.MORPH_CLOSE, cv2.MORPH_OPEN)
    return cv2.morphologyEx(cv2.morphologyEx(small, first, narrow), then, wide)


def _below_ink(small: Gray, apart: Ink, sign: int) -> tuple[Ink, Ink]:
    """The paper's brightness twice, by what is about so much `apart` from it (all (H, W)).

    By a narrow median without the ink, which follows the edge of a shadow. A closing (for light ink an opening) follows
    corners, where a median rounds them, and tells what is thinner than a shadow.
    """
    side = min(small.shape)
    width = 2 * int(WIDEST * side / 2) + 1
    closing, erosion = (cv2.MORPH_CLOSE, cv2.MORPH_ERODE) if sign > 0 else (cv2.MORPH_OPEN, cv2.MORPH_DILATE)
    blurred = cv2.GaussianBlur(small, (0, 0), 0.8)
    over = cv2.morphologyEx(blurred, closing, np.ones((width, width), np.uint8))
    far = np.clip(apart, 0, 255).astype(np.uint8)
    limit = max(cv2.threshold(far, 0, 255, cv2.THRESH_OTSU)[0] / 2, 6)
    mask = (far > limit).astype(np.uint8)
    mask[_thick(mask, WIDEST_CORE * side) | (cv2.absdiff(over, blurred) <= limit)] = 0
    mask = cv2.dilate(mask, _disc(0.02 * side))
    fine = _median(_fill(small, mask), 0.12 * side)
    fine = cv2.morphologyEx(fine, erosion, np.ones((3, 3), np.uint8))  # no line along the edge of a shadow
    return fine.astype(np.float32), over.astype(np.float32)


def _edges(paper: Ink, typical: float, light: float) -> Ink:
    """By how much of the light the paper's brightness jumps near by, 0 where it does not."""
    small = _small(paper)
    around = _disc(0.06 * min(small.shape))
    steps = np.hypot(cv2.Sobel(small, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(small, cv2.CV_32F, 0, 1, scale=1 / 8))
    jumps = cv2.dilate((steps > STEP * light).astype(np.uint8), around)
    heights = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, around) / light * jumps
    heights[cv2.dilate(_desk(small, typical), around) > 0] = 1
    return cv2.resize(heights, paper.shape[::-1], interpolation=cv2.INTER_NEAREST)


def _desk(paper: Ink, typical: float) -> Gray:
    """Where it is, beside the page: 1, else 0."""
    dark = (paper < DESK * typical).astype(np.uint8)
    return cv2.morphologyEx(dark, cv2.MORPH_OPEN, _disc(0.05 * min(paper.shape)))


def _strength(away: Ink, power: int = 2) -> float:
    """How much there is on this side of the paper, most of all of what is far from it."""
    return float((np.maximum(away, 0) ** power).mean())


def _thick(mask: Gray, size: float) -> Mask:
    """What is wider than any stroke, and a little around it: a shadow, a desk."""
    pad = int(size) + 1
    inside = cv2.distanceTransform(np.pad(mask, pad, mode="edge"), cv2.DIST_L2, 5)
    core = inside > size / 2
    if not core.any():
        return np.zeros(mask.shape, bool)
    away = cv2.distanceTransform((~core).astype(np.uint8), cv2.DIST_L2, 5)
    return away[pad:-pad, pad:-pad] <= 0.65 * size


def _fill(gray: Gray, mask: Gray) -> Gray:
    """What is masked becomes as what is around it, nearest first."""
    known = (mask == 0).astype(np.float32)
    value = gray * known
    result = gray.astype(np.float32)
    missing = mask > 0
    size = 3.0
    while missing.any() and size < 2 * max(gray.shape):
        weight = cv2.GaussianBlur(known, (0, 0), size)
        now = missing & (weight > 0.02)
        result[now] = (cv2.GaussianBlur(value, (0, 0), size) / np.maximum(weight, 1e-6))[now]
        missing &= ~now
        size *= 2
    return result.round().clip(0, 255).astype(np.uint8)


def _median(gray: Gray, size: float) -> Gray:
    """As if the picture went on beyond its border."""
    width = min(2 * int(size / 2) + 1, 255)
    pad = width // 2
    if pad == 0:
        return gray
    padded = cv2.copyMakeBorder(gray, pad, pad, pad, pad, cv2.BORDER_REFLECT)
    return np.ascontiguousarray(cv2.medianBlur(padded, width)[pad:-pad, pad:-pad])


def _disc(size: float) -> Gray:
    width = max(1, 2 * int(size / 2) + 1)
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))


@dataclass(frozen=True)
class Rule:
    start: float  # the row where it begins, at the left
    fall: float  # rows, for each column
    length: float  # of it, what was found
    thick: float
    darkness: float


def without_rules(ink: Ink, floor: float) -> Ink:
    """Without the straight lines across the page: those of ruled and squared paper, frames, the paper's own edges."""
    across = _erase_rules(ink, floor, [])
    down = _erase_rules(ink.T, floor, across)
    if down and not across:
        _erase_rules(ink, floor, down)  # a lone one may be like these
    return ink


def _erase_rules(ink: Ink, floor: float, crossing: list[Rule]) -> list[Rule]:
    """Those that are about level; returns them. One alone has to be longer than a digit's stroke, or like those it
    crosses, and not to be all that there is."""
    height, width = ink.shape
    inked = np.ascontiguousarray(ink > floor).astype(np.uint8)
    small = _small(inked, 2 * ROUGH)
    length = RULE * small.shape[1]
    thin = small * (_runs(small) <= 6 * THIN * len(small)).astype(np.uint8)  # with strokes that cross it
    long = _reaching(thin, length)
    lines = cv2.HoughLinesP(long, 1, np.pi / 720, int(0.6 * length), minLineLength=length, maxLineGap=2 * OVER * length)
    if lines is None:
        return []
    runs = _runs(inked)
    share = small.shape[1] / width
    found = [_rule(line, share, ink, runs) for line in lines.reshape(-1, 4).tolist()]
    rules = [rule for rule in found if rule is not None and rule.thick <= THIN * min(height, width)]
    if not rules:
        return []
    middles = [rule.start + rule.fall * width / 2 for rule in rules]
    alone = max(middles) - min(middles) < 0.05 * height
    short = max(rule.length for rule in rules) < ACROSS * width
    if alone and short and not _is_like(rules, crossing):
        return []
    faintest = float(np.quantile([rule.darkness for rule in rules], FEW))
    faint = [rule for rule in rules if rule.darkness <= DARKER * faintest]  # what is darker is a 1 on squared paper
    band = np.zeros(ink.shape, np.uint8)
    for rule in faint:
        cv2.line(band, (0, round(rule.start)), (width - 1, round(rule.start + rule.fall * (width - 1))), 1, 1)
    thick = float(np.median([rule.thick for rule in faint]))
    band = cv2.dilate(band, np.ones((2 * int(thick) + 3, 1), np.uint8))
    erased = (band > 0) & (runs <= 1.6 * thick + 1) & (ink <= LIKE * max(rule.darkness for rule in faint))
    left = ((ink > floor) & ~erased).astype(np.uint8)
    if alone and ink[left > 0].sum() <= 0.3 * ink[erased].sum():
        return []
    if short and not alone and _darkness(ink[left > 0]) <= DARKER * _darkness(ink[erased & (ink > floor)]):
        return []  # the pen's: the two 1s of 101, or of 11
    bridges = cv2.morphologyEx(left, cv2.MORPH_CLOSE, np.ones((int(thick) + 3, 3), np.uint8))
    ink[erased & (bridges == 0)] = 0  # but where a stroke goes on, on both sides
    return rules


def _darkness(ink: Ink) -> float:  # (N,)
    return float(np.quantile(ink, 0.75)) if ink.size else 0.0


def _is_like(rules: list[Rule], others: list[Rule]) -> bool:
    """Whether these are about as thick and dark as those that they cross."""
    if not others:
        return False
    thick, dark = (float(np.median([getattr(one, name) for one in others])) for name in ("thick", "darkness"))
    return all(one.thick <= LIKE * thick + 1 and one.darkness <= LIKE * dark for one in rules)


def _reaching(mask: Gray, length: float) -> Gray:
    """What of it belongs to something that long, small gaps aside: the rest only takes time to look through."""
    near = np.ones((3, 2 * int(OVER * length) + 1), np.uint8)
    labels, stats = cv2.connectedComponentsWithStats(cv2.dilate(mask, near))[1:3]
    return mask * (stats[:, cv2.CC_STAT_WIDTH] >= length).astype(np.uint8)[labels]


def _rule(line: list[int], share: float, ink: Ink, runs: NDArray[np.int32]) -> Rule | None:
    """A line, found at that share of the size; None where it is steep, or a row of digits: broken, or ink is near."""
    x0, y0, x1, y1 = line
    fall = (y1 - y0) / max(x1 - x0, 1)
    if abs(fall) >= STEEPEST:
        return None
    x = np.arange(round(x0 / share), min(round(x1 / share) + 1, ink.shape[1]))
    y = (y0 + (x * share - x0) * fall) / share

    def at(offset: float) -> NDArray[np.intp]:
        return np.round(y + offset).astype(int).clip(0, len(ink) - 1)

    # A line that was found is off by a pixel or two.
    hits, darkest = (np.max([of[at(offset), x] for offset in (-2, -1, 0, 1, 2)], axis=0) for of in (runs, ink))
    if (hits > 0).mean() < WHOLE:
        return None
    thick = float(np.median(hits[hits > 0]))
    beside = min(float((runs[at(offset), x] > 0).mean()) for offset in (-thick - 5, thick + 5))
    if beside > BESIDE:
        return None
    return Rule(y0 / share - x0 / share * fall, fall, len(x), thick, float(np.median(darkest)))


def _runs(mask: Gray) -> NDArray[np.int32]:  # (H, W) -> (H, W)
    """For each pixel of the mask, how many of it are above one another there."""
    rows = np.arange(len(mask), dtype=np.int32)[:, None]
    above = np.maximum.accumulate(np.where(mask > 0, -1, rows))
    below = np.minimum.accumulate(np.where(mask > 0, len(mask), rows)[::-1])[::-1]
    return np.where(mask > 0, below - above - 1, 0)


@dataclass
class Part:
    """Ink that hangs together, cut out of the page: where it is, and its ink, in [0, 1], without that of others."""

    left: int
    top: int
    ink: Ink
    darkness: float = 1.0  # the share of the light that its darkest takes

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
    ink = page.ink
    gap = GAP * page.scale if page.scale > 1 else 0.0  # what the shrinking of a picture has broken is near enough
    labels = _connected(ink > page.floor, gap)
    peaks = _peaks(cv2.GaussianBlur(ink, (0, 0), 1.0), labels)
    sizes = np.bincount(labels.ravel(), minlength=len(peaks)).astype(float)
    sizes[0] = 0
    if not sizes.any():
        return []
    inner = sizes.copy()
    for number, place in _at_border(labels):
        if _is_margin(labels[place] == number, place[1].start, place[0].start, ink.shape):
            inner[number] = 0
    weights = inner if inner.any() else sizes
    order = np.argsort(peaks)
    typical = peaks[order][np.searchsorted(np.cumsum(weights[order]), weights.sum() * 0.6)]
    visible = (peaks >= max(FAINT * typical, 1.3 * page.floor)) & (sizes >= 4)
    on_edge = np.bincount(labels.ravel(), (ink < page.edges).ravel(), len(peaks))
    visible &= on_edge < ON_EDGE * np.maximum(sizes, 1)
    low = np.maximum(page.floor, SHARE * peaks)
    solid = (ink > low[labels]) & visible[labels]
    if page.edges.any():
        near = np.ones(2 * [max(1, round(BRIDGE * min(ink.shape)))], np.uint8)
        solid |= (cv2.morphologyEx(solid.astype(np.uint8), cv2.MORPH_CLOSE, near) > 0) & (page.edges > 0)
    numbers = _connected(solid, gap)
    areas = np.bincount(numbers.ravel())[1:]
    places = find_objects(numbers)
    parts = []
    for index in sorted(np.argsort(-areas, kind="stable")[:MOST_PARTS].tolist()):
        place, number = places[index], index + 1
        top, left = place[0].start, place[1].start
        own = numbers[place] == number
        if areas[index] < 4 or _is_margin(own, left, top, ink.shape):
            continue
        peak = peaks[labels[place][own].max()]
        base = 0.5 * page.floor
        values = (ink[place] - base) / (peak - base)
        parts.append(Part(left, top, np.where(own, values, 0).clip(0, 1).astype(np.float32), float(peak)))
    return parts


def _at_border(labels: NDArray[np.int32]) -> list[tuple[int, Any]]:
    """The numbers and places of what touches the picture's border."""
    places = find_objects(labels)
    border = np.concatenate([labels[[0, -1]].ravel(), labels[:, [0, -1]].ravel()])
    return [(number, places[number - 1]) for number in np.unique(border[border > 0]).tolist()]


def _is_margin(own: Mask, left: int, top: int, shape: tuple[int, ...]) -> bool:  # own: (h, w), of (H, W)
    """Along the picture's border, or at it and small: a desk, a shadow's end. A digit that was cut out is large."""
    at_border = False
    for mask, start, wide, high in ((own, left, shape[1], shape[0]), (own.T, top, shape[0], shape[1])):
        height, width = mask.shape
        for is_there, line in ((start <= 1, mask[:, :2]), (start + width >= wide - 1, mask[:, -2:])):
            if is_there:
                at_border = True
                if width < SLIVER * wide and height > 2 * width:
                    return True
                if width < HALF * wide and line.any(axis=1).sum() > ALONG * high:
                    return True
    return at_border and max(own.shape[0] / shape[0], own.shape[1] / shape[1]) < AT_BORDER


def _connected(mask: Mask, gap: float) -> NDArray[np.int32]:  # (H, W) -> (H, W), 0 outside
    """Numbers what hangs together, or is at most `gap` pixels apart."""
    inked = mask.astype(np.uint8)
    if gap < 1:
        return cv2.connectedComponents(inked)[1]
    return cv2.connectedComponents(cv2.dilate(inked, _disc(gap)))[1] * inked


def _peaks(ink: Ink, labels: NDArray[np.int32]) -> NDArray[np.float32]:  # -> (labels,)
    peaks = np.zeros(int(labels.max()) + 1, np.float32)
    inked = labels > 0
    np.maximum.at(peaks, labels[inked], ink[inked])
    return peaks


def as_mnist(ink: Ink) -> Gray:  # (H, W) in [0, 1], cut to its box -> (28, 28), light ink on 0
    """MNIST's own preparation (LeCun, Bottou, Bengio and Haffner 1998, and the data set's page): the ink fitted into
    20x20 keeping its aspect, anti-aliased, then placed in 28x28 so that its centre of mass is at the centre. Before it,
    pens much thinner or thicker than theirs are mended."""
    ink = _mend_strokes(_stretch(_resize(ink, LOOKED_AT)), LOOKED_AT)
    return centre_by_mass(_stretch(_resize(ink, BOX)) * 255)


def as_pair(ink: Ink) -> Gray:  # (H, W) in [0, 1], cut to its box -> (28, 48), light ink on 0
    """Two digits side by side, as a ReadingCNN knows them: each as in `as_mnist`, and both in the middle."""
    ink = _mend_strokes(_stretch(_resize(ink, round(LOOKED_AT * max(1.0, ink.shape[1] / ink.shape[0])))), LOOKED_AT)
    share = min(PAIR[0] / ink.shape[0], PAIR[1] / ink.shape[1])
    ink = _stretch(_resize(ink, round(share * max(ink.shape))))
    above, left = ((whole - inked) // 2 for whole, inked in zip(PAIR_SHAPE, ink.shape, strict=True))
    placed = np.zeros(PAIR_SHAPE, np.uint8)
    placed[above : above + ink.shape[0], left : left + ink.shape[1]] = np.round(ink * 255)
    return placed


def _mend_strokes(ink: Ink, side: float) -> Ink:  # side: pixels of a digit's longer side
    """Thickens or thins strokes far from MNIST's: faded by the way to 20x20, or filling the holes of an 8."""
    width = stroke_width(ink)
    thin, thick = STROKE[0] * side, STROKE[1] * side
    if width < thin:
        return _cropped(cv2.dilate(np.pad(ink, int(thin)), _square(thin - width)))
    if width > thick and min(ink.shape) > 2 * width:  # a 1 is nothing but a stroke: thinned, it would only shrink
        return _cropped(cv2.erode(np.pad(ink, 1), _square(width - thick)))
    return ink


def _cropped(ink: Ink) -> Ink:
    left, top, width, height = cv2.boundingRect((ink > 0.05).astype(np.uint8))
    return ink[top : top + height, left : left + width] if width else ink


def stroke_width(ink: Ink) -> float:
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
