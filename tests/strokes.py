"""The strokes of an image of a digit, as a pen would draw it again: thinned to a line, and the line followed."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnist_pl.data.simulator.strokes import thin

FINER = 3  # times as many pixels a side, so that the thinned line is smooth
EVERY = 5  # of its pixels is a point

Line = list[tuple[float, float]]


def strokes(images: NDArray[np.uint8]) -> list[list[Line]]:  # (N, H, W), light ink on 0
    """Lines of points (x, y) in [0, 1] for each image."""
    large = [Image.fromarray(image).resize([FINER * side for side in image.T.shape]) for image in images]
    thinned = [thin((np.asarray(image) > 110).astype(np.uint8)) for image in large]
    return [[_smooth(line, image.shape) for line in _follow(image)] for image in thinned]


def _follow(ink: NDArray[np.uint8]) -> list[list[tuple[int, int]]]:
    """Lines of pixels (row, column): each step between neighbours is in one of them."""
    left = {(int(row), int(column)): set[tuple[int, int]]() for row, column in np.argwhere(ink)}
    for row, column in left:
        straight = {(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)} & left.keys()
        diagonal = {(row + down, column + right) for down in (-1, 1) for right in (-1, 1)} & left.keys()
        left[row, column] = straight | {
            (r, c) for r, c in diagonal if (r, column) not in straight and (row, c) not in straight
        }
    lines = []
    while left:
        at = min(left, key=lambda pixel: (len(left[pixel]) != 1, pixel))  # an end, where there is one
        line = [at]
        while left[at]:
            before = line[-2] if len(line) > 1 else at  # straight on, where the line forks
            following = min(
                left[at], key=lambda p: abs(p[0] + before[0] - 2 * at[0]) + abs(p[1] + before[1] - 2 * at[1])
            )
            left[at].remove(following)
            left[following].remove(at)
            line.append(at := following)
        lines.append(line)
        left = {pixel: others for pixel, others in left.items() if others}
    return lines


def _smooth(line: list[tuple[int, int]], shape: tuple[int, ...]) -> Line:
    points = np.array(line, float)[:, ::-1] + 0.5
    kept = points[[*range(0, len(points) - 1, EVERY), len(points) - 1]] / shape[::-1]
    return [(float(x), float(y)) for x, y in kept]
