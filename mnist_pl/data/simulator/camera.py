"""Strokes on a page -> a picture file, as a pen, paper, light, lens and file format make one of it.

Lengths of the page are in units, the height of a digit. Colours are RGB, 0 to 255.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from mnist_pl.data.simulator.strokes import AROUND, Field

Pixels = NDArray[np.float32]
Matrix = NDArray[np.float64]  # 3x3
Color = tuple[float, float, float]


class Pen(NamedTuple):
    colors: Sequence[Color]
    widths: tuple[float, float]  # units
    cover: tuple[float, float]  # how much of the paper's colour it takes away
    grain: float = 0.0  # how much of the paper's tooth shows in a stroke


class Paper(NamedTuple):
    colors: Sequence[Color]
    tooth: float  # standard deviation of its fine texture
    clouds: float  # of its coarse one


BLACK, BLUE, DARK_BLUE, RED, GREEN = (28, 28, 32), (38, 62, 158), (30, 38, 92), (178, 38, 44), (22, 98, 62)
PENS = {
    "pencil": Pen([(78, 78, 84), (66, 66, 70)], (0.045, 0.08), (0.6, 0.85), 0.5),
    "faint pencil": Pen([(88, 88, 94)], (0.045, 0.08), (0.28, 0.42), 0.4),
    "ballpoint": Pen([BLUE, BLUE, DARK_BLUE, BLACK, RED], (0.035, 0.065), (0.75, 0.95), 0.12),
    "gel pen": Pen([BLACK, DARK_BLUE, BLACK, GREEN], (0.05, 0.085), (0.9, 1.0)),
    "fountain pen": Pen([(24, 40, 118), (30, 30, 46)], (0.05, 0.11), (0.75, 0.95), 0.08),
    "felt pen": Pen([BLACK, BLACK, BLUE, RED, GREEN], (0.1, 0.17), (0.88, 1.0), 0.04),
    "marker": Pen([BLACK, (40, 40, 40)], (0.14, 0.21), (0.85, 0.98), 0.2),
}
PEN_SHARES = (0.17, 0.07, 0.27, 0.16, 0.1, 0.15, 0.08)
PAPERS = {
    "white": Paper([(246, 246, 244), (250, 250, 250), (240, 242, 246)], 0.008, 0.008),
    "cream": Paper([(246, 238, 216), (242, 232, 204)], 0.012, 0.012),
    "recycled": Paper([(214, 210, 202), (206, 206, 200)], 0.03, 0.012),
    "coloured": Paper([(250, 232, 120), (196, 224, 244), (246, 204, 212), (204, 236, 204)], 0.01, 0.01),
    "rough": Paper([(224, 222, 210), (232, 228, 220)], 0.035, 0.02),
    "kraft": Paper([(196, 164, 122), (204, 176, 138)], 0.03, 0.025),
    "board": Paper([(44, 66, 56), (40, 44, 48), (56, 78, 66)], 0.03, 0.1),
}
PAPER_SHARES = (0.5, 0.16, 0.1, 0.1, 0.09, 0.05, 0.0)
CHALK = Pen([(236, 236, 230), (240, 228, 150), (226, 226, 226)], (0.07, 0.13), (0.75, 0.95), 0.45)
STYLUS = Pen([(0, 0, 0)], (0.035, 0.16), (1.0, 1.0))
RULES = ((150, 176, 214), (178, 190, 200), (196, 168, 190), (130, 150, 170))
TEXTURES = ("wood", "cloth", "stones")
DESKS = ((66, 46, 32), (24, 24, 26), (104, 78, 56), (40, 52, 78), (120, 116, 110))
# What may take a picture, or make one without a camera.
MEDIA = {"photo": 0.63, "scan": 0.08, "drawn": 0.1, "dark screen": 0.06}
MEDIA |= {"board": 0.05, "transparent": 0.04, "pasted": 0.04}  # shares


@dataclass
class Look:
    """How one picture comes about. `marks` are words for what makes it hard."""

    medium: str
    paper: str
    pen: str
    width: float  # of the pen, units
    color: Color  # of the ink
    cover: float
    grain: float
    marks: list[str] = field(default_factory=list)
    ruling: str = ""
    light: str = ""
    camera: str = ""
    pixels: tuple[int, int] = (0, 0)
    unit: float = 0.0  # pixels


def choose(rng: Generator) -> Look:
    medium = str(rng.choice(list(MEDIA), p=list(MEDIA.values())))
    paper = "board" if medium == "board" else str(rng.choice(list(PAPERS), p=PAPER_SHARES))
    if medium == "board":
        name, pen = "chalk", CHALK
    elif medium in ("drawn", "dark screen", "transparent"):
        name, pen, paper = "stylus", STYLUS, "none"
    else:
        name = str(rng.choice(list(PENS), p=PEN_SHARES))
        if name == "faint pencil" and paper in ("kraft", "recycled", "coloured"):
            name = "pencil"
        if paper == "kraft" and name in ("pencil", "ballpoint"):
            name = "felt pen"
        pen = PENS[name]
    color = pen.colors[int(rng.integers(len(pen.colors)))]
    width, cover = float(rng.uniform(*pen.widths)), float(rng.uniform(*pen.cover))
    return Look(medium, paper, name, width, color, cover, pen.grain, ["faint"] if name == "faint pencil" else [])


def take(
    parts: Sequence[tuple[Field, Matrix]],
    size: tuple[float, float],
    look: Look,
    rng: Generator,
    single: bool,
    behind: Sequence[tuple[Field, Matrix]] = (),
) -> tuple[bytes, str]:
    """The picture file of a page, and its suffix.

    `parts` are shapes with the matrices that place them on the page (pixels of the field to units), in a box of `size`
    units whose corner is the origin; `behind`, what shines through from the back. `look` learns what was chosen here.
    """
    camera = look.medium in ("photo", "board", "pasted")
    wide, high, unit, zoom = _frame(size, look, rng, single)
    view = _view(wide, high, unit, size, rng, 0.05 if camera else 0.0, 5.0 if camera else 1.2)
    ink = _ink(parts, view, unit, (high, wide), 0.9)
    if not camera and look.medium != "scan":
        pixels = _digital(ink, look, rng)
    else:
        pixels = _paper(look, view, unit, size, (high, wide), rng)
        if len(behind):
            _shine_through(pixels, behind, view, unit, look, rng)
        _write(pixels, ink, look, unit, rng)
        if camera:
            _desk(pixels, view, size, look, rng)
            _light(pixels, look, rng)
        else:
            _scanner(pixels, look, rng)
        _lens(pixels, look, unit, rng, camera)
    if zoom > 1:
        final = (round(wide / zoom), round(high / zoom))
        pixels = np.stack([cv2.resize(plane, final, interpolation=cv2.INTER_AREA) for plane in pixels])
    if camera or look.medium == "scan":
        _sensor(pixels, look, rng, camera)
    if look.medium == "pasted":
        pixels = _pasted(pixels, rng)
    look.pixels, look.unit = (pixels.shape[2], pixels.shape[1]), unit / zoom
    return _file(pixels, look, rng, camera)


def _frame(size: tuple[float, float], look: Look, rng: Generator, single: bool) -> tuple[int, int, float, float]:
    """Width and height in pixels, pixels of a unit, and how much larger all this is than the picture will be."""
    ranges, shares = ((30, 64), (64, 200), (200, 800), (800, 1600), (1600, 3000)), (0.07, 0.17, 0.48, 0.25, 0.03)
    low, high = ranges[rng.choice(5, p=shares)]
    longer = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    if look.medium == "pasted":
        longer = min(longer, 1600.0)
    small = rng.random() < 0.12 and look.pen != "faint pencil"
    share = rng.uniform(*(((0.12, 0.22) if single else (0.3, 0.45)) if small else (0.45, 0.88)))
    aspect = float(rng.choice([1, 4 / 3, 3 / 4, 16 / 9, 9 / 16, 3 / 2]))
    if not single and size[0] > 2 * size[1]:
        aspect = float(rng.choice([4 / 3, 3 / 2, 16 / 9, min(4.0, size[0] / size[1]), 1]))
    wide, tall = (longer, longer / aspect) if aspect > 1 else (longer * aspect, longer)
    unit = share * min(wide / size[0], tall / size[1])
    least = 17 if single else 18  # pixels that a person can read
    if look.pen == "faint pencil" or "touching" in look.marks:
        least = 26
    if unit < least:
        share = min(0.88, share * least / unit)
        unit = share * min(wide / size[0], tall / size[1])
        if unit < least:
            wide, tall, unit = wide * least / unit, tall * least / unit, least
    if small and share < 0.5:
        look.marks.append("small")
    if max(wide, tall) < 64:
        look.marks.append("tiny")
    zoom = max(1, int(np.ceil(60 / unit))) if max(wide, tall) < 500 else 1
    return max(8, round(wide * zoom)), max(8, round(tall * zoom)), unit * zoom, zoom


def _view(
    wide: int, high: int, unit: float, size: tuple[float, float], rng: Generator, bend: float, turn: float
) -> Matrix:
    """Units of the page -> pixels of the picture: turned a little (degrees), in perspective, the whole box in sight."""
    angle = np.radians(rng.normal(0, turn / 2))
    box, corners = _corners(*size), _corners(wide, high)
    moved = corners + (rng.uniform(-bend, bend, (4, 2)) * min(wide, high)).astype(np.float32)
    perspective = cv2.getPerspectiveTransform(corners, moved)
    cos, sin = np.cos(angle), np.sin(angle)
    place = np.array(rng.uniform(-1, 1, 2))
    for _ in range(12):
        straight = np.array([[unit * cos, -unit * sin, 0], [unit * sin, unit * cos, 0], [0, 0, 1]])
        for share in (1.0, 0.5, 0.0):
            seen = cv2.perspectiveTransform(box[None], perspective @ straight)[0]
            slack = np.array([wide, high]) - (seen.max(0) - seen.min(0))
            target = np.array([wide, high]) / 2 + place * share * np.maximum(slack, 0) / 2 * 0.85
            moved_there = np.eye(3)
            moved_there[:2, 2] = target - (seen.max(0) + seen.min(0)) / 2
            view = moved_there @ perspective @ straight
            seen = cv2.perspectiveTransform(box[None], view)[0]
            room = 0.03 * min(wide, high)
            if (seen.min(0) > room).all() and (seen.max(0) < np.array([wide, high]) - room).all():
                return view
        unit *= 0.94
    raise AssertionError("a box that is shrunk by half fits")


def _corners(wide: float, high: float) -> Pixels:  # (4, 2)
    return np.array([[0, 0], [wide, 0], [wide, high], [0, high]], np.float32)


def _ink(
    parts: Sequence[tuple[Field, Matrix]], view: Matrix, unit: float, shape: tuple[int, int], edge: float
) -> Pixels:
    """How much of each pixel (H, W) is under ink."""
    ink = np.full(shape, -1e3, np.float32)
    for shape_field, place in parts:
        matrix = view @ place
        rows, columns = shape_field.shape
        seen = cv2.perspectiveTransform(_corners(columns, rows)[None], matrix)[0]
        left, top = np.maximum(np.floor(seen.min(0)).astype(int) - 1, 0)
        right, bottom = np.minimum(np.ceil(seen.max(0)).astype(int) + 2, shape[::-1])
        if right <= left or bottom <= top:
            continue
        move = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]], float)
        scale = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        flat = cv2.warpPerspective(
            shape_field, move @ matrix, (int(right - left), int(bottom - top)), flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_CONSTANT, borderValue=-AROUND,
        )  # fmt: skip
        part = ink[top:bottom, left:right]
        np.maximum(part, flat * np.float32(scale), out=part)
    return np.clip(ink / edge + 0.5, 0, 1)


def _noise(shape: tuple[int, int], rng: Generator, size: float = 1.0) -> Pixels:
    """Normal, with a standard deviation of about 1, its grain `size` pixels wide."""
    rows, columns = (max(2, int(np.ceil(side / size))) for side in shape)
    tile = rng.standard_normal((min(rows, 700), min(columns, 700)), np.float32)
    if tile.shape != (rows, columns):
        tile = cv2.copyMakeBorder(tile, 0, rows - tile.shape[0], 0, columns - tile.shape[1], cv2.BORDER_REFLECT)
    return tile if size == 1 else cv2.resize(tile, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _mix(pixels: Pixels, color: Color | Pixels, share: Pixels) -> None:
    """`share` (H, W) of each pixel gets the colour."""
    for plane, value in zip(pixels, color, strict=True):
        plane += share * (value - plane)


def _plain(color: Color, shape: tuple[int, int]) -> Pixels:
    return np.stack([np.full(shape, value, np.float32) for value in color])


def _soft(plane: Pixels, sigma: float, across: float | None = None) -> Pixels:
    """A Gaussian blur (H, W), in a smaller picture where it is so soft that nothing is lost; `across` is sigma in y."""
    across = sigma if across is None else across
    narrow = min(sigma, across)
    if narrow < 6:
        return cv2.GaussianBlur(plane, (0, 0), sigma, sigmaY=across)
    times = narrow / 3
    size = (max(1, round(plane.shape[1] / times)), max(1, round(plane.shape[0] / times)))
    small = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / times, sigmaY=across / times)
    return cv2.resize(small, plane.shape[::-1], interpolation=cv2.INTER_CUBIC)


def _paper(
    look: Look, view: Matrix, unit: float, size: tuple[float, float], shape: tuple[int, int], rng: Generator
) -> Pixels:
    if look.paper in TEXTURES:
        return _texture(look.paper, shape, rng)
    paper = PAPERS[look.paper]
    pixels = _plain(paper.colors[int(rng.integers(len(paper.colors)))], shape)
    texture = paper.tooth * _noise(shape, rng, max(1.0, unit * 0.012))
    texture += paper.clouds * _noise(shape, rng, max(3.0, unit * rng.uniform(0.15, 0.5)))
    if look.paper == "board":
        texture += 0.12 * _soft(_noise(shape, rng, unit * 0.4), unit * 0.3, unit * 0.05)
    pixels *= 1 + texture
    if look.medium == "board":
        return pixels
    chance = rng.random()
    if look.paper in ("white", "cream", "recycled") and chance < 0.42:
        look.ruling = "ruled" if chance < 0.2 else "squared" if chance < 0.38 else "dotted"
        _rule(pixels, look, view, unit, size, rng)
    return pixels


def _texture(name: str, shape: tuple[int, int], rng: Generator) -> Pixels:
    """All over the picture."""
    colors = {"wood": DESKS, "cloth": ((70, 90, 130), (150, 60, 60), (200, 196, 184)), "stones": ((130, 126, 118),)}
    longer = max(shape)
    pixels = _plain(colors[name][rng.integers(len(colors[name]))], shape)
    if name == "wood":
        grain = _wood(shape, rng)
        value = 1 + 0.14 * grain / grain.std()
    elif name == "cloth":
        y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        step = np.float32(2 * np.pi / max(4.0, longer * rng.uniform(0.008, 0.04)))
        value = 1 + 0.15 * np.sin(x * step) * np.sin(y * step) + 0.05 * _noise(shape, rng)
    else:
        rough = _soft(_noise(shape, rng, max(1.0, longer * 0.01)), max(1.0, longer * 0.006))
        value = 1 + 0.25 * np.tanh(2 * rough / rough.std()) + 0.06 * _noise(shape, rng)
    pixels *= np.clip(value, 0.2, 1.8)
    return pixels


def _wood(shape: tuple[int, int], rng: Generator) -> Pixels:
    """Long fine lines."""
    longer = max(shape)
    rows, columns = min(shape[0], 700), max(4, round(shape[1] / (longer * 0.06)))
    lines = cv2.resize(_noise((rows, columns), rng), shape[::-1], interpolation=cv2.INTER_CUBIC)
    return cv2.GaussianBlur(lines, (0, 0), 0.7)


def _rule(pixels: Pixels, look: Look, view: Matrix, unit: float, size: tuple[float, float], rng: Generator) -> None:
    shape = pixels.shape[1:]
    gap = rng.uniform(1.1, 1.6) if look.ruling == "ruled" else rng.uniform(0.45, 1.1)
    low, high = _in_sight(shape, view, 1)
    start = np.array([rng.uniform(0, gap), size[1] + rng.normal(0.06, 0.05)])
    thick = max(1, round(rng.uniform(0.012, 0.03) * unit))
    layer, margin = np.zeros((2, *shape), np.uint8)

    def draw(layer: NDArray[np.uint8], *ends: tuple[float, float]) -> None:
        start, end = _sixteenths(np.array(ends), view).tolist()
        cv2.line(layer, start, end, 255, thick, cv2.LINE_AA, 4)

    across = np.arange(start[1] + np.floor((low[1] - start[1]) / gap) * gap, high[1], gap)
    along = np.arange(start[0] + np.floor((low[0] - start[0]) / gap) * gap, high[0], gap)
    if look.ruling == "dotted":
        grid = np.stack(np.meshgrid(along, across), -1).reshape(-1, 2)
        for x, y in _sixteenths(grid, view):
            cv2.circle(layer, (int(x), int(y)), max(8, thick * 12), 255, -1, cv2.LINE_AA, 4)
    else:
        for y in across:
            draw(layer, (low[0], y), (high[0], y))
    if look.ruling == "squared":
        for x in along:
            draw(layer, (x, low[1]), (x, high[1]))
    if look.ruling == "ruled" and rng.random() < 0.3:  # a margin
        x = -rng.uniform(0.3, 1.0)
        draw(margin, (x, low[1]), (x, high[1]))
        _mix(pixels, (222, 120, 124), margin.astype(np.float32) * np.float32(0.6 / 255))
    _mix(pixels, RULES[rng.integers(len(RULES))], layer.astype(np.float32) * np.float32(rng.uniform(0.4, 0.8) / 255))


def _in_sight(shape: tuple[int, ...], view: Matrix, around: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the greatest x and y of the page that the picture shows, and a little `around` them, in units."""
    corners = _corners(shape[1], shape[0]).astype(np.float64)
    page = cv2.perspectiveTransform(corners[None], np.linalg.inv(view))[0]
    return page.min(0) - around, page.max(0) + around


