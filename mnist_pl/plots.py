"""Pictures of data and of runs. `python -m mnist_pl.plots` draws a grid of samples."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind people too.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"


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
        place = (left + wide / 2, top + head - 2)
        draw.multiline_text(place, title, color, font, anchor="md", align="center")
        sheet.paste(
            Image.fromarray(255 - image).resize((side, side), Image.Resampling.NEAREST), (left + 18, top + head)
        )
    return sheet


def curves(rows: Sequence[dict[str, float]], title: str, held_out: str = "validation") -> "Figure":
    """Training loss (line) against the training examples seen, with the held-out loss of each epoch (dots)."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(9, 3.6))
    figure.subplots_adjust(0.075, 0.14, 0.985, 0.9, wspace=0.22)  # a layout engine would draw everything twice
    for axes, name, label in zip(figure.subplots(1, 2), ("loss", "acc"), ("cross entropy", "accuracy"), strict=True):
        seen, values = _column(rows, f"train/{name}")
        axes.plot(seen, values, color=BLUE, linewidth=1, label="training")
        seen, values = _column(rows, f"val/{name}")
        axes.plot(seen, values, "o", color=ORANGE, markersize=5, label=held_out)
        axes.set_xlabel("training examples seen")
        axes.set_ylabel(label)
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.grid(alpha=0.3)
    axes = figure.axes[0]
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def _column(rows: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    points = [(row["images"], row[name]) for row in rows if name in row]
    return [x for x, _ in points], [y for _, y in points]


def _thousands(value: float, _: Any) -> str:
    return f"{value / 1000:,.0f}k" if value else "0"


def save(picture: "Figure | Image.Image", path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, Image.Image):
        picture.save(path)
    else:
        picture.savefig(path, dpi=120, metadata={"Software": None})
    return path


def near(path: str | Path) -> str:
    """Relative to the current folder where that is shorter to type."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def main() -> None:
    from mnist_pl.data import MNISTDataModule

    data = MNISTDataModule(data_dir=os.environ.get("MNIST_ROOT", "data"), fallback="digits")
    data.prepare_data()
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    print(f"{data.dataset}: a batch is images {tuple(images.shape)} {images.dtype} and labels {tuple(labels.shape)}")
    print(f"wrote {save(grid(images[:10].numpy(), [str(int(label)) for label in labels[:10]]), Path('samples.png'))}")


if __name__ == "__main__":
    main()
