"""A picture -> the numbers on it: which digits, where, and how sure.

The ink's parts are joined to digits and ordered into lines; the network then judges what geometry leaves open: whether
a wide part is one digit or several that touch, and whether something is a digit at all.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations
from math import atan2, cos, degrees, radians, sin
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnist_pl.data.digits import SIDE
from mnist_pl.reading.cuts import NARROW, Cut, between, straight_cuts, winding_cuts
from mnist_pl.reading.ink import PAIR_SHAPE, Gray, Page, Part, as_mnist, as_pair, find_ink, find_parts
from mnist_pl.reading.pictures import is_prepared, load

if TYPE_CHECKING:
    from torch import Tensor

    from mnist_pl.models import DigitClassifier

Box = tuple[int, int, int, int]  # left, top, right, bottom: pixels of the picture; right and bottom are not in it
Probabilities = NDArray[np.float32]

TOGETHER, PIXELS = 500, 16_000_000  # pictures that are decoded before the network gets them, and their pixels, at most
AT_ONCE = 250  # images for the network; small enough for the activations to stay in a processor's cache
SURE = 0.8  # confidence below which an answer is "unsure"
# ... and below which a part is no digit; one that is alone on a picture, or among digits of its size, is likelier meant
# to be one.
NO_DIGIT, NO_DIGIT_ALONE, NO_DIGIT_AMONG = 0.5, 0.2, 0.15
OF_SIZE = 0.5, 1.4  # times the digits' height
LOOK_AGAIN = 0.95  # confidence below which the network sees a part moved to each side, too
MOSTLY = 0.6  # of what is on a picture, by height, has to be digits, for it to be a number
DIM = 0.3  # of the darkest digit's darkness: what is fainter is the page's back, or what is left of a rule
LARGE = 0.25  # of the shorter side: strokes of a digit that high may be wider than a shadow
SPECK = 0.22  # of the digits' height: what is smaller than that is none
LONG = 2.0  # times that, and as low as a speck: an underline
LOOSE = 0.75  # of the digits' height: what is lower than that may be a piece of one
NEAR = 0.25  # of the digits' height: how far a piece may be from the rest
WITH_PIECE, HALVES = 1.5, 2.2  # times the digits' height, at most, with a piece; of two pieces that are no digits alone
SAME_PEN = 0.4  # of a digit's darkness: what is fainter is no piece of it
MOST_TRIED = 40  # parts to mend or to cut: where there are more, it is a page of something else
WIDE = 1.35  # a digit's width over the digits' height, at most
FAR_TOO_WIDE = 2.0  # over that, it is several, whatever the network says
SEVERAL = 0.9  # what is narrower than that for its height is not cut
MERGED = 0.6  # ... or than that, where it is no digit, but among others
LONE = 1.25  # nor what is alone, as an M, but where the network reads two digits in it
PRICE = 0.3  # of a cut, for each stroke that it goes through, in log probability
BROAD, NOT_BROAD = 2.0, 1.0  # more, for what it makes wider than that for the digits' height
ONE, ONE_OF_TWO = 0.7, 0.2  # more, for what it makes a 1 of: any stroke is one; less so where two are read together
PAIR_WIDTHS = 0.7, 2.2  # of two digits that touch, over the digits' height
# How likely the cuts beside a piece are right; where it is all there is, as a W; and is no wider than a digit.
RIGHT_CUT, RIGHT_CUT_ALONE, RIGHT_CUT_LONE = 0.9, 0.75, 0.6


@dataclass(frozen=True)
class Digit:
    line: int  # from 0, top to bottom
    place: int  # from 0, left to right
    box: Box
    image: Gray  # (28, 28), light on 0: what the network saw
    probabilities: Probabilities  # (10,)

    @property
    def digit(self) -> int:
        return int(self.probabilities.argmax())

    @property
    def confidence(self) -> float:
        return float(self.probabilities.max())

    def as_dict(self) -> dict[str, Any]:
        """Of plain values, for JSON."""
        words = {name: getattr(self, name) for name in ("line", "place", "digit", "confidence", "box")}
        return {**words, "probabilities": self.probabilities.tolist()}


@dataclass(frozen=True)
class Answer:
    """`text` is "7", "1357", or lines as "12345/67890"; empty where there is no digit.

    `confidence`, in [0, 1], is that the whole of it is right; `note` is "blank", "not a digit", "unsure" or empty.
    """

    text: str
    confidence: float
    note: str
    digits: tuple[Digit, ...] = ()
    refused: tuple[Digit, ...] = ()  # what else is on the picture, and was not taken for a digit

    def as_dict(self) -> dict[str, Any]:
        digits = [digit.as_dict() for digit in self.digits]
        return {"answer": self.text, "confidence": self.confidence, "note": self.note, "digits": digits}


Seen = tuple[Part, Gray, Probabilities]  # a part, as the network sees it, and what it says
Edge = tuple[int, int]  # from a cut of some, from left to right, to another

WHOLE = Part(0, 0, np.zeros((SIDE, SIDE), np.float32))


def read_files(
    model: "DigitClassifier", paths: Sequence[str | os.PathLike[str]]
) -> Iterator[tuple[str, "Answer | ValueError"]]:
    """Each picture's path, in their order, and its answer, or why it cannot be read. The next ones are decoded while
    the network looks at those before."""
    with ThreadPoolExecutor(1) as network:
        waiting: list[Future[list[tuple[str, Answer | ValueError]]]] = []
        for group in _load_in_groups(paths):
            waiting.append(network.submit(_read_group, model, group))
            if len(waiting) > 2:
                yield from waiting.pop(0).result()
        for future in waiting:
            yield from future.result()


Loaded = list[tuple[str, Gray | ValueError]]


def _load_in_groups(paths: Sequence[str | os.PathLike[str]]) -> Iterator[Loaded]:
    group: Loaded = []
    pixels = 0
    for path in paths:
        try:
            gray = load(path)
            pixels += gray.size
            group.append((os.fspath(path), gray))
        except ValueError as error:
            group.append((os.fspath(path), error))
        if len(group) >= TOGETHER or pixels >= PIXELS:
            yield group
            group, pixels = [], 0
    yield group


def _read_group(model: "DigitClassifier", group: Loaded) -> list[tuple[str, Answer | ValueError]]:
    """Those in MNIST's form are shown to the network together: ten thousand such digits are no rare folder."""
    small = [i for i, (_, gray) in enumerate(group) if isinstance(gray, np.ndarray) and gray.shape == (SIDE, SIDE)]
    images = np.array([group[i][1] for i in small], np.uint8).reshape(-1, SIDE, SIDE)
    ready = is_prepared(images)
    seen = zip(np.array(small, int)[ready].tolist(), images[ready], classify(model, images[ready]), strict=True)
    answers = {i: _answer([[(WHOLE, image, said)]]) for i, image, said in seen}
    return [
        (path, gray if isinstance(gray, ValueError) else answers[i] if i in answers else read(model, gray))
        for i, (path, gray) in enumerate(group)
    ]