def _sixteenths(points: NDArray[np.float64], view: Matrix) -> NDArray[np.int32]:  # (N, 2) -> (N, 2), of pixels
    return np.round(cv2.perspectiveTransform(points[None], view)[0] * 16).astype(np.int32)


def _shine_through(
    pixels: Pixels, behind: Sequence[tuple[Field, Matrix]], view: Matrix, unit: float, look: Look, rng: Generator
) -> None:
    ink = _ink(behind, view, unit, pixels.shape[1:], 1.0)
    _mix(pixels, BLACK, _soft(ink, max(0.6, 0.03 * unit)) * np.float32(rng.uniform(0.05, 0.13)))
    look.marks.append("show-through")


def _write(pixels: Pixels, ink: Pixels, look: Look, unit: float, rng: Generator) -> None:
    shape = ink.shape
    cover = ink * np.float32(look.cover)
    if look.grain:
        tooth = _noise(shape, rng, max(1.0, unit * 0.015)) + 0.6 * _noise(shape, rng, max(2.0, unit * 0.08))
        cover *= np.clip(1 - look.grain * np.clip(0.5 * tooth, -0.3, 1.1), 0.15, 1.15)
        np.clip(cover, 0, 1, out=cover)
    _mix(pixels, look.color, cover)
    if rng.random() < 0.12:
        look.marks.append("specks")
        layer = np.zeros(shape, np.uint8)
        for _ in range(int(rng.integers(2, 9))):
            x, y = rng.uniform(0, shape[1]), rng.uniform(0, shape[0])
            radius = max(6, rng.uniform(0.006, 0.02) * unit * 16)
            cv2.circle(layer, (int(x * 16), int(y * 16)), int(radius), 255, -1, cv2.LINE_AA, 4)
        _mix(pixels, look.color, layer.astype(np.float32) * np.float32(0.7 / 255))


