"""A picture -> the numbers on it: which digits, where, and how sure.

The ink's parts are joined to digits and ordered into lines; the network then judges what geometry leaves open: whether
a wide part is one digit or several that touch, and whether something is a digit at all.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import atan2, cos, degrees, radians, sin
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnist_pl.data.digits import SIDE
from mnist_pl.reading.ink import Gray, Ink, Page, Part, as_mnist, find_ink, find_parts
from mnist_pl.reading.pictures import is_prepared, load

if TYPE_CHECKING:
    from mnist_pl.models import DigitClassifier

Box = tuple[int, int, int, int]  # left, top, right, bottom: pixels of the picture; right and bottom are not in it
Probabilities = NDArray[np.float32]

TOGETHER, PIXELS = 500, 16_000_000  # pictures that are decoded before the network gets them, and their pixels, at most
AT_ONCE = 250  # images for the network; small enough for the activations to stay in a processor's cache
SURE, NO_DIGIT = 0.8, 0.5  # confidences below which an answer is "unsure", and below which it is none
SPECK = 0.22  # of the digits' height: what is smaller than that is none
LOOSE = 0.75  # of the digits' height: what is lower than that may be a piece of one
NEAR = 0.25  # of the digits' height: how far a piece may be from the rest
CUTS = 8  # at most, that are tried in a part
NARROW, WIDE = 0.12, 1.35  # a digit's width over the digits' height, at least and at most
PRICE = 0.7  # of a cut, in log probability: several digits have to be that much likelier than one


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
        """Of plain values, for JSON."""
        digits = [
            {
                **{name: getattr(digit, name) for name in ("line", "place", "digit", "confidence", "box")},
                "probabilities": digit.probabilities.tolist(),
            }
            for digit in self.digits
        ]
        return {"answer": self.text, "confidence": self.confidence, "note": self.note, "digits": digits}


Seen = tuple[Part, Gray, Probabilities]  # a part, as the network sees it, and what it says

WHOLE = Part(0, 0, np.zeros((SIDE, SIDE), np.float32))


def read_files(
    model: "DigitClassifier", paths: Sequence[str | os.PathLike[str]]
) -> Iterator[tuple[str, "Answer | ValueError"]]:
    """Each picture's path, in their order, and its answer, or why it cannot be read.

    The next ones are decoded while the network looks at those before.
    """
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
    said = iter(classify(model, images[ready]))
    answers: dict[int, Answer] = {}
    for i, image, is_ready in zip(small, images, ready, strict=True):
        if is_ready:
            answers[i] = _answer([[(WHOLE, image, next(said))]], 1.0)
    return [
        (path, gray if isinstance(gray, ValueError) else answers[i] if i in answers else read(model, gray))
        for i, (path, gray) in enumerate(group)
    ]


def read(model: "DigitClassifier", gray: Gray) -> Answer:  # (H, W)
    """What is in MNIST's form already is shown to the network as it is."""
    if gray.shape == (SIDE, SIDE) and is_prepared(gray[None])[0]:
        return _answer([[(WHOLE, gray, classify(model, gray[None])[0])]], 1.0)
    page = find_ink(gray)
    lines, tall = find_digits(page)
    return _answer([_look(model, line, tall) for line in lines], 1 / page.scale)


def find_digits(page: Page) -> tuple[list[list[Part]], float]:
    """By the ink's geometry alone: lines, top to bottom, of parts, left to right; and the digits' height in pixels."""
    parts = find_parts(page)
    tall = typical_height(parts)
    large = [part for part in parts if max(part.height, part.width) >= SPECK * tall]
    return in_lines(join(large, tall), tall), tall


def classify(model: "DigitClassifier", images: Gray) -> Probabilities:  # (N, 28, 28) -> (N, 10)
    import torch

    from mnist_pl.data import to_float

    parts = torch.from_numpy(images).split(AT_ONCE)
    with torch.inference_mode():
        return torch.cat([model(to_float(part)).softmax(dim=1) for part in parts]).numpy()


def _answer(lines: list[list[Seen]], scale: float) -> Answer:
    """Without what is no digit. `scale` brings a box back to the picture's pixels."""
    if not any(lines):
        return Answer("", 1.0, "blank")
    kept = [line for line in ([seen for seen in line if seen[2].max() >= NO_DIGIT] for line in lines) if line]
    digits = _digits(kept, scale)
    refused = _digits([[seen for seen in line if seen[2].max() < NO_DIGIT] for line in lines], scale)
    if not kept:
        return Answer("", 1 - max(digit.confidence for digit in refused), "not a digit", (), refused)
    confidence = float(np.prod([digit.confidence for digit in digits]))
    text = "/".join("".join(str(int(seen[2].argmax())) for seen in line) for line in kept)
    return Answer(text, confidence, "unsure" if confidence < SURE else "", digits, refused)


def _digits(lines: list[list[Seen]], scale: float) -> tuple[Digit, ...]:
    return tuple(
        Digit(row, place, _box(part, scale), image, probabilities)
        for row, line in enumerate(lines)
        for place, (part, image, probabilities) in enumerate(line)
    )