def read(model: "DigitClassifier", gray: Gray) -> Answer:  # (H, W)
    """What is in MNIST's form already is shown to the network as it is."""
    if gray.shape == (SIDE, SIDE) and is_prepared(gray[None])[0]:
        return _answer([[(WHOLE, gray, classify(model, gray[None])[0])]])
    first = _read(model, gray)
    if first.note == "" and max(digit.box[3] - digit.box[1] for digit in first.digits) < LARGE * min(gray.shape):
        return first
    second = _read(model, gray, smooth=True)
    if first.note == "blank":
        return second if second.text else _read(model, gray, other=True)
    # Strokes as wide as a shadow: the first look may have seen but pieces of what the second sees.
    return second if second.confidence >= SURE and second.text and _covers(second, first) else first


def _covers(whole: Answer, pieces: Answer) -> bool:
    """Whether what one has found lies within digits of the other; or within all of them, where it has found none."""
    starts, ends = np.split(np.array([digit.box for digit in whole.digits]), 2, axis=1)  # (N, 2): x and y
    slack = 0.1 * (ends - starts)[:, 1].max()
    if not pieces.text:
        starts, ends = starts.min(axis=0), ends.max(axis=0)
    boxes = np.array([digit.box for digit in (*pieces.digits, *pieces.refused)]).reshape(-1, 1, 4)
    inside = (boxes[..., :2] >= starts - slack) & (boxes[..., 2:] <= ends + slack)
    return bool(inside.all(axis=2).any(axis=1).all())


