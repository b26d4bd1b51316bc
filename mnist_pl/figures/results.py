"""The scores of many runs -> pictures: lines over a number that was varied, a heat map over two, bars; a search."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_pl.figures.plots import BLUE, COLORS, GREY, LINES, ORANGE, RED, spread_out_high_accuracies, with_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 7
MOST_BARS = 30
Scored = tuple[Mapping[str, str], Sequence[float]]  # a choice, and the accuracy of each seed


def of_sweep(scored: Sequence[Scored], varied: Sequence[str], title: str) -> "Figure":
    """Of each choice, best first: a point for each seed, their mean, and a band of one standard deviation."""
    numbers = [key for key in varied if all(_number(choice[key]) is not None for choice, _ in scored)]
    numbers = [key for key in numbers if len({choice[key] for choice, _ in scored}) > 1]
    if len(numbers) == 2 and len(varied) == 2:
        down, across = sorted(numbers, key=lambda key: _is_rate(key, scored))
        return _heat_map(scored, down, across, title)
    if numbers:
        x = max(numbers, key=lambda key: (len({choice[key] for choice, _ in scored}), _is_rate(key, scored)))
        return _lines(scored, x, [key for key in varied if key != x], title)
    return _bars(scored, varied, title)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _values(key: str, scored: Sequence[Scored]) -> list[float]:
    return sorted({float(choice[key]) for choice, _ in scored})


def _is_rate(key: str, scored: Sequence[Scored]) -> bool:
    """Whether its values are to be as far apart as their ratios are."""
    values = _values(key, scored)
    return values[0] > 0 and values[-1] / values[0] >= 8


def _label(choice: Mapping[str, str], keys: Sequence[str]) -> str:
    return " ".join(f"{key}={choice[key]}" for key in keys if key in choice)


def _lines(scored: Sequence[Scored], x: str, others: Sequence[str], title: str) -> "Figure":
    series: dict[str, list[tuple[float, Sequence[float]]]] = {}
    for choice, values in scored:
        series.setdefault(_label(choice, others), []).append((float(choice[x]), values))
    shown = dict(list(series.items())[:MOST_LINES])
    if len(shown) < len(series):
        title += f"; the best {MOST_LINES} of {len(series)} lines"
    columns = 1 if max(map(len, shown)) > 40 else 2
    below = -(-len(shown) // columns) if "" not in shown else 0
    height = 3.9 + 0.2 * below
    picture, axes = with_axes(7.2, height, title, 0.11, (0.62 + 0.2 * below) / height, 0.97, 1 - 0.42 / height)
    for number, (label, points) in enumerate(shown.items()):
        points.sort()
        color, line = COLORS[number % len(COLORS)], LINES[number // len(COLORS) % len(LINES)]
        places = [place for place, _ in points]
        means = np.array([np.mean(values) for _, values in points])
        spread = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for _, values in points])
        axes.plot(places, means, line, color=color, marker="o", markersize=4, label=label)
        if spread.any():
            axes.fill_between(places, means - spread, means + spread, color=color, alpha=0.15, linewidth=0)
        for place, values in points:
            if len(values) > 1:
                axes.plot([place] * len(values), values, ".", color=color, alpha=0.6, markersize=5)
    ticks = _values(x, scored)
    if _is_rate(x, scored):
        axes.set_xscale("log")
    if len(ticks) <= 12:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    axes.set(xlabel=x)
    _accuracy_axis(axes, [value for points in shown.values() for _, values in points for value in values])
    if below:
        picture.legend(*axes.get_legend_handles_labels(), loc="lower left", frameon=False, fontsize=9, ncols=columns)
    return picture


def _heat_map(scored: Sequence[Scored], down: str, across: str, title: str) -> "Figure":
    rows, columns = _values(down, scored), _values(across, scored)
    means = np.full((len(rows), len(columns)), np.nan)
    spread = np.zeros_like(means)
    for choice, values in scored:
        place = rows.index(float(choice[down])), columns.index(float(choice[across]))
        means[place] = np.mean(values)
        spread[place] = np.std(values, ddof=1) if len(values) > 1 else 0.0
    width, height = max(4.8, 1.6 + 1.0 * len(columns)), max(3.0, 1.3 + 0.6 * len(rows))
    sides = (1.0 / width, 0.65 / height, 1 - 0.15 / width, 1 - 0.42 / height)
    picture, axes = with_axes(width, height, title, *sides)
    heights = -np.log10(np.maximum(1 - means, 1e-4))  # half as many wrong answers are a step, wherever
    low, high = np.nanmin(heights), np.nanmax(heights)
    axes.imshow(heights, cmap="Blues", vmin=low - 0.1, vmax=high + 0.7 * (high - low) + 0.1, aspect="auto")
    for place, mean in np.ndenumerate(means):
        text = "–" if np.isnan(mean) else f"{mean:.2%}" + (f"\n± {spread[place]:.2%}" if spread[place] else "")
        best = mean == np.nanmax(means)
        axes.text(place[1], place[0], text, ha="center", va="center", fontsize=9, weight="bold" if best else "normal")
    axes.set(xlabel=across, ylabel=down)
    axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    axes.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    axes.tick_params(length=0)
    return picture


def _bars(scored: Sequence[Scored], varied: Sequence[str], title: str) -> "Figure":
    """Horizontal, the best on top; from the worst one's neighbourhood, since no bar is long from 0 %."""
    shown = scored[:MOST_BARS]
    if len(shown) < len(scored):
        title += f"; the best {MOST_BARS} of {len(scored)}"
    only = varied[0] if len(varied) == 1 else ""
    labels = [choice[only] if only in choice else _label(choice, varied) or "all" for choice, _ in shown]
    room = min(3.8, 0.45 + 0.085 * max(map(len, labels)))
    width, height = 4.6 + room, 1.2 + 0.34 * len(shown)
    sides = (room / width, 0.6 / height, 1 - 0.2 / width, 1 - 0.42 / height)
    picture, axes = with_axes(width, height, f"{title}, by {only}" if only else title, *sides)
    means = [float(np.mean(values)) for _, values in shown]
    axes.barh(range(len(shown)), means, color=BLUE, alpha=0.35, height=0.62)
    for place, (_, values) in enumerate(shown):
        axes.plot(means[place], place, "|", color=BLUE, markersize=14, markeredgewidth=2)
        if len(values) > 1:
            axes.plot(values, [place] * len(values), ".", color=GREY, markersize=6)
    axes.set_yticks(range(len(shown)), labels)
    axes.invert_yaxis()
    _accuracy_axis(axes, [value for _, values in shown for value in values], across=True)
    return picture


