"""`python -m mnist_pl.plots`: draws ten samples; with runs or folders of runs named, compares their curves."""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from mnist_pl.data import MNISTDataModule
from mnist_pl.figures.plots import compare, grid, rows, save
from mnist_pl.runs.errors import set_up_streams
from mnist_pl.runs.sweep import choice


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mnist_pl.plots", description=__doc__)
    parser.add_argument("folders", nargs="*", help="runs, or folders of runs, as outputs or multirun/presets")
    folders = parser.parse_args().folders
    if folders:
        compare_runs([Path(folder) for folder in folders])
    else:
        draw_samples()


def compare_runs(folders: list[Path]) -> None:
    """compared.png: validation curves, mean and band over the seeds of each choice."""
    runs: dict[str, list[list[dict[str, float]]]] = defaultdict(list)
    for folder in folders:
        records = sorted(folder.glob("**/metrics.csv"), key=lambda path: path.stat().st_mtime)
        if not records:
            sys.exit(f"error: {folder}: neither a run nor a folder of runs; none has a metrics.csv")
        for record in records:
            runs[choice(record.parent)].append(rows(record))
    print(f"wrote {save(compare(runs), Path('compared.png'))}: {', '.join(runs)}")


def draw_samples() -> None:
    """samples.png: training images, of the embedded digits where there is no MNIST."""
    data = MNISTDataModule(fallback="digits")
    data.prepare_data()
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    print(f"{data.dataset}: a batch is images {tuple(images.shape)} {images.dtype} and labels {tuple(labels.shape)}")
    pixels = (images[:10, 0] * 255).round().byte().numpy()
    print(f"wrote {save(grid(pixels, [str(int(label)) for label in labels[:10]]), Path('samples.png'))}")


if __name__ == "__main__":
    set_up_streams()
    main()