def _read(model: "DigitClassifier", gray: Gray, **look: bool) -> Answer:
    page = find_ink(gray, **look)
    parts, tall = find_digits(page)
    seen = _mend(model, _look(model, parts), tall)
    alone = len(seen) == 1
    lines = in_lines(seen, tall)
    if sum(_is_wide(one, tall, alone) for one in seen) <= MOST_TRIED:
        lines = [[one for seen in line for one in _cut(model, seen, tall, alone)] for line in lines]
    return _answer(lines, page)


def find_digits(page: Page) -> tuple[list[Part], float]:
    """By the ink's geometry alone: what may be a digit, or several that touch; and the digits' height in pixels."""
    parts = find_parts(page)
    tall = typical_height(parts)
    parts = [part for part in parts if part.width < LONG * tall or part.height > SPECK * tall]  # no underlines
    digits = join(parts, tall)
    return [digit for digit in digits if max(digit.height, digit.width) >= SPECK * tall], tall


def _look(model: "DigitClassifier", parts: Sequence[Part]) -> list[Seen]:
    images = np.array([as_mnist(part.ink) for part in parts], np.uint8).reshape(-1, SIDE, SIDE)
    said = classify(model, images)
    unsure = said.max(axis=1) < LOOK_AGAIN
    said[unsure] = classify(model, images[unsure], shifts=1)
    return list(zip(parts, images, said, strict=True))


def _mend(model: "DigitClassifier", seen: list[Seen], tall: float) -> list[Seen]:
    """Joins what is no digit alone to a neighbour, where both together are one."""
    while sum(one[2].max() < NO_DIGIT for one in seen) <= MOST_TRIED:
        pairs = [(i, j) for i, j in permutations(range(len(seen)), 2) if seen[i][2].max() < NO_DIGIT]
        pairs = [(i, j) for i, j in pairs if _may_belong(seen[i][0], seen[j][0], tall, 2 * NEAR, HALVES)]
        tried = _look(model, [union(seen[i][0], seen[j][0]) for i, j in pairs])
        sure = [max(SURE, seen[j][2].max() - 0.1) for _, j in pairs]
        scores = [one[2].max() * (one[2].max() > least) for one, least in zip(tried, sure, strict=True)]
        if not any(scores):
            break
        best = int(np.argmax(scores))
        seen = [one for number, one in enumerate(seen) if number not in pairs[best]] + [tried[best]]
    return seen


def classify(model: "DigitClassifier", images: Gray, shifts: int = 0) -> Probabilities:  # (N, 28, 28) -> (N, 10)
    from mnist_pl.models.looks import say_mean

    return _ask(lambda part: say_mean(model, part, shifts), images)


def _ask(network: "Callable[[Tensor], Tensor]", images: Gray) -> Probabilities:
    """What it gives log probabilities of, some images at a time."""
    import torch

    from mnist_pl.data import to_float

    parts = torch.from_numpy(images).split(AT_ONCE)
    with torch.inference_mode():
        return torch.cat([network(to_float(part)).exp() for part in parts]).numpy()


def _answer(lines: list[list[Seen]], page: Page | None = None) -> Answer:
    """Without what is no digit."""
    if not any(lines):
        return Answer("", 1.0, "blank")
    sure = [part.darkness for line in lines for part, _, said in line if said.max() >= SURE]
    lines = [[seen for seen in line if seen[0].darkness >= DIM * max(sure, default=0)] for line in lines]
    least = NO_DIGIT if sum(map(len, lines)) > 1 else NO_DIGIT_ALONE
    heights = [part.height for line in lines for part, _, said in line if said.max() >= least]
    kept, dropped = [], []
    for line in lines:
        among_digits = any(seen[2].max() >= least for seen in line)
        meant = [
            seen[2].max() >= least or among_digits and _may_be_meant(seen, float(np.median(heights))) for seen in line
        ]
        kept.append([seen for seen, taken in zip(line, meant, strict=True) if taken])
        dropped.append([seen for seen, taken in zip(line, meant, strict=True) if not taken])
    kept = [line for line in kept if line]
    counted = [part.height * (1.0 if said.max() >= least else said.max()) for line in kept for part, _, said in line]
    share = float(sum(counted)) / sum(part.height for line in lines for part, _, _ in line)
    digits, refused = _digits(kept, page), _digits(dropped, page)
    if share < MOSTLY:
        return Answer("", 1 - share, "not a digit", (), (*digits, *refused))
    confidence = share * float(np.prod([digit.confidence for digit in digits]))
    text = "/".join("".join(str(int(seen[2].argmax())) for seen in line) for line in kept)
    return Answer(text, confidence, "unsure" if confidence < SURE else "", digits, refused)


