"""What is no digit: letters, words, scribbles, shapes, arrows and drawings, as lines in units (y points down)."""

import numpy as np
from numpy.random import Generator

from mnist_pl.data.simulator.strokes import Lines

# Letters that nobody takes for a digit, whatever the hand.
LETTERS = "AEFHKMNRTVWXEFHKMNRWXfhkmnwx"
WORDS = (
    *("HAND", "MARKT", "TEAM", "KAFFEE", "HEFT", "WARM", "MAX", "RAW", "Anna", "Tee", "Frau", "warm", "name", "ham"),
    *("market", "team", "hammer", "Hafen", "watermark", "Kamera", "Werk", "mantra", "NEXT", "Thema", "KARTE", "wave"),
)


def _path(*points: float) -> np.ndarray:
    return np.array(points, float).reshape(-1, 2)


def _round(x: float, y: float, wide: float, high: float, start: float = 0, end: float = 360) -> np.ndarray:
    angle = np.radians(np.linspace(start, end, 40))
    return np.stack([x + wide / 2 * np.cos(angle), y + high / 2 * np.sin(angle)], 1)


def _polygon(corners: int, turn: float = -90, step: int = 1) -> np.ndarray:
    angle = np.radians(turn + np.arange(corners + 1) * 360 * step / corners)
    return np.stack([np.cos(angle), np.sin(angle)], 1) * 0.6


def scribble(rng: Generator) -> Lines:
    kind = rng.integers(4)
    if kind == 0:  # to and fro
        n = int(rng.integers(7, 16))
        x = np.linspace(0, rng.uniform(1, 2), n)
        return [np.stack([x, np.where(np.arange(n) % 2, 0, 0.7) + rng.normal(0, 0.1, n)], 1)]
    if kind == 1:  # a long loop over loop
        t = np.linspace(0, rng.uniform(4, 8) * 2 * np.pi, 300)
        return [np.stack([t / 12 + 0.4 * np.cos(t), 0.45 * np.sin(t + 0.4)], 1)]
    if kind == 2:  # a tangle
        walk = np.cumsum(rng.normal(0, 0.3, (int(rng.integers(14, 24)), 2)), 0)
        return [_spline(walk - walk.mean(0) + rng.normal(0, 0.2, walk.shape))]
    ends = [(rng.uniform(0, 1), rng.uniform(0, 1)) for _ in range(int(rng.integers(5, 9)))]  # strokes that cross out
    return [np.stack([np.linspace(0, 1.3, 8), np.linspace(*heights, 8)], 1) for heights in ends]


def _spline(points: np.ndarray) -> np.ndarray:
    """A curve through the points (Catmull-Rom)."""
    p = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, 12)[:, None]
    parts = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate(parts)


def arrow(rng: Generator) -> Lines:
    length, head = rng.uniform(1, 2.2), rng.uniform(0.2, 0.4)
    shaft = _spline(np.stack([np.linspace(0, length, 4), rng.normal(0, 0.08, 4)], 1))
    x, y = shaft[-1]
    tips = [_path(x - head, y - head, x, y, x - head, y + head)]
    if rng.random() < 0.3:
        tips.append(_path(head, shaft[0, 1] - head, 0, shaft[0, 1], head, shaft[0, 1] + head))
    return _turned([shaft, *tips], float(rng.integers(8) * 45 + rng.normal(0, 6)))


def _turned(lines: Lines, degrees: float) -> Lines:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return [line @ np.array([[c, s], [-s, c]]) for line in lines]


def shape(rng: Generator) -> Lines:
    t = np.linspace(0, 2 * np.pi, 60)
    heart = np.stack([16 * np.sin(t) ** 3, -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t)], 1) / 26
    shapes: list[Lines] = [
        [_polygon(3)],
        [_polygon(4, -45) * [1, rng.uniform(0.6, 1)]],
        [_polygon(5, step=2)],
        [_polygon(6)],
        [heart],
        [_path(-0.5, -0.5, 0.5, 0.5), _path(0.5, -0.5, -0.5, 0.5)],
        [_path(-0.5, 0, 0.5, 0), _path(0, -0.5, 0, 0.5)],
        [_path(-0.6, -0.2, 0.6, -0.2), _path(-0.6, 0.2, 0.6, 0.2)],
        [_polygon(4, -45), _path(-0.42, -0.42, 0.42, 0.42), _path(0.42, -0.42, -0.42, 0.42)],
        [_polygon(4, 0) * [0.8, 1]],
        [_path(-0.5, 0.1, -0.15, 0.5, 0.6, -0.5)],  # a tick
        [_polygon(4, -45), _polygon(4, -45) + [0.3, -0.3], *(_path(*c, *(c + [0.3, -0.3])) for c in _polygon(4, -45))],
        [_path(-0.6, -0.3, -0.3, 0.3, 0, -0.3, 0.3, 0.3, 0.6, -0.3)],
        [
            _path(-0.4, -0.6, -0.5, 0.6),
            _path(0.2, -0.6, 0.1, 0.6),
            _path(-0.8, -0.2, 0.6, -0.25),
            _path(-0.8, 0.25, 0.5, 0.2),
        ],
    ]
    return _turned(shapes[rng.integers(len(shapes))], rng.normal(0, 6))