def _box(part: Part, scale: float) -> Box:
    left, top, right, bottom = (round(value * scale) for value in (part.left, part.top, part.right, part.bottom))
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
    parts = sorted(parts, key=lambda part: -part.height)
    joined: list[Part] = []
    for part in parts:
        if part.height < LOOSE * tall:
            near = [other for other in joined if _belongs(part, other, tall)]
            if near:
                other = min(near, key=lambda other: _gap(part, other))
                joined[next(i for i, one in enumerate(joined) if one is other)] = union(part, other)
                continue
        joined.append(part)
    return joined


def _belongs(piece: Part, other: Part, tall: float) -> bool:
    """Whether it is a piece of that digit: near it, above or below rather than beside it, and not too large with it."""
    top, bottom = min(piece.top, other.top), max(piece.bottom, other.bottom)
    left, right = min(piece.left, other.left), max(piece.right, other.right)
    over = min(piece.right, other.right) - max(piece.left, other.left)
    if bottom - top > 1.4 * tall or right - left > WIDE * tall:
        return False
    if over < 0.3 * min(piece.width, other.width):
        return False
    return _gap(piece, other) <= NEAR * tall


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
    return Part(left, top, ink)


def in_lines(digits: list[Part], tall: float) -> list[list[Part]]:
    """Top to bottom, each left to right; the lines may slope."""
    if not digits:
        return []
    angle = slope(digits, tall)
    across, down = cos(radians(angle)), sin(radians(angle))
    places = {id(d): _turn((d.left + d.right) / 2, (d.top + d.bottom) / 2, across, down) for d in digits}
    lines: list[list[Part]] = []
    for digit in sorted(digits, key=lambda digit: places[id(digit)][0]):
        y = places[id(digit)][1]
        near = [line for line in lines if abs(places[id(line[-1])][1] - y) < 0.6 * tall]
        if near:
            min(near, key=lambda line: abs(places[id(line[-1])][1] - y)).append(digit)
        else:
            lines.append([digit])
    return sorted(lines, key=lambda line: np.mean([places[id(digit)][1] for digit in line]))


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


def _turn(x: float, y: float, across: float, down: float) -> tuple[float, float]:
    return x * across + y * down, y * across - x * down


def _look(model: "DigitClassifier", line: list[Part], tall: float) -> list[Seen]:
    """Shows the network a line; parts that it does not take for a digit, or that are too wide, are cut."""
    images = np.stack([as_mnist(part.ink) for part in line])
    seen: list[Seen] = list(zip(line, images, classify(model, images), strict=True))
    found: list[Seen] = []
    for part, image, probabilities in seen:
        wide = part.width > WIDE * tall or (part.width > 0.8 * tall and probabilities.max() < SURE)
        found += _cut(model, (part, image, probabilities), tall) if wide else [(part, image, probabilities)]
    return found


def _cut(model: "DigitClassifier", whole: Seen, tall: float) -> list[Seen]:
    """As one digit or several, as the network finds likelier: the best way through all cuts."""
    part = whole[0]
    borders = [0, *places_to_cut(part.ink, tall), part.width]
    pieces: dict[tuple[int, int], tuple[Part, Gray]] = {}
    for i, start in enumerate(borders):
        for end in borders[i + 1 :]:
            if NARROW * tall <= end - start <= WIDE * tall and end - start < part.width:
                piece = _between(part, start, end)
                if piece is not None and piece.height >= 0.5 * part.height:
                    pieces[start, end] = piece, as_mnist(piece.ink)
    if not pieces:
        return [whole]
    said = dict(zip(pieces, classify(model, np.stack([image for _, image in pieces.values()])), strict=True))
    best: dict[int, tuple[float, list[Seen]]] = {0: (PRICE, [])}
    for end in borders[1:]:
        for start in borders:
            if (start, end) in pieces and start in best:
                score = best[start][0] + float(np.log(said[start, end].max())) - PRICE
                if end not in best or score > best[end][0]:
                    best[end] = score, [*best[start][1], (*pieces[start, end], said[start, end])]
    score, several = best.get(part.width, (-np.inf, []))
    return several if score > np.log(whole[2].max()) else [whole]


def places_to_cut(ink: Ink, tall: float) -> list[int]:
    """Columns where there is least ink around."""
    profile = np.convolve(ink.sum(axis=0), np.ones(3) / 3, mode="same")
    margin = max(2, int(NARROW * tall))
    reach = max(1, int(0.1 * tall))
    inner = range(margin, len(profile) - margin)
    least = [x for x in inner if profile[x] <= profile[max(0, x - reach) : x + reach + 1].min()]
    apart: list[int] = []
    for x in sorted(least, key=lambda x: profile[x]):
        if all(abs(x - other) > reach for other in apart):
            apart.append(x)
    return sorted(apart[:CUTS])


def _between(part: Part, start: int, end: int) -> Part | None:
    ink = part.ink[:, start:end]
    rows, columns = np.flatnonzero(ink.max(axis=1) > 0.25), np.flatnonzero(ink.max(axis=0) > 0.25)
    if len(rows) == 0:
        return None
    top, left = int(rows[0]), int(columns[0])
    return Part(part.left + start + left, part.top + top, ink[top : rows[-1] + 1, left : columns[-1] + 1])
