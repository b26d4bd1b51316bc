"""Pen strokes -> images in MNIST's form; digits drawn so, in forms that MNIST hardly has and the world's hands write.

A template is a text: strokes apart by `;`, points by a space, each point two figures, x to the right and y downwards
from 0 to 9. Strokes are rounded between their points; a point said twice is a corner.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from mnist_pl.data.digits import BOX, centre_by_mass
from mnist_pl.data.files import Split

Stroke = NDArray[np.float64]  # (points, 2): x and y
SEED = 14  # of what is drawn: the same for every run
TOGETHER = 256  # drawings: their distances to a segment stay in a processor's cache

# MNIST's writers were American. Here are a 1 with a long serif and a foot, crossed sevens, open fours, a 5 with its bar
# apart, an 8 of two rings, nines with all kinds of feet, a slashed 0.
DIGITS = {
    0: ["40 11 04 18 49 88 95 81 50 40", "50 20 04 16 49 78 95 83 60 50", "60 21 04 28 49 78 84 71 40",
        "50 20 04 16 49 78 95 83 60 50; 81 18"],
    1: ["03 40 40 49", "05 40 40 49", "06 50 50 59; 19 19 99 99", "03 40 40 49; 09 09 89 89", "02 20 20 29; 09 49",
        "40 49"],
    2: ["03 21 50 82 74 47 09 09 99", "03 20 70 83 58 19 08 27 58 98", "12 40 81 73 09 09 89 89",
        "03 30 82 64 09 19 99"],
    3: ["01 40 81 83 44 44 85 98 59 08", "00 80 80 34 34 85 88 49 08", "02 30 71 53 34 34 75 68 39 09"],
    4: ["20 06 06 96; 72 69", "69 60 60 06 06 96", "00 05 05 95; 80 89", "40 05 05 95 95 89", "30 06 96; 63 69",
        "30 05 05 85 80 80 79", "60 05 05 95; 60 69"],
    5: ["90 10 10 04 04 53 96 88 49 08", "11 04 04 53 96 88 49 08; 20 90 90", "80 20 04 44 86 69 09",
        "11 14 53 86 69 09; 31 90", "80 10 10 15 54 76 68 49 09"],
    6: ["80 32 06 18 59 88 86 55 16", "50 13 06 28 59 87 65 26", "30 04 08 49 88 85 45 06", "70 05 09 59 86 35 07"],
    7: ["00 90 90 49", "02 00 00 90 90 49", "02 00 00 90 90 49; 25 25 85 85", "00 90 90 39; 25 85", "01 90 90 54 49",
        "03 10 90 90 69; 34 95", "00 80 80 64 69"],
    8: ["81 50 11 23 54 86 89 59 19 16 54 83 81", "50 21 23 54 73 71 50 40; 54 26 28 59 88 86 54 45",
        "50 12 54 87 59 17 54 82 50", "71 40 12 44 87 59 18 36 83 72"],
    9: ["91 50 11 03 25 64 92 92 99", "91 50 11 03 25 64 92 97 79 29", "91 50 11 03 25 64 92 84 49",
        "92 50 11 04 35 92 92 99 99 29", "50 11 03 25 64 73 71 50 40; 82 89", "81 30 03 25 73 81 86 68 39 18"],
}  # fmt: skip


def drawn_digits(count: int, seed: int = SEED) -> Split:
    """As many images (N, 28, 28) uint8 of digits in other forms than MNIST's, each digit alike often, and labels."""
    random = np.random.default_rng([seed, 1])
    labels = [number % 10 for number in range(count)]
    drawings = [by_hand(random.choice(DIGITS[label]), random) for label in labels]
    return torch.from_numpy(render(drawings, random)), torch.tensor(labels, dtype=torch.long)