def drawing(rng: Generator) -> Lines:
    sun = [_round(0, 0, 0.8, 0.8)] + [
        np.array([[0.52 * np.cos(a), 0.52 * np.sin(a)], [0.8 * np.cos(a), 0.8 * np.sin(a)]])
        for a in np.arange(0, 2 * np.pi, np.pi / 5)
    ]
    around, far = np.linspace(0, 2 * np.pi, 18), 0.5 + 0.12 * np.tile([1, -1], 9)
    crown = _spline(np.stack([far * np.cos(around), far * np.sin(around) - 0.15], 1))
    drawings: list[Lines] = [
        [  # a house
            _path(0, 0.8, 0, 0, 1, 0, 1, 0.8, 0, 0.8),
            _path(-0.1, 0.05, 0.5, -0.5, 1.1, 0.05),
            _path(0.4, 0.8, 0.4, 0.4, 0.62, 0.4, 0.62, 0.8),
            _path(0.1, 0.2, 0.3, 0.2, 0.3, 0.4, 0.1, 0.4, 0.1, 0.2),
        ],
        [  # a face
            _round(0, 0, 1.2, 1.3),
            _round(-0.25, -0.15, 0.14, 0.14),
            _round(0.25, -0.15, 0.14, 0.14),
            _path(0, -0.05, -0.05, 0.15, 0.05, 0.16),
            _round(0, 0.15, 0.6, 0.45, 20, 160),
        ],
        [  # a tree
            _path(-0.1, 0.9, -0.08, 0.3),
            _path(0.1, 0.9, 0.08, 0.3),
            crown,
            _path(-0.7, 0.9, 0.7, 0.92),
        ],
        sun,
        [  # a flower
            *(_round(0.3 * np.cos(a), 0.3 * np.sin(a) - 0.3, 0.32, 0.32) for a in np.arange(0, 6.2, np.pi / 3)),
            _round(0, -0.3, 0.24, 0.24),
            _path(0, 0.2, 0.03, 0.9),
            _path(0.03, 0.7, 0.35, 0.4, 0.2, 0.7, 0.03, 0.75),
        ],
        [  # a cat
            _round(0, 0, 1.1, 1),
            _path(-0.5, -0.2, -0.5, -0.8, -0.18, -0.48),
            _path(0.5, -0.2, 0.5, -0.8, 0.18, -0.48),
            _round(-0.2, -0.1, 0.1, 0.15),
            _round(0.2, -0.1, 0.1, 0.15),
            _path(-0.06, 0.1, 0.06, 0.1, 0, 0.18, -0.06, 0.1),
            *(_path(s * 0.15, 0.18 + d, s * 0.8, 0.12 + 2.5 * d) for s in (-1, 1) for d in (-0.04, 0, 0.04)),
        ],
        [  # a car
            _path(0, 0.5, 0, 0.2, 0.3, 0.2, 0.5, -0.15, 1.1, -0.15, 1.3, 0.2, 1.7, 0.25, 1.7, 0.5, 0, 0.5),
            _round(0.4, 0.55, 0.32, 0.32),
            _round(1.3, 0.55, 0.32, 0.32),
            _path(0.8, -0.15, 0.8, 0.2, 0.3, 0.2),
        ],
        [  # a boat
            _path(0, 0.4, 1.4, 0.4, 1.1, 0.8, 0.3, 0.8, 0, 0.4),
            _path(0.7, 0.4, 0.7, -0.6),
            _path(0.7, -0.6, 1.2, 0.25, 0.7, 0.25),
        ],
        [  # a fish
            _round(0, 0, 1.3, 0.65),
            _path(0.63, 0, 1, -0.3, 1, 0.3, 0.63, 0),
            _round(-0.4, -0.08, 0.08, 0.08),
            _path(-0.15, -0.25, -0.08, 0, -0.15, 0.25),
        ],
        [  # a man
            _round(0, -0.7, 0.36, 0.36),
            _path(0, -0.5, 0, 0.2),
            _path(-0.4, -0.1, 0, -0.35, 0.4, -0.1),
            _path(-0.3, 0.8, 0, 0.2, 0.3, 0.8),
        ],
        [  # a cube of cells, half a game of noughts and crosses
            *(_path(x, -0.6, x + 0.02, 0.6) for x in (-0.2, 0.2)),
            *(_path(-0.6, y, 0.6, y + 0.02) for y in (-0.2, 0.2)),
            _path(-0.5, -0.5, -0.28, -0.28),
            _path(-0.28, -0.5, -0.5, -0.28),
            _path(-0.1, -0.1, 0.1, 0.1),
            _path(0.1, -0.1, -0.1, 0.1),
        ],
        [  # a spider's web
            *(np.array([[0, 0], [0.7 * np.cos(a), 0.7 * np.sin(a)]]) for a in np.arange(0, 6.2, np.pi / 4)),
            *(_polygon(8, 0) * r for r in (0.35, 0.7, 1.05)),
        ],
    ]
    return _turned(drawings[rng.integers(len(drawings))], rng.normal(0, 4))


KINDS = {"scribble": scribble, "arrow": arrow, "shape": shape, "drawing": drawing}
