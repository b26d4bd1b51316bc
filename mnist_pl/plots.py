"""Pictures of data and of runs. `python -m mnist_pl.plots` draws a grid of samples."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # not pyplot: no global state, no display
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

# Okabe and Ito's colours, told apart by colour-blind people too.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"


def grid(images: NDArray[np.uint8], titles: Sequence[str], wrong: Sequence[bool] | None = None) -> Figure:
    """Images (N, 28, 28) with a title each, red where `wrong`."""
    columns = min(len(images), 5 if len(images) <= 20 else 10)
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.15 * columns, 1.4 * rows), layout="constrained")
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if number < len(images):
            axes.imshow(images[number], cmap="gray_r", vmin=0, vmax=255)
            axes.set_title(titles[number], fontsize=9, color=RED if wrong is not None and wrong[number] else "black")
    return figure


def curves(rows: Sequence[dict[str, float]], title: str, held_out: str = "validation") -> Figure:
    """Training loss (line) against the training examples seen, with the held-out loss of each epoch (dots)."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
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


def save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path


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