def _desk(pixels: Pixels, view: Matrix, size: tuple[float, float], look: Look, rng: Generator) -> None:
    """The page ends within the picture, on one side or two."""
    if look.medium == "board" or rng.random() > 0.13:
        return
    shape = pixels.shape[1:]
    edges = np.concatenate(_in_sight(shape, view, 3))
    for side in rng.choice(4, rng.integers(1, 3), replace=False):
        inner = (-0.35, -0.35, size[0] + 0.35, size[1] + 0.35)[side]
        outer = edges[side] + (3.0 if side < 2 else -3.0)
        if abs(outer) > abs(inner):
            edges[side] = inner + (outer - inner) * rng.uniform(0.15, 0.75)
    left, top, right, bottom = edges
    turn = rng.normal(0, 0.02)
    corners = np.array([[left, top], [right, top + turn], [right - turn, bottom], [left + turn, bottom]])
    outside = np.full(shape, 255, np.uint8)
    cv2.fillConvexPoly(outside, _sixteenths(corners, view), 0, cv2.LINE_AA, 4)
    if not outside.any():
        return
    look.marks.append("page edge")
    share: Pixels = outside.astype(np.float32) * np.float32(1 / 255)
    blurred = _soft(share, max(1, 0.01 * max(shape)))
    pixels *= 1 - 0.35 * blurred * (1 - share)  # the shadow at the edge
    desk = _plain(DESKS[rng.integers(len(DESKS))], shape)
    desk *= np.clip(1 + 0.15 * _wood(shape, rng) + 0.03 * _noise(shape, rng), 0.3, 2)
    _mix(pixels, desk, share)