def _accuracy_axis(axes: "Axes", accuracies: Sequence[float], across: bool = False) -> None:
    spread_out_high_accuracies(axes, accuracies, "x" if across else "y")
    axes.set(**{f"{'x' if across else 'y'}label": "accuracy"})
    axes.grid(alpha=0.3, axis="x" if across else "both")


def history(trials: Sequence[tuple[int, float | None, str]], title: str) -> "Figure":
    """The score of each trial (number, score, state as Optuna calls it), and the best finished one so far."""
    title += ": best validation accuracy of each trial"
    picture, axes = with_axes(7.5, 4.2, title, 0.1, 0.12, 0.98, 0.85)
    looks: dict[str, Any] = {
        "COMPLETE": {"label": "finished", "color": BLUE},
        "PRUNED": {"label": "given up", "edgecolor": GREY, "facecolor": "none"},
    }
    for state, look in looks.items():
        points = [(number, score) for number, score, how in trials if how == state and score is not None]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=22, zorder=3, **look)
    finished = [(number, score) for number, score, how in trials if how == "COMPLETE" and score is not None]
    numbers, scores = zip(*finished, strict=True)
    last = max(number for number, *_ in trials)
    best = np.maximum.accumulate(scores)
    axes.step([*numbers, last], [*best, best[-1]], where="post", color=ORANGE, linewidth=2, label="best so far")
    spread_out_high_accuracies(axes, [score for _, score, how in trials if how in looks and score is not None])
    failed = [number for number, _, how in trials if how == "FAIL"]
    if failed:
        bottom = axes.get_xaxis_transform()
        axes.scatter(failed, [0.02] * len(failed), s=22, color=RED, marker="x", label="failed", transform=bottom)
    axes.set(xlabel="trial", ylabel="validation accuracy")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=4, fontsize=9)
    return picture


def importances(shares: Mapping[str, float], title: str) -> "Figure":
    """Bars, the most important setting first; the shares sum to 1."""
    height = 1.1 + 0.32 * len(shares)
    title += ": what decides the score after the first validation (fANOVA)"
    picture, axes = with_axes(7.5, height, title, 0.3, 0.5 / height, 0.94, 1 - 0.4 / height)
    names = sorted(shares, key=lambda name: shares[name])
    axes.barh(names, [shares[name] for name in names], color=BLUE, height=0.6)
    for place, name in enumerate(names):
        axes.text(shares[name], place, f" {shares[name]:.0%}", va="center", fontsize=9)
    axes.set(xlabel="share of the importance", xlim=(0, max(shares.values()) * 1.12))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(axis="y", length=0)
    return picture
