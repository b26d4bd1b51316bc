"""What accuracy can be had at what cost -> a picture: each system, and the best for any budget."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_pl.figures.plots import BLUE, GREY, RED, spread_out_high_accuracies, with_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DISTANCES = (8, 15, 24, 36, 50)  # points between a system and its name; the nearest that is free
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
FAR = 15  # points, from where on a line leads to the name


class System(NamedTuple):
    name: str
    seconds: Sequence[float]  # in fit, of each seed
    accuracies: Sequence[float]
    interval: tuple[float, float]  # of the mean accuracy
    is_reference: bool

    @property
    def place(self) -> tuple[float, float]:
        return float(np.mean(self.seconds)), float(np.mean(self.accuracies))


def best_for_any_budget(places: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, accuracy): those that nothing as cheap is as good as, the cheapest first."""
    found: list[tuple[float, float]] = []
    for cost, accuracy in sorted(places, key=lambda place: (place[0], -place[1])):
        if not found or accuracy > found[-1][1]:
            found.append((cost, accuracy))
    return found


def front(systems: Sequence[System], minute: float | None) -> "Figure":
    """Accuracy (by wrong answers, logarithmic) against seconds in fit (logarithmic): means, with their intervals.
    `minute` is the seconds of one, as `mnist_pl.runs.front` counts them; None where it is not known."""
    title = "accuracy on the test images against the cost of training, means and 95 % intervals"
    picture, axes = with_axes(9, 6.2, title, 0.1, 0.085, 0.905, 0.865 if minute else 0.93)
    axes.set_xscale("log")
    costs = [cost for system in systems for cost in system.seconds]
    axes.set_xlim(min(costs) / 1.5, max(costs) * 1.5)
    shown = [value for system in systems for value in system.accuracies]
    reach = 1 - 2 * (1 - min(shown)), 1 - (1 - max(shown)) / 2  # of two seeds, an interval may be from 0 to 100 %
    shown += [min(max(bound, reach[0]), reach[1]) for system in systems for bound in system.interval]
    for one, label in ((axes, "test accuracy"), (axes.twinx(), "wrong in 10,000")):
        spread_out_high_accuracies(one, shown)
        one.set_ylabel(label)
    one.yaxis.set_major_formatter(lambda accuracy, _: f"{(1 - accuracy) * 10_000:,.4g}")
    steps = best_for_any_budget(system.place for system in systems)
    steps.append((axes.get_xlim()[1], steps[-1][1]))
    between = [(dearer[0], cheaper[1]) for cheaper, dearer in pairwise(steps)]
    corners = np.array([corner for pair in zip(steps, [*between, steps[-1]], strict=True) for corner in pair])
    axes.plot(*corners.T, color=GREY, linewidth=1, alpha=0.7, zorder=1, label="the best for any budget")
    for is_reference, color, kind in ((False, BLUE, "presets"), (True, RED, "other people's systems")):
        of_kind = [system for system in systems if system.is_reference == is_reference]
        for number, system in enumerate(of_kind):
            cost, accuracy = system.place
            spread = [[accuracy - system.interval[0]], [system.interval[1] - accuracy]]
            look: dict[str, Any] = {"color": color, "markersize": 6, "capsize": 3, "linewidth": 1.2, "zorder": 3}
            axes.errorbar(cost, accuracy, spread, fmt="o", label=kind if number == 0 else None, **look)
            if len(system.seconds) > 1:
                axes.plot(system.seconds, system.accuracies, ".", color=color, markersize=3, alpha=0.5, zorder=2)
    axes.set_xlabel("seconds in fit")
    _number_powers(axes.xaxis)
    axes.grid(alpha=0.3)
    if minute:
        top = axes.secondary_xaxis("top", functions=(lambda s: np.divide(s, minute), lambda m: np.multiply(m, minute)))
        _number_powers(top.xaxis)
        top.set_xlabel("minutes, of four epochs of seed_cnn3_adam as a bare loop")
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    _name(picture, axes, systems, axes.transData.transform(corners))
    return picture


def _number_powers(axis: "Axis") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())


def _name(picture: "Figure", axes: "Axes", systems: Sequence[System], line: NDArray[np.floating]) -> None:
    """Writes each name beside its system, where there is room: not on the line, of which there are pixels (N, 2)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(picture).get_renderer()
    inside, legend = axes.get_window_extent(renderer), axes.get_legend()
    taken: list[Bbox] = [] if legend is None else [legend.get_window_extent(renderer)]
    taken += [Bbox([np.minimum(one, other) - 1, np.maximum(one, other) + 1]) for one, other in pairwise(line)]
    for system in systems:
        ends = axes.transData.transform([(system.place[0], bound) for bound in system.interval])
        taken.append(Bbox([ends.min(axis=0) - 4, ends.max(axis=0) + 4]))
    for system in systems:
        for distance, (across, up) in ((one, side) for one in DISTANCES for side in SIDES):
            text = axes.annotate(
                system.name,
                system.place,
                (across * distance, up * distance),
                textcoords="offset points",
                ha={1: "left", 0: "center", -1: "right"}[across],
                va={1: "bottom", 0: "center", -1: "top"}[up],
                fontsize=9,
                color=RED if system.is_reference else BLUE,
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5} if distance > FAR else None,
            )
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)  # without the line
            within = inside.x0 < box.x0 and box.x1 < inside.x1 and inside.y0 < box.y0 and box.y1 < inside.y1
            if within and not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            axes.add_artist(text)  # where it is in the way, at least it is there
        taken.append(box)