def _may_be_meant(seen: Seen, tall: float) -> bool:
    """Whether something the network does not know is a digit by its size."""
    part, _, said = seen
    least, most = (share * tall for share in OF_SIZE)
    return said.max() >= NO_DIGIT_AMONG and least <= part.height <= most and part.width <= most


def _digits(lines: list[list[Seen]], page: Page | None) -> tuple[Digit, ...]:
    return tuple(
        Digit(row, place, _box(part, page), image, probabilities)
        for row, line in enumerate(lines)
        for place, (part, image, probabilities) in enumerate(line)
    )


def _box(part: Part, page: Page | None) -> Box:
    """In the picture's pixels."""
    if page is None:
        return part.left, part.top, part.right, part.bottom
    left, right = (page.left + round(x / page.scale) for x in (part.left, part.right))
    top, bottom = (page.top + round(y / page.scale) for y in (part.top, part.bottom))
    return left, top, right, bottom


def typical_height(parts: Sequence[Part]) -> float:
    """Of the digits, in pixels: that of the part in the middle, each counted by its ink."""
    if not parts:
        return 0.0
    by_height = sorted(parts, key=lambda part: part.height)
    ink = np.cumsum([float(part.ink.sum()) for part in by_height])
    return float(by_height[int(np.searchsorted(ink, ink[-1] / 2))].height)


def join(parts: list[Part], tall: float) -> list[Part]:
    """Joins the pieces of a digit: the loose bar of a 5, an open 4, a stroke that was broken."""
    joined: list[Part] = []
    for part in sorted(parts, key=lambda part: -part.height * part.width):
        near = [i for i, other in enumerate(joined) if _is_inside(part, other)][:1]  # the eyes of a face, which is no 0
        if not near and part.height < LOOSE * tall:
            near = [i for i, other in enumerate(joined) if _belongs(part, other, tall)]
        if near:
            nearest = min(near, key=lambda i: _gap(part, joined[i]))
            joined[nearest] = union(part, joined[nearest])
        else:
            joined.append(part)
    return joined


def _is_inside(part: Part, other: Part) -> bool:
    across = other.left <= part.left and part.right <= other.right
    return across and other.top <= part.top and part.bottom <= other.bottom


def _belongs(piece: Part, other: Part, tall: float) -> bool:
    """Whether it is a piece of that digit: near it, above or below rather than beside it, and not too large with it."""
    over = min(piece.right, other.right) - max(piece.left, other.left)
    wide = max(piece.right, other.right) - min(piece.left, other.left)
    is_above = over >= 0.3 * min(piece.width, other.width) and wide <= WIDE * max(tall, other.height)
    return is_above and _may_belong(piece, other, tall, NEAR, WITH_PIECE)


def _may_belong(piece: Part, other: Part, tall: float, near: float, high: float) -> bool:
    top, bottom = min(piece.top, other.top), max(piece.bottom, other.bottom)
    left, right = min(piece.left, other.left), max(piece.right, other.right)
    fits = bottom - top <= high * max(tall, other.height) and right - left <= WIDE * max(tall, bottom - top)
    return fits and _gap(piece, other) <= near * tall and piece.darkness >= SAME_PEN * other.darkness