def _light(pixels: Pixels, look: Look, rng: Generator) -> None:
    shape = pixels.shape[1:]
    small = max(1.0, max(shape) / 640)  # light has no fine detail
    rows, columns = max(2, round(shape[0] / small)), max(2, round(shape[1] / small))
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j].astype(np.float32)
    words = []
    strong = rng.random() < 0.2
    slope = rng.uniform(0.18, 0.38) if strong else rng.uniform(0, 0.14)
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + np.float32(slope) * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y)
    if strong:
        words.append("gradient")
    if rng.random() < 0.2:
        words.append("lamp")
        at = rng.uniform(-0.8, 0.8, 2)
        light *= 1.1 - np.float32(rng.uniform(0.15, 0.4)) * np.clip(np.hypot(x - at[0], y - at[1]), 0, 1.6)
    if rng.random() < 0.35:
        strength = rng.uniform(0.05, 0.32)
        light *= 1 - np.float32(strength) * (x * x + y * y) / 2
        words += ["vignette"] if strength > 0.15 else []
    if rng.random() < 0.22:
        hard = rng.random() < 0.55
        words.append("hard shadow" if hard else "soft shadow")
        angle = rng.uniform(0, 2 * np.pi)
        across = np.cos(angle) * x + np.sin(angle) * y - rng.uniform(-0.45, 0.45)
        if rng.random() < 0.4:  # a hand or a phone: a second edge
            second = angle + rng.uniform(1.2, 1.9)
            across = np.minimum(across, np.cos(second) * x + np.sin(second) * y - rng.uniform(-0.5, 0.2))
        width = rng.uniform(0.008, 0.03) if hard else rng.uniform(0.1, 0.4)
        shade = 1 / (1 + np.exp(np.clip(-across / np.float32(width), -30, 30)))
        light *= 1 - np.float32(rng.uniform(0.22, 0.55) if hard else rng.uniform(0.2, 0.5)) * shade
    look.light = " ".join(words) or "even"
    look.marks += words
    light = np.clip(light, 0.22, None) * np.float32(rng.uniform(0.68, 0.98) / np.clip(light, 0.22, None).max())
    light = cv2.resize(light.astype(np.float32), shape[::-1], interpolation=cv2.INTER_LINEAR)
    warm = rng.normal(0, 0.04)
    for channel, tint in enumerate((1 + warm, 1 + rng.normal(0, 0.01), 1 - warm)):
        pixels[channel] *= light * np.float32(tint)


