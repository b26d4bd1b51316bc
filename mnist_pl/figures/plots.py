"""Arrays and the rows of metrics.csv -> pictures: samples, curves, confusion, calibration, filters."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mnist_pl.storage import write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind people too.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
COLORS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#000000")
# One for each digit: Paul Tol's muted scheme, and black.
DIGITS = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#000000")
SHOWN = 800  # pixels of the longer side of a picture with boxes, at least
LINES = ("-", "--", ":")  # for more curves than colours


def grid(images: NDArray[np.uint8], titles: Sequence[str], wrong: Sequence[bool] | None = None) -> Image.Image:
    """Images (N, 28, 28), dark on white, with a title of one or two lines each, red where `wrong`."""
    columns = min(len(images), 5 if len(images) <= 20 else 10)
    rows = -(-len(images) // columns)
    font = ImageFont.load_default(13)
    lines = max(title.count("\n") for title in titles) + 1
    wide, side, head = 120, 28 * 3, 18 * lines + 4
    sheet = Image.new("RGB", (wide * columns, (head + side + 10) * rows), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, title) in enumerate(zip(images, titles, strict=True)):
        left, top = number % columns * wide, number // columns * (head + side + 10)
        color = RED if wrong is not None and wrong[number] else "black"
        draw.multiline_text((left + wide / 2, top + head - 2), title, color, font, anchor="md", align="center")
        large = Image.fromarray(255 - image).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(large, (left + 18, top + head))
    return sheet


def boxes(gray: NDArray[np.uint8], marked: Sequence[tuple[tuple[int, int, int, int], str]]) -> Image.Image:
    """A picture (H, W) with a box (left, top, right, bottom) around each digit, and over it what it was read as."""
    grow = max(1, -(-SHOWN // max(gray.shape)))
    picture = Image.fromarray(gray).convert("RGB").resize((gray.shape[1] * grow, gray.shape[0] * grow))
    draw = ImageDraw.Draw(picture)
    line = max(2, round(max(picture.size) / 400))
    for box, text in marked:
        left, top, right, bottom = (value * grow for value in box)
        draw.rectangle((left - line, top - line, right + line, bottom + line), outline=RED, width=line)
        font = ImageFont.load_default(max(14, min(48, (bottom - top) // 2)))
        place = (left, top - line)
        draw.rectangle(draw.textbbox(place, text, font, anchor="lb"), fill="white")
        draw.text(place, text, RED, font, anchor="lb")
    return picture


def sheet(pictures: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Pictures of any size, shrunk or enlarged to small ones, with a title of one or two lines each."""
    columns, wide, high, head = min(len(pictures), 10), 150, 112, 38
    page = Image.new("RGB", (wide * columns, (head + high + 8) * -(-len(pictures) // columns)), "#bbbbbb")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for number, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        left, top = number % columns * wide, number // columns * (head + high + 8)
        draw.multiline_text((left + 4, top + head - 3), title, "black", font, anchor="ld")
        shrunk = ImageOps.contain(picture.convert("RGB"), (wide - 8, high))
        page.paste(shrunk, (left + 4, top + head))
    return page


def filters(weights: NDArray[np.floating]) -> Image.Image:
    """A first layer's weights (N, H, W): red where it looks for ink, blue where for none, white where it does not care;
    all on one scale, whose end is the largest weight."""
    share = weights / np.abs(weights).max()
    ink, paper = np.array([178, 24, 43]), np.array([33, 102, 172])  # told apart by colour-blind people too
    toward = np.where(share[..., None] > 0, ink, paper)
    colored = (255 + np.abs(share)[..., None] * (toward - 255)).round().astype(np.uint8)
    columns, side = min(len(weights), 8), 72
    sheet = Image.new("RGB", ((side + 8) * columns + 8, (side + 8) * -(-len(weights) // columns) + 8), "#cccccc")
    for number, pixels in enumerate(colored):
        place = ((side + 8) * (number % columns) + 8, (side + 8) * (number // columns) + 8)
        sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), place)
    return sheet


def curves(rows: Sequence[dict[str, float]], title: str, held_out: str = "validation") -> "Figure":
    """Training loss (line) against the training examples seen, with the held-out loss of each epoch (dots)."""
    picture, both = _loss_and_accuracy(title)
    training = "train/{}_step" if any("train/loss_step" in row for row in rows) else "train/{}"
    for axes, name in zip(both, ("loss", "acc"), strict=True):
        axes.plot(*_column(rows, training.format(name)), color=BLUE, linewidth=1, label="training")
        x, y = _column(rows, f"val/{name}")
        axes.plot(x, y, "o", color=ORANGE, markersize=5, label=held_out if x else None)
    both[0].legend(frameon=False)
    shown = [row[name] for row in rows for name in (training.format("acc"), "val/acc") if name in row]
    spread_out_high_accuracies(both[1], shown)
    return picture


def compare(runs: Mapping[str, Sequence[Sequence[dict[str, float]]]]) -> "Figure":
    """The held-out curves of several choices (rows of metrics.csv, a list for each seed): their means, with a band of
    one standard deviation over the seeds, at the points that all of them have."""
    picture, both = _loss_and_accuracy("held-out images, mean and standard deviation over the seeds")
    for axes, name in zip(both, ("loss", "acc"), strict=True):
        for number, (choice, seeds) in enumerate(runs.items()):
            points = [dict(zip(*_column(rows, f"val/{name}"), strict=True)) for rows in seeds]
            seen = sorted(set.intersection(*map(set, points)))
            values = np.array([[curve[x] for x in seen] for curve in points]).reshape(len(points), len(seen))
            color, line = COLORS[number % len(COLORS)], LINES[number // len(COLORS) % len(LINES)]
            label = choice if len(seeds) == 1 else f"{choice} ({len(seeds)} seeds)"
            middle = values.mean(axis=0)
            axes.plot(seen, middle, line, color=color, marker="o", markersize=3, label=label)
            if len(seeds) > 1:
                spread = values.std(axis=0, ddof=1)
                axes.fill_between(seen, middle - spread, middle + spread, color=color, alpha=0.2, linewidth=0)
    trained = [row for seeds in runs.values() for rows in seeds for row in rows if row.get("images", 0)]
    spread_out_high_accuracies(both[1], [row["val/acc"] for row in trained if "val/acc" in row])
    height = 3.7 + 0.17 * len(runs)
    picture.set_size_inches(9, height)
    picture.subplots_adjust(bottom=(0.6 + 0.17 * len(runs)) / height, top=1 - 0.36 / height)
    picture.legend(*both[0].get_legend_handles_labels(), loc="lower left", frameon=False, fontsize=8)
    return picture


def spread_out_high_accuracies(axes: "Axes", accuracies: Sequence[float], name: Literal["x", "y"] = "y") -> None:
    """Shows `accuracies` on an axis where 98 % is as far from 99 % as 80 % is from 90 %: half as many wrong answers."""
    wrong = [1 - accuracy for accuracy in accuracies if accuracy < 1]
    if not wrong:
        return
    least = min(wrong)  # 100 % would be infinitely far; it is drawn where half as many are wrong, with a little room

    def height(accuracy: NDArray[np.floating]) -> NDArray[np.floating]:
        return -np.log10(np.maximum(1 - accuracy, least / 2)) + np.maximum(accuracy - 1, 0)

    axis = axes.yaxis if name == "y" else axes.xaxis
    set_scale, set_limits = (axes.set_yscale, axes.set_ylim) if name == "y" else (axes.set_xscale, axes.set_xlim)
    set_scale("function", functions=(height, lambda y: 1 - 10.0**-y))
    perfect = [1.0] if len(wrong) < len(accuracies) else []
    low, high = 1 - min(1.0, max(wrong) * 1.15), 1 - least * 0.85
    set_limits(low, 1.05 if perfect else high)
    for shares in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), np.arange(1, 10, 0.2)):  # of wrong answers, in any decade
        marks = [1 - share * 10.0**-power for power in range(5) for share in shares]
        marks = sorted(mark for mark in marks if low <= mark <= high) + perfect
        if len(marks) > 2:
            break
    axis.set_ticks(marks)
    axis.set_major_formatter(lambda value, _: f"{value * 100:.4g} %")


def confusion(labels: NDArray[np.int64], guesses: NDArray[np.int64], title: str) -> "Figure":
    """How often each digit (row) got each answer (column), and the accuracy of each digit."""
    picture = figure(8.4, 5.4, title)
    left, right = picture.subplots(1, 2, width_ratios=(3, 1))
    picture.subplots_adjust(0.07, 0.1, 0.92, 0.92, wspace=0.12)
    counts = np.bincount(10 * labels + guesses, minlength=100).reshape(10, 10)
    mistakes = np.where(np.eye(10, dtype=bool), 0, counts)
    left.imshow(mistakes, cmap="Oranges", vmax=max(1, mistakes.max()) * 1.4, aspect="auto")
    for (truth, guess), count in np.ndenumerate(counts):
        if count:
            color = GREY if truth == guess else "black"
            left.text(guess, truth, f"{count:,}", ha="center", va="center", fontsize=9, color=color)
    left.set(xlabel="answer", ylabel="truth", xticks=range(10), yticks=range(10))
    left.tick_params(length=0)
    totals = counts.sum(axis=1)
    shares = np.diag(counts) / np.maximum(totals, 1)
    seen = np.flatnonzero(totals)
    low = max(0.0, 1 - 1.25 * (1 - shares[seen].min(initial=1.0)) - 0.001)
    right.barh(seen, shares[seen] - low, left=low, color=BLUE, height=0.6)
    for digit in seen:
        right.text(1 + (1 - low) * 0.04, digit, f"{shares[digit]:.2%}", va="center", fontsize=9)
    right.set(xlim=(low, 1), ylim=left.get_ylim(), yticks=range(10), xlabel="accuracy of each digit")
    right.locator_params(axis="x", nbins=3)
    right.xaxis.set_major_formatter("{x:.1%}")
    return picture


def calibration(confidences: NDArray[np.floating], right: NDArray[np.bool_], bins: int, title: str) -> "Figure":
    """A reliability diagram: the accuracy of answers that were about as confident, and how many these are."""
    place = np.minimum((confidences * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    some = np.flatnonzero(count)
    n = count[some]
    share = np.bincount(place, right, bins)[some] / n
    mean = np.bincount(place, confidences, bins)[some] / n
    error = float((n * np.abs(share - mean)).sum() / n.sum())
    picture = figure(5.2, 5.6, f"{title}: expected calibration error {error:.2%}")
    upper, lower = picture.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    picture.subplots_adjust(0.17, 0.1, 0.96, 0.89, hspace=0.08)
    upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="as right as it is sure")
    look: dict[str, Any] = {"fmt": "o", "color": BLUE, "markersize": 5, "capsize": 2, "linewidth": 1}
    ranges = np.abs(np.array(wilson(share, n)) - share)
    upper.errorbar(mean, share, ranges, **look, label="answers, with 95 % intervals")
    upper.set(ylabel="share of right answers", ylim=(-0.03, 1.03), xlim=(0, 1.015))
    upper.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=2, fontsize=9)
    lower.bar((np.arange(bins) + 0.5) / bins, count, 0.9 / bins, color=ORANGE)
    lower.set(yscale="log", ylabel="answers", xlabel="confidence", ylim=(0.6, None))
    lower.yaxis.set_major_formatter("{x:,.0f}")
    return picture


def wilson(share: Any, count: Any, z: float = 1.96) -> tuple[Any, Any]:
    """The interval of a share of so many, or of each of several shares, at 95 %."""
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - half, middle + half


def figure(width: float, height: float, title: str) -> "Figure":
    """Inches. Without a layout engine, which would draw everything twice."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    picture = Figure(figsize=(width, height))
    picture.suptitle(title, fontsize=10, y=1 - 0.09 / height, va="top")
    return picture


def with_axes(width: float, height: float, title: str, *sides: float) -> "tuple[Figure, Axes]":
    """A figure with axes from `sides`: the left, bottom, right and top of them, as shares of it."""
    picture = figure(width, height, title)
    picture.subplots_adjust(*sides)
    return picture, picture.subplots()


def _loss_and_accuracy(title: str) -> "tuple[Figure, Sequence[Axes]]":
    from matplotlib.ticker import LogFormatter

    class Short(LogFormatter):
        """0.6, where Matplotlib's own, 6 times 10 to the power of -1, leave no room for the label."""

        def __call__(self, value: float, pos: int | None = None) -> str:
            return f"{value:g}" if super().__call__(value, pos) else ""

    picture = figure(9, 3.6, title)
    both = picture.subplots(1, 2)
    picture.subplots_adjust(0.1, 0.14, 0.985, 0.9, wspace=0.27)
    for axes, label in zip(both, ("cross entropy", "accuracy"), strict=True):
        axes.set(xlabel="training examples seen", ylabel=label)
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        axes.grid(alpha=0.3)
    both[0].set_yscale("log")
    both[0].yaxis.set_major_formatter("{x:g}")
    both[0].yaxis.set_minor_formatter(Short())
    return picture, both


def _short(count: float) -> str:
    return f"{count / 1e6:g}M" if count >= 1e6 else f"{count / 1e3:g}k" if count else "0"


def _column(rows: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    points = [(row["images"], row[name]) for row in rows if name in row]
    return [x for x, _ in points], [y for _, y in points]


def rows(path: Path) -> list[dict[str, float]]:
    """Of a metrics.csv, without the empty cells; none where there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        whole = [line for line in file if line.endswith("\n")]  # not one that a killed process had begun
    return [{name: _number(value) for name, value in row.items() if value} for row in csv.DictReader(whole)]


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def save(picture: "Figure | Image.Image", path: Path) -> Path:
    content = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(content, "PNG")
    else:
        picture.savefig(content, dpi=120, metadata={"Software": None})
    write(path, content.getbuffer())
    return path