def _gap(one: Part, other: Part) -> float:
    """Between their boxes, in pixels."""
    across = max(one.left, other.left) - min(one.right, other.right)
    down = max(one.top, other.top) - min(one.bottom, other.bottom)
    return float(np.hypot(max(across, 0), max(down, 0)))


def union(*parts: Part) -> Part:
    left, top = min(part.left for part in parts), min(part.top for part in parts)
    ink = np.zeros((max(part.bottom for part in parts) - top, max(part.right for part in parts) - left), np.float32)
    for part in parts:
        place = ink[part.top - top : part.bottom - top, part.left - left : part.right - left]
        np.maximum(place, part.ink, out=place)
    return Part(left, top, ink, max(part.darkness for part in parts))


def in_lines(seen: list[Seen], tall: float) -> list[list[Seen]]:
    """Top to bottom, each left to right. The lines may slope: as they are fewest, and then the smoothest."""
    angles = radians(0.0), radians(slope([part for part, _, _ in seen], tall))
    found = [(_in_lines(seen, tall, angle), angle) for angle in angles]
    return min(found, key=lambda one: (len(one[0]), _jumps(*one)))[0]


def _jumps(lines: list[list[Seen]], angle: float) -> float:
    """Pixels by which the digits are above or below those before them, all together."""
    heights = [[_middle(one, angle)[1] for one in line] for line in lines]
    return sum(abs(y - next_y) for line in heights for y, next_y in pairwise(line))


def _middle(one: Seen, angle: float) -> tuple[float, float]:
    """Of what is seen: along a line that falls by that, and across it."""
    x, y = (one[0].left + one[0].right) / 2, (one[0].top + one[0].bottom) / 2
    return x * cos(angle) + y * sin(angle), y * cos(angle) - x * sin(angle)


def _in_lines(seen: list[Seen], tall: float, angle: float) -> list[list[Seen]]:
    lines: list[list[Seen]] = []
    for one in sorted(seen, key=lambda one: _middle(one, angle)):
        y = _middle(one, angle)[1]
        away = [abs(float(np.mean([_middle(last, angle)[1] for last in line[-2:]])) - y) for line in lines]
        nearest = int(np.argmin(away)) if away else -1
        if nearest >= 0 and away[nearest] < 0.55 * max(tall, *(it[0].height for it in [one, *lines[nearest][-2:]])):
            lines[nearest].append(one)
        else:
            lines.append([one])
    return sorted(lines, key=lambda line: np.mean([_middle(one, angle)[1] for one in line]))


def slope(digits: list[Part], tall: float) -> float:
    """Degrees by which the lines fall to the right: the median of the ways from each digit to its next."""
    middles = np.array([((d.left + d.right) / 2, (d.top + d.bottom) / 2) for d in digits])
    angles = []
    for middle in middles:
        away = middles - middle
        ahead = away[(away[:, 0] > 0.2 * tall) & (np.abs(away[:, 1]) < 1.3 * away[:, 0])]
        if len(ahead):
            nearest = ahead[np.argmin(np.hypot(*ahead.T))]
            if np.hypot(*nearest) < 3 * tall:
                angles.append(degrees(atan2(nearest[1], nearest[0])))
    return float(np.median(angles)) if angles else 0.0


def _is_wide(seen: Seen, tall: float, alone: bool) -> bool:
    """Whether it may be several, by its width; the less it looks like a digit, the narrower that may be."""
    part, _, said = seen
    is_one = said.max() >= NO_DIGIT or alone
    return part.width >= (WIDE if said.max() >= SURE else SEVERAL if is_one else MERGED) * max(tall, part.height)


def _cut(model: "DigitClassifier", whole: Seen, tall: float, alone: bool) -> list[Seen]:
    """As one digit or several that touch, as the network finds likelier: the best way through all cuts."""
    part, _, probabilities = whole
    is_lone = alone and part.width < LONE * part.height
    if not _is_wide(whole, tall, alone) or is_lone and (probabilities.max() >= NO_DIGIT or not model.reads_pairs):
        return [whole]
    score, several = _cut_along(model, part, tall, straight_cuts(part, tall) + winding_cuts(part, tall))
    strokes = sum(seen[2].argmax() == 1 for seen in several)
    if len(several) < 2 or strokes > (len(several) + 1) / 2:  # a zigzag
        return [whole]
    too_wide = part.width > FAR_TOO_WIDE * max(tall, part.height)
    is_one = np.sort(probabilities)[-2:].sum()  # whichever of two it may be
    if not too_wide and score <= np.log(is_one):
        return [whole]
    right = RIGHT_CUT_LONE if is_lone else RIGHT_CUT_ALONE if alone else RIGHT_CUT
    return [(piece, image, right * said + (1 - right) / len(said)) for piece, image, said in several]