def by_hand(template: str, random: np.random.Generator) -> list[Stroke]:
    """The template as one hand writes it: points, proportions, slant and turn are its own."""
    strokes = [
        np.array([[int(figure) for figure in point] for point in stroke.split()]) / 9 for stroke in template.split(";")
    ]
    narrow, slant, turn = random.uniform(0.4, 1.0), random.normal(0, 0.2), random.normal(0, 0.1)
    deform = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    deform = np.array([[narrow, 0], [-slant, 1]]) @ deform
    return [rounded((stroke + random.normal(0, 0.035, stroke.shape) * _apart(stroke)) @ deform) for stroke in strokes]


def _apart(stroke: Stroke) -> NDArray[np.float64]:
    """0 for a point that repeats the one before, so that a corner stays one; else 1."""
    return 1.0 - np.r_[False, (stroke[1:] == stroke[:-1]).all(axis=1)][:, None]


def rounded(stroke: Stroke, times: int = 2) -> Stroke:
    """Chaikin's corner cutting (1974); the ends stay where they are."""
    for _ in range(times if len(stroke) > 2 else 0):
        near, far = 0.75 * stroke[:-1] + 0.25 * stroke[1:], 0.25 * stroke[:-1] + 0.75 * stroke[1:]
        stroke = np.concatenate([stroke[:1], np.stack([near, far], 1).reshape(-1, 2)[1:-1], stroke[-1:]])
    return stroke


def render(drawings: list[list[Stroke]], random: np.random.Generator) -> NDArray[np.uint8]:  # -> (N, 28, 28)
    """Each drawing in MNIST's form, anti-aliased, with a pen of its own: from 1.6 to 4 pixels wide."""
    widths = random.uniform(1.6, 4.0, len(drawings))
    parts = [
        _ink(drawings[start : start + TOGETHER], widths[start : start + TOGETHER])
        for start in range(0, len(drawings), TOGETHER)
    ]
    return in_form(np.concatenate(parts)) if parts else np.zeros((0, 28, 28), np.uint8)


def in_form(ink: NDArray) -> NDArray[np.uint8]:  # (N, 20, 20) in [0, 255] -> (N, 28, 28)
    return np.stack([centre_by_mass(image) for image in ink])


def _ink(drawings: list[list[Stroke]], widths: NDArray) -> NDArray[np.float32]:  # -> (N, 20, 20) in [0, 255]
    segments = [np.concatenate([_segments(stroke) for stroke in strokes]) for strokes in drawings]
    most = max(map(len, segments))
    each = np.stack([np.pad(part, ((0, most - len(part)), (0, 0), (0, 0)), "edge") for part in segments])
    low, high = each.min(axis=(1, 2)), each.max(axis=(1, 2))
    scale = (BOX - widths) / np.maximum((high - low).max(axis=1), 1e-3)
    shift = BOX / 2 - (low + high) / 2 * scale[:, None]
    each = (each * scale[:, None, None, None] + shift[:, None, None]).astype(np.float32)  # (N, segments, ends, x y)
    y, x = (axis.reshape(1, -1).astype(np.float32) + np.float32(0.5) for axis in np.mgrid[:BOX, :BOX])
    nearest = np.full((len(drawings), BOX * BOX), np.inf, np.float32)
    for start, end in zip(np.moveaxis(each[:, :, 0], 1, 0), np.moveaxis(each[:, :, 1], 1, 0), strict=True):
        (x0, y0), (dx, dy) = start.T[:, :, None], (end - start).T[:, :, None]
        along = ((x - x0) * dx + (y - y0) * dy) / np.maximum(dx * dx + dy * dy, 1e-6)
        along.clip(0, 1, out=along)
        np.minimum(nearest, (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2, out=nearest)
    ink = np.clip(widths[:, None] / 2 - np.sqrt(nearest) + 0.5, 0, 1) * 255
    return ink.reshape(-1, BOX, BOX).astype(np.float32)


def _segments(stroke: Stroke) -> NDArray:  # -> (segments, 2 ends, 2); of a dot, one without length
    return np.stack([stroke[:-1], stroke[1:]], axis=1) if len(stroke) > 1 else np.stack([stroke, stroke], axis=1)