def _scanner(pixels: Pixels, look: Look, rng: Generator) -> None:
    """Flat light, white paper turned white; now and then the dark edge of the lid."""
    look.light = "scanner"
    pixels *= np.float32(rng.uniform(0.98, 1.06))
    if rng.random() < 0.15:
        look.marks.append("frame")
        thick = max(1, round(rng.uniform(0.005, 0.02) * max(pixels.shape)))
        np.rot90(pixels, int(rng.integers(4)), axes=(1, 2))[:, :thick] = 30
    np.minimum(pixels, 255, out=pixels)


def _lens(pixels: Pixels, look: Look, unit: float, rng: Generator, camera: bool) -> None:
    if not camera:
        for plane in pixels:
            plane[:] = _soft(plane, 0.6)
        look.camera = "scanner"
        return
    chance = rng.random()
    stroke = look.width * unit
    most = 0.6 * stroke if look.pen == "faint pencil" else 0.05 * unit + 0.25 * stroke
    if "touching" in look.marks:
        most = 0.03 * unit
    if chance < 0.1:
        look.camera = "out of focus"
        sigma = max(0.5, min(most, rng.uniform(0.022, 0.042) * unit))
    elif chance < 0.17:
        look.camera = "moved"
        kernel = _path_of_hand(max(2.0, min(2.2 * most, rng.uniform(0.06, 0.12) * unit)), rng)
    else:
        look.camera = "sharp"
        sigma = max(0.45, min(most, rng.uniform(0.002, 0.014) * unit))
    for plane in pixels:
        plane[:] = cv2.filter2D(plane, -1, kernel) if look.camera == "moved" else _soft(plane, sigma)
    look.marks += [look.camera] if look.camera != "sharp" else []


