"""What the presets give and cost is counted rightly, and shown as a table and as a picture."""

import csv
import json
import statistics
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, Train, one_line
from matplotlib.text import Text
from PIL import Image
from scipy import stats

from mnist_pl import benchmark
from mnist_pl.figures.front import System, best_for_any_budget
from mnist_pl.figures.front import front as picture_of
from mnist_pl.models import CNN
from mnist_pl.runs import front

COMMAND = "mnist_pl/presets.py"
SHORT = ["data=digits", "trainer.max_epochs=1", "callbacks=minimal", "logger=csv", "trainer.accelerator=cpu"]


@pytest.fixture
def folder(train_here: Train, tmp_path: Path) -> Path:
    """Real runs: two seeds of one preset, one of another."""
    for seed in (1, 2):
        train_here("experiment=seed_mlp", f"seed={seed}", *SHORT, folder=f"runs/mlp{seed}")
    train_here(
        "experiment=fast", "+callbacks.answers={_target_: mnist_pl.callbacks.GatherAnswers}", *SHORT, folder="runs/fast"
    )
    return tmp_path / "runs"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_runs_are_a_table_and_a_picture(run: Run, folder: Path, tmp_path: Path) -> None:
    ended = run(COMMAND, "runs", "--output", "mine.png")
    assert ended.code == 0, ended.err
    lines = [cells(line) for line in ended.out.splitlines() if line.startswith("| ")]
    table = {row[0]: dict(zip(lines[0], row, strict=True)) for row in lines[1:]}
    mlp = table["seed_mlp data=digits trainer.max_epochs=1"]
    facts = [json.loads((folder / f"mlp{seed}" / "summary.json").read_text()) for seed in (1, 2)]
    accuracies = [100 * one["test/acc"] for one in facts]
    assert mlp["test acc %"] == f"{statistics.fmean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}"
    assert (mlp["n"], mlp["parameters"], mlp["operations"], mlp["ECE %"]) == ("2", "39,760", "0.04", "–")
    assert mlp["seconds"] == f"{statistics.fmean(one['train_seconds'] for one in facts):.1f}"
    assert all(one["test_images"] == 300 for one in facts) and "minutes" not in mlp
    fast = next(row for name, row in table.items() if name.startswith("fast"))
    error = json.loads((folder / "fast" / "summary.json").read_text())["test/calibration_error"]
    assert fast["ECE %"] == f"{100 * error:.2f}" and "±" not in fast["test acc %"]
    assert max(map(len, ended.out.splitlines()[-5:])) <= 120
    with Image.open(tmp_path / "mine.png") as picture:
        assert picture.size[0] > 1000


