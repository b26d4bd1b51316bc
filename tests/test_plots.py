"""Pictures are drawn, and show what they say."""

from pathlib import Path

import numpy as np
from conftest import Run
from PIL import Image

from mnist_pl import plots


def test_the_sample_grid_command(run: Run, tmp_path: Path) -> None:
    ended = run("mnist_pl/plots.py")
    assert ended.code == 0, ended.err
    assert "images (64, 28, 28) torch.uint8 and labels (64,)" in ended.out
    picture = np.asarray(Image.open(tmp_path / "samples.png").convert("L"))
    assert picture.min() < 50 and picture.mean() > 200


def test_curves_show_training_as_a_line_and_epochs_as_dots() -> None:
    rows = [{"images": 0, "val/loss": 2.3, "val/acc": 0.1}]
    rows += [{"images": n * 1000, "train/loss": 1 / n, "train/acc": 1 - 1 / n} for n in range(1, 9)]
    rows += [{"images": 8000, "val/loss": 0.2, "val/acc": 0.9}]
    figure = plots.curves(rows, "title")
    training, held_out = figure.axes[0].lines
    assert training.get_xdata().tolist() == list(range(1000, 9000, 1000)) and training.get_linestyle() == "-"
    assert held_out.get_xdata().tolist() == [0, 8000] and held_out.get_marker() == "o"
    assert held_out.get_linestyle() == "None"
    assert figure.axes[0].get_xlabel() == "training examples seen"


def test_wrong_answers_are_red() -> None:
    sheet = plots.grid(np.zeros((3, 28, 28), np.uint8), ["1", "2, not 3", "4"], [False, True, False])
    colored = (np.asarray(sheet).astype(int).max(2) - np.asarray(sheet).min(2)) > 60
    assert colored[:, 120:240].any() and not colored[:, :120].any() and not colored[:, 240:].any()