def _path_of_hand(length: float, rng: Generator) -> Pixels:
    side = 2 * int(np.ceil(length / 2)) + 1
    kernel = np.zeros((side, side), np.float32)
    angle, middle = rng.uniform(0, np.pi), side / 2 - 0.5
    step = np.array([np.cos(angle), np.sin(angle)]) * (length / 2)
    start, end = np.round(np.array([middle - step, middle + step]) * 16).astype(int).tolist()
    cv2.line(kernel, start, end, 1.0, 1, cv2.LINE_8, 4)
    return kernel / kernel.sum()


def _sensor(pixels: Pixels, look: Look, rng: Generator, camera: bool) -> None:
    shape = pixels.shape[1:]
    noisy = camera and rng.random() < 0.13
    amount = rng.uniform(5, 11) if noisy else rng.uniform(0.4, 2.5)
    if look.pen == "faint pencil":
        amount = min(amount, 4.0)
    grain = _noise(shape, rng) * np.float32(amount)
    if noisy and max(shape) > 500:
        grain = cv2.GaussianBlur(grain, (0, 0), 0.7) * np.float32(1.8)
    pixels += grain
    if noisy:
        look.marks.append("noise")
        for channel in (0, 2):
            pixels[channel] += _noise(shape, rng, 2.5) * np.float32(amount / 2)
    np.clip(pixels, 0, 255, out=pixels)