@pytest.mark.long
def test_what_ships_has_a_row_for_every_preset(run: Run, tmp_path: Path) -> None:
    ended = run(COMMAND)
    assert ended.code == 0, ended.err
    shown = [cells(line)[0] for line in ended.out.splitlines() if line.startswith("| ")][1:]
    assert set(front.names()) <= set(shown) and len(shown) == len(set(shown))
    assert max(map(len, ended.out.splitlines())) <= 120
    assert (tmp_path / "front.png").exists() == any(one.seconds for one in front.kept())
    assert all(0 <= one.wrong < one.images and one.seconds >= 0 and one.commit for one in front.kept())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["empty"], "no run below empty has a summary.json"),
        (["nowhere"], "no run below nowhere has a summary.json"),
        (["begun"], "no run below begun has a summary.json"),
        (["--ouput=x.png"], "--ouput=x.png: there is no such option; did you mean --output?"),
        (["--keep"], "--keep: name the runs"),
        (["--output", "front.pdf"], "--output front.pdf: must be the name of a PNG file"),
    ],
)
def test_what_cannot_be_shown_is_one_line(run: Run, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun" / ".hydra").mkdir(parents=True)
    (tmp_path / "begun" / ".hydra" / "overrides.yaml").write_text("[experiment=fast]\n")
    assert said in one_line(run(COMMAND, *words))
    assert not list(tmp_path.glob("*.p*"))


def made(preset: str, *wrong: int, seconds: float = 2.0) -> list[front.Run]:
    machine = "cpu, 1 threads"
    return [
        front.Run(preset, seed, 10_000, count, 0.03, None, seconds, None, 1000, None, machine, "abc")
        for seed, count in enumerate(wrong)
    ]


def test_what_is_kept_replaces_what_the_preset_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(front, "KEPT", tmp_path / "front.csv")
    assert front.kept() == []
    asked: list[int] = []

    def minute(threads: int) -> float:
        asked.append(threads)
        return 40.0

    front.keep(made("good", 50, 60) + made("fast", 90), minute, "a processor")
    front.keep(made("good", 55, seconds=60.0), minute, "another")
    assert asked == [1, 1], "timed once for all runs with as many threads"
    good, fast = sorted(front.kept(), key=lambda one: one.wrong)
    assert (good.preset, good.wrong, good.minutes, good.machine) == ("good", 55, 1.5, "another, cpu, 1 threads")
    assert (fast.preset, fast.wrong, fast.minutes, fast.machine) == ("fast", 90, 0.05, "a processor, cpu, 1 threads")
    assert fast.calibration_error is None and fast.operations is None and fast.loss == 0.03
    with open(tmp_path / "front.csv", newline="") as file:
        assert [row["preset"] for row in csv.DictReader(file)] == ["fast", "good"]


def test_runs_of_several_machines_are_compared_by_their_minutes() -> None:
    slow, fast = made("good", 50, 52, seconds=60.0), made("best", 30, seconds=90.0)
    assert front.comparable([slow, fast]) == ([[60.0, 60.0], [90.0]], None)
    slow, fast = (
        [run._replace(minutes=run.seconds / minute) for run in runs] for runs, minute in ((slow, 60), (fast, 30))
    )
    assert front.comparable([slow, fast]) == ([[60.0, 60.0], [180.0]], 60.0)
    assert [preset.name for preset in front.presets([*fast, *slow])] == ["good", "best"]


def test_the_interval_is_students_over_seeds_and_wilsons_of_one() -> None:
    (several,) = front.presets(made("good", 50, 41, 62, 47))
    expected = stats.ttest_1samp([0.9950, 0.9959, 0.9938, 0.9953], 0).confidence_interval(0.95)
    assert several.interval() == pytest.approx(tuple(expected))
    (one,) = front.presets(made("good", 50))
    wilsons = stats.binomtest(9_950, 10_000).proportion_ci(method="wilson")
    assert one.interval() == pytest.approx(tuple(wilsons))


def test_operations_are_multiply_adds() -> None:
    assert front.operations(front.sketch("seed_mlp")) == 784 * 50 + 50 * 10
    first, second = 26 * 26 * 24 * 3 * 3, 11 * 11 * 48 * 24 * 3 * 3
    expected = first + second + 1200 * 200 + 200 * 10
    assert front.operations(front.sketch("seed_cnn3_adam")) == expected
    real = CNN(channels=(24, 48), kernel_sizes=(3, 3), hidden=(200,))
    assert front.operations(real) == expected, "of a network with numbers too"


def test_the_front_is_what_nothing_cheaper_is_as_good_as() -> None:
    generator = torch.Generator().manual_seed(0)
    places = [tuple(place) for place in torch.rand(200, 2, generator=generator).tolist()]
    best = best_for_any_budget(places)
    for cost, accuracy in places:
        beaten = any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in places)
        assert ((cost, accuracy) in best) != beaten
    assert best == sorted(best)


def test_names_in_the_picture_do_not_overlap() -> None:
    """Systems that are close together."""
    drawn = np.random.default_rng(1)
    systems = []
    for number in range(14):
        accuracies = 1 - 0.004 * 2 ** drawn.normal(size=5)
        mean = float(accuracies.mean())
        interval = mean - 0.0003, mean + 0.0003
        seconds = list(40 * 4 ** drawn.normal() * np.ones(5))
        systems.append(System(f"a_preset_{number}", seconds, list(accuracies), interval, number % 2 == 0))
    picture = picture_of(systems, 40.0)
    picture.draw_without_rendering()
    axes = picture.axes[0]
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == [system.name for system in systems]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes)


def test_the_cost_of_presets_is_measured_where_it_is_asked_for() -> None:
    assert benchmark.chosen("") == benchmark.ROWS
    assert [row.unit for row in benchmark.chosen("experiment=fast, all epochs")] == ["min"]
    assert {row.what for row in benchmark.chosen("experiment=")} >= {
        f"experiment={n}, all epochs" for n in front.names()
    }
    assert benchmark.compare([60.0, 90.0], [40.0, 40.0], "min")["result"] == 1.875
