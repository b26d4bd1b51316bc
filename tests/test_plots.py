"""Pictures are drawn, and show what they should."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MNIST_ROOT, Run, Train, needs_mnist, one_line
from PIL import Image

from mnist_pl.data import MNISTDataModule, to_float
from mnist_pl.data.digits import embedded_digits
from mnist_pl.figures import plots
from mnist_pl.figures.answers import LABEL_ERRORS, Answers
from mnist_pl.figures.drawings import Mistakes
from mnist_pl.figures.drawings import Run as Drawn
from mnist_pl.reading.checkpoint import load_model

SHORT = ["callbacks=minimal", "+callbacks.answers={_target_: mnist_pl.callbacks.GatherAnswers}", "logger=csv"]


def test_the_sample_grid_command(run: Run, tmp_path: Path) -> None:
    ended = run("mnist_pl/plots.py")
    assert ended.code == 0, ended.err
    assert "digits: a batch is images (64, 1, 28, 28) torch.float32 and labels (64,)" in ended.out
    picture = np.asarray(Image.open(tmp_path / "samples.png").convert("L"))
    assert picture.min() < 50 and picture.mean() > 200
    ended = run("mnist_pl/plots.py", "--help")
    assert ended.code == 0 and "usage: python -m mnist_pl.plots" in ended.out


@pytest.mark.parametrize("suffix", ["_step", ""], ids=["steps", "epochs alone"])
def test_curves_show_training_as_a_line_and_epochs_as_dots(suffix: str) -> None:
    rows = [{"images": 0, "val/loss": 2.3, "val/acc": 0.1}]
    rows += [{"images": n * 1000, f"train/loss{suffix}": 1 / n, f"train/acc{suffix}": 1 - 1 / n} for n in range(1, 9)]
    rows += [{"images": 8000, "val/loss": 0.2, "val/acc": 0.9}]
    if suffix:
        rows += [{"images": 8000, "train/loss": 0.5, "train/acc": 0.8}]  # the epoch's means are not on the line
    figure = plots.curves(rows, "title")
    training, held_out = figure.axes[0].lines
    assert training.get_xdata().tolist() == list(range(1000, 9000, 1000)) and training.get_linestyle() == "-"
    assert held_out.get_xdata().tolist() == [0, 8000] and held_out.get_marker() == "o"
    assert held_out.get_linestyle() == "None"
    assert training.get_ydata().tolist() == [1 / n for n in range(1, 9)]
    assert figure.axes[0].get_xlabel() == "training examples seen"


def test_wrong_answers_are_red() -> None:
    sheet = plots.grid(np.zeros((3, 28, 28), np.uint8), ["1", "2, not 3", "4"], [False, True, False])
    colored = (np.asarray(sheet).astype(int).max(2) - np.asarray(sheet).min(2)) > 60
    assert colored[:, 120:240].any() and not colored[:, :120].any() and not colored[:, 240:].any()


def row(images: int, accuracy: float) -> dict[str, float]:
    return {"images": images, "val/acc": accuracy, "val/loss": 1 - accuracy}


def test_runs_are_compared_with_mean_and_band_over_the_seeds() -> None:
    seeds = [[row(0, 0.1), row(100, 0.8), row(200, 0.9)], [row(0, 0.1), row(100, 0.9), row(200, 0.94), row(300, 0.95)]]
    figure = plots.compare({"model=mlp": seeds, "model=cnn": seeds[1:]})
    mlp, cnn = figure.axes[1].lines
    assert mlp.get_xdata().tolist() == [0, 100, 200] and mlp.get_ydata().tolist() == pytest.approx([0.1, 0.85, 0.92])
    assert cnn.get_xdata().tolist() == [0, 100, 200, 300]
    (band,) = figure.axes[1].collections
    at_100 = [y for x, y in band.get_paths()[0].vertices if x == 100]
    assert max(at_100) - min(at_100) == pytest.approx(2 * np.std([0.8, 0.9], ddof=1))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["model=mlp (2 seeds)", "model=cnn"]


def test_the_comparison_command(run: Run, trained: Path, tmp_path: Path) -> None:
    ended = run("mnist_pl/plots.py", str(trained))
    assert ended.code == 0 and "compared.png: data=digits" in ended.out, ended.err
    with Image.open(tmp_path / "compared.png") as picture:
        assert picture.size[0] > 1000
    assert "none has a metrics.csv" in one_line(run("mnist_pl/plots.py", "nothing"))


def test_confusion_counts_truth_in_rows_and_answers_in_columns() -> None:
    labels, guesses = np.array([4, 4, 4, 9]), np.array([4, 9, 9, 9])
    figure = plots.confusion(labels, guesses, "title")
    texts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert texts == {(4, 4): "1", (9, 4): "2", (9, 9): "1"}
    assert [text.get_text() for text in figure.axes[1].texts] == ["33.33%", "100.00%"]


def test_calibration_shows_the_share_of_right_answers() -> None:
    confidences, right = np.array([0.55, 0.58, 0.99, 0.99]), np.array([True, False, True, True])
    figure = plots.calibration(confidences, right, 10, "title")
    assert figure.get_suptitle() == "title: expected calibration error 3.75%"  # half of 0.065 and half of 0.01
    points = figure.axes[0].containers[0].lines[0]
    assert points.get_xdata().tolist() == pytest.approx([0.565, 0.99]) and points.get_ydata().tolist() == [0.5, 1.0]
    assert [bar.get_height() for bar in figure.axes[1].patches if bar.get_height()] == [2, 2]


def test_filters_are_red_where_they_look_for_ink() -> None:
    pixels = np.asarray(plots.filters(np.array([[[1.0, 0.0], [-1.0, 0.0]]]))).astype(int)
    red, _, blue = pixels[10, 10]
    assert red > blue + 60
    red, _, blue = pixels[70, 10]
    assert blue > red + 60
    assert pixels[10, 70].tolist() == [255, 255, 255]


def test_half_as_many_wrong_answers_are_the_same_distance_everywhere() -> None:
    accuracies = [0.1, 0.8, 0.9, 0.98, 0.99, 1.0]
    figure = plots.curves([row(100 * number, accuracy) for number, accuracy in enumerate(accuracies)], "title")
    axes = figure.axes[1]
    heights = axes.transData.transform([(0, accuracy) for accuracy in accuracies])[:, 1]
    steps = np.diff(heights)
    assert steps[1] == pytest.approx(steps[3]) == pytest.approx(steps[4])
    assert axes.bbox.y0 < heights[0] and heights[-1] < axes.bbox.y1, "all of them are seen"
    figure.draw_without_rendering()
    assert [label.get_text() for label in axes.get_yticklabels()][-2:] == ["99 %", "100 %"]
    perfect = plots.curves([{"images": 0, "val/acc": 1.0}, {"images": 100, "val/acc": 1.0, "val/loss": 1e-9}], "title")
    perfect.draw_without_rendering()


def test_the_figures_of_the_test_are_those_of_its_answers(trained: Path) -> None:
    """Calibration error and accuracy of each digit, counted here from the checkpoint that was tested."""
    model, _ = load_model(trained / "checkpoints" / "best.ckpt")
    _, (images, labels) = embedded_digits()
    with torch.inference_mode():
        confidences, guesses = model(to_float(images)).softmax(dim=1).max(dim=1)
    right = (guesses == labels).double()
    (row,) = [row for row in plots.rows(trained / "metrics.csv") if "test/acc" in row]
    assert row["test/acc"] == pytest.approx(float(right.mean()))
    for digit in range(10):
        assert row[f"vs_digit/acc_{digit}"] == pytest.approx(float(right[labels == digit].mean()))
    bins = (confidences * 15).ceil()
    error = sum(abs(float((confidences - right)[bins == number].sum())) for number in range(16)) / 300
    assert row["test/calibration_error"] == pytest.approx(error, abs=1e-5)


@needs_mnist
def test_known_label_errors_are_marked_and_counted(
    monkeypatch: pytest.MonkeyPatch, train_here: Train, tmp_path: Path
) -> None:
    monkeypatch.setenv("MNIST_ROOT", MNIST_ROOT)
    train_here("data=mnist", "model=mlp", "trainer.max_epochs=1", "trainer.limit_train_batches=100", *SHORT)
    data = MNISTDataModule()
    data.setup("test")
    images, labels = data.splits["test"]
    model, _ = load_model(tmp_path / "run" / "checkpoints" / "best.ckpt")
    with torch.inference_mode():
        wrong = {int(place) for place in (model(to_float(images)).argmax(dim=1) != labels).nonzero()}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test/label_errors"] == len(wrong & LABEL_ERRORS.keys()) > 0
    assert summary["test_images"] == 10_000
    assert len(LABEL_ERRORS) == 15 and all(int(labels[place]) != seen for place, seen in LABEL_ERRORS.items())
    position = torch.tensor([5937, 0, 8527])  # the labels of the first and the last are in doubt
    guesses = torch.nn.functional.one_hot((labels[position] + 1) % 10, 10).float()
    answers = Answers(position, labels[position], guesses * torch.tensor([[0.9], [0.8], [0.7]]))
    sheet = Mistakes().draw(Drawn(model, data, answers, tmp_path))
    assert sheet is not None
    colored = (np.asarray(sheet).astype(int).max(2) - np.asarray(sheet).min(2)) > 60
    assert colored[:, :120].any() and not colored[:, 120:240].any() and colored[:, 240:].any()