def _digital(ink: Pixels, look: Look, rng: Generator) -> Pixels:
    """Of a drawing program or a page to draw on; transparent ones have a fourth channel."""
    dark: list[Color] = [(0, 0, 0), (0, 0, 0), (20, 20, 120), (160, 20, 20), (60, 60, 60)]
    light: list[Color] = [(255, 255, 255), (255, 255, 255), (250, 240, 120), (130, 220, 255), (200, 200, 200)]
    look.camera = look.light = "none"
    if look.medium == "transparent":
        look.color = dark[rng.integers(5)] if rng.random() < 0.75 else light[rng.integers(2)]
        hidden = rng.choice([0.0, 255.0])  # of what is transparent all over, which nobody sees
        planes = [np.where(ink > 0, np.float32(value), np.float32(hidden)) for value in look.color]
        return np.stack([*planes, ink * 255])
    on_dark = look.medium == "dark screen"
    plain, tinted = ((0, 0, 0), (24, 26, 30)) if on_dark else ((255, 255, 255), (240, 244, 250))
    look.color = light[rng.integers(5)] if on_dark else dark[rng.integers(5)]
    pixels = _plain(plain if rng.random() < 0.7 else tinted, ink.shape)
    _mix(pixels, look.color, ink)
    if rng.random() < 0.1:
        look.marks.append("frame")
        thick = max(1, round(0.008 * max(ink.shape)))
        pixels[:, :thick] = pixels[:, -thick:] = pixels[:, :, :thick] = pixels[:, :, -thick:] = 128
    return pixels


def _pasted(pixels: Pixels, rng: Generator) -> Pixels:
    """The photo as a patch on a plain page."""
    _, high, wide = pixels.shape
    top, bottom, left, right = (round(rng.uniform(0.08, 0.4) * side) for side in (high, high, wide, wide))
    return np.pad(pixels, ((0, 0), (top, bottom), (left, right)), constant_values=255)


def _file(pixels: Pixels, look: Look, rng: Generator, camera: bool) -> tuple[bytes, str]:
    image = Image.fromarray(np.ascontiguousarray(cv2.merge(list(pixels + np.float32(0.5))).astype(np.uint8)))
    content = io.BytesIO()
    if look.medium == "transparent":
        image.save(content, "PNG")
        return content.getvalue(), "png"
    if rng.random() < 0.15:
        image = image.convert("L")
    noisy = camera or look.medium == "scan"  # which takes much room as a PNG
    chance = rng.random()
    if (noisy and (max(image.size) > 600 or chance < 0.7)) or chance < 0.3:
        poor = rng.random() < 0.12
        quality = int(rng.integers(22, 40) if poor else rng.integers(55, 96))
        look.marks += ["poor JPEG"] if poor else []
        look.camera += f", JPEG {quality}"
        exif = Image.Exif()
        if camera and rng.random() < 0.12:
            turned, turn = ((3, 180), (6, 90), (8, 270))[rng.integers(3)]
            image = image.rotate(turn, expand=True)
            exif[0x0112] = turned
            look.camera += ", turned"
        image.save(content, "JPEG", quality=quality, exif=exif)
        return content.getvalue(), "jpg"
    image.save(content, "PNG", compress_level=3)
    return content.getvalue(), "png"