def _cut_along(model: "DigitClassifier", part: Part, tall: float, cuts: list[Cut]) -> tuple[float, list[Seen]]:
    """The likeliest digits that some of the cuts make of it, if any, and the mean of their scores. What is between two
    cuts is one digit, or two that the network reads together."""
    middle = part.height // 2
    ends = [Cut(np.full(part.height, at), 0.0) for at in (0, part.width)]
    cuts = [ends[0], *sorted(cuts, key=lambda cut: cut.columns[middle]), ends[1]]
    pieces = _pieces(part, cuts, NARROW * tall, WIDE * tall)
    pieces.pop((0, len(cuts) - 1), None)
    alone = dict(zip(pieces, _look(model, list(pieces.values())), strict=True))
    ways = [(edge, [one]) for edge, one in alone.items() if one[2].max() >= NO_DIGIT]
    if model.reads_pairs:
        ways += _pairs(model, part, tall, cuts, alone)
    best: dict[int, tuple[float, list[Seen]]] = {0: (0.0, [])}
    for (i, j), way in sorted(ways, key=lambda one: one[0]):
        if i in best:
            one = ONE if len(way) == 1 else ONE_OF_TWO
            price = PRICE * cuts[j].ink + sum(one for _, _, says in way if says.argmax() == 1)
            price += BROAD * sum(max(0.0, piece.width / tall - NOT_BROAD) for piece, _, _ in way)
            score = best[i][0] + sum(float(np.log(says.max())) for _, _, says in way) - price
            if j not in best or score > best[j][0]:
                best[j] = score, [*best[i][1], *way]
    score, several = best.get(len(cuts) - 1, (-np.inf, []))
    return score / max(len(several), 1), several


def _pieces(part: Part, cuts: list[Cut], narrowest: float, widest: float) -> dict[Edge, Part]:
    """What is between any two cuts, as far apart, and about as high as the whole."""
    pieces = {}
    for i, j in combinations(range(len(cuts)), 2):
        if narrowest <= np.median(cuts[j].columns - cuts[i].columns) <= widest:
            piece = between(part, cuts[i], cuts[j])
            if piece is not None and piece.height >= 0.5 * part.height:
                pieces[i, j] = piece
    return pieces


def _pairs(
    model: "DigitClassifier", part: Part, tall: float, cuts: list[Cut], alone: dict[Edge, Seen]
) -> list[tuple[Edge, list[Seen]]]:
    """Two digits between two cuts, which the network reads together, where the likeliest cut near their middle parts
    them. `alone` is what it says of the pieces between two cuts."""
    wide = _pieces(part, cuts, PAIR_WIDTHS[0] * tall, PAIR_WIDTHS[1] * tall)
    at = [float(np.median(cut.columns)) for cut in cuts]
    images = np.array([as_pair(piece.ink) for piece in wide.values()], np.uint8).reshape(-1, *PAIR_SHAPE)
    said = _ask(model.read_pairs, images)  # (N, 2, 10)
    found: list[tuple[Edge, list[Seen]]] = []
    for (i, j), both in zip(wide, said, strict=True):
        if both.max(axis=1).min() < NO_DIGIT:
            continue
        left, right = both.argmax(axis=1)
        scores = {
            k: np.log(alone[i, k][2][left] * alone[k, j][2][right]) - abs(2 * at[k] - at[i] - at[j]) / (at[j] - at[i])
            for k in range(i + 1, j)
            if (i, k) in alone and (k, j) in alone
        }
        if scores:
            k = max(scores, key=lambda k: scores[k])
            found.append(((i, j), [(*alone[i, k][:2], both[0]), (*alone[k, j][:2], both[1])]))
    return found
