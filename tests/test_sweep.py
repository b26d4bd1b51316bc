"""A sweep tells how far it is, ends with its answer, and survives."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import ROOT, Run, one_line, start
from test_resume import same

from mnist_pl.figures.results import of_sweep
from mnist_pl.reading import checkpoint
from mnist_pl.runs import sweep
from mnist_pl.runs.plan import PLAN, SUBDIR
from mnist_pl.storage import FolderLock

KILLS = int(os.environ.get("KILLS", 3))
TINY = ["data=digits", "model=mlp", "model.hidden=[8]", "callbacks=minimal", "logger=csv", "trainer.max_epochs=2"]


def leave(folder: Path, overrides: list[str], val: float | None, test: float | None = None, **more: float) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in overrides))
    facts = {"val/acc": val, "val/loss": 0.2, "test/acc": test or val, "test/loss": 0.1, "train_seconds": 9, **more}
    (folder / "summary.json").write_text(json.dumps(facts))


def planned(folder: Path, jobs: list[list[str]]) -> None:
    folder.mkdir(exist_ok=True)
    plan = {"task": [], "hydra": [], "config_name": "train", "config_dirs": [], "subdir": SUBDIR, "jobs": jobs}
    (folder / PLAN).write_text(json.dumps(plan))


def test_choices_are_ranked_by_validation(tmp_path: Path) -> None:
    jobs = [[f"optimizer.lr={lr}", "model=mlp", f"seed={seed}"] for lr in (0.1, 0.01, 1) for seed in (1, 2)]
    planned(tmp_path, jobs)
    for number, (val, test) in enumerate([(0.9, 0.99), (0.92, 0.99), (0.95, 0.8), (0.97, 0.82)]):
        leave(tmp_path / str(number), jobs[number], val, test)
    (tmp_path / "4.error.txt").write_text("the loss is NaN\n")
    lock = FolderLock(tmp_path / "5")
    head, _, first, second, third = sweep.report(tmp_path, sweep.jobs(tmp_path))[:5]
    lock.release()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, first, second, third)]
    assert cells[0] == ["optimizer.lr", "seeds", "val/acc %", "test/acc %", "seconds", "state"]
    assert cells[1] == ["0.01", "2", "96.00 ± 1.41", "81.00 ± 1.41", "9.0 ± 0.0", "done"]
    assert cells[2][0] == "0.1" and cells[3] == ["1", "0", "–", "–", "–", "1 failed, 1 running"]
    text = (tmp_path / "results.md").read_text()
    assert "best      by validation accuracy: optimizer.lr=0.01" in text and "NaN" in text and first in text
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["optimizer.lr"] for row in rows] == ["0.01", "0.1", "1"] and float(rows[0]["val/acc"]) == 0.96
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_chosen_by_the_test_images(tmp_path: Path) -> None:
    planned(tmp_path, [["model=mlp"], ["model=cnn"]])
    leave(tmp_path / "0", ["model=mlp"], 0.9, **{"val/loss": 0.1, "claim": 93.8})
    leave(tmp_path / "1", ["model=cnn"], 0.99, **{"val/loss": 0.1})
    lines = sweep.report(tmp_path, sweep.jobs(tmp_path))
    assert "mlp" in lines[2] and "93.8" in lines[2] and "none is named" in lines[-1]


def test_seeds_are_counted_once(tmp_path: Path) -> None:
    """Over two sweeps; a job that was resumed with another setting counts as that."""
    for name in ("one", "two"):
        planned(tmp_path / name, [["model=mlp", "seed=1"], ["model=cnn", "seed=1"]])
        leave(tmp_path / name / "0", ["model=mlp", "seed=1"], 0.9)
        leave(tmp_path / name / "1", ["model=cnn", "seed=1", f"optimizer.lr={name == 'one'}"], 0.8)
    leave(tmp_path / "alone", ["model=mlp", "seed=2"], 0.92)
    rows, keys = sweep.rank(sweep.jobs(tmp_path))
    assert keys == ["model", "optimizer.lr"]
    assert [(row.choice["model"], row.seeds()) for row in rows] == [("mlp", 2), ("cnn", 1), ("cnn", 1)]


def test_what_is_drawn() -> None:
    rates = ("0.1", "0.01", "0.001")
    scored = [({"lr": lr, "model": name}, [0.9, 0.92]) for lr in rates for name in ("mlp", "cnn")]
    lines = of_sweep(scored, ["lr", "model"], "")
    (axes,) = lines.axes
    assert axes.get_xscale() == "log" and [text.get_text() for text in axes.get_xticklabels()] == [*rates[::-1]]
    assert len(lines.legends[0].get_texts()) == 2 and len(axes.collections) == 2, "a line and a band for each model"
    grid = [({"lr": lr, "model.dropout": drop}, [0.97]) for lr in rates for drop in ("0", "0.5")]
    (axes,) = of_sweep(grid, ["lr", "model.dropout"], "").axes
    assert axes.images and len(axes.texts) == 6 and axes.get_xlabel() == "lr"
    (axes,) = of_sweep(
        [({"model": name}, [score]) for name, score in (("cnn", 0.99), ("mlp", 1.0))], ["model"], ""
    ).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["cnn", "mlp"] and len(axes.patches) == 2
    many = [({"lr": lr, "optimizer": f"o{n}"}, [0.9 - n / 100]) for n in range(12) for lr in rates]
    assert len(of_sweep(many, ["lr", "optimizer"], "").axes[0].lines) == 7


def test_the_command_prints_a_sweep(run: Run, tmp_path: Path) -> None:
    leave(tmp_path / "sweep" / "0", ["model=mlp"], 0.5)
    ended = run("mnist_pl/sweep.py", "sweep")
    assert ended.code == 0 and "| 1     | 50.00" in ended.out and not (tmp_path / "sweep" / "results.md").exists()
    assert "no run below nothing" in one_line(run("mnist_pl/sweep.py", "nothing"))
    ended = run("mnist_pl/sweep.py")
    assert ended.code == 2 and ended.err.startswith("usage: python -m mnist_pl.sweep") and "folder" in ended.err


@pytest.mark.promise(
    "a sweep with a failed job finishes the others and says so", "a learning rate of 1e30 among others"
)
def test_a_failed_job_does_not_stop_the_others(run: Run, tmp_path: Path) -> None:
    words = ["optimizer=sgd", "scheduler=none", "optimizer.lr=0.1,1e30,0.01", "data.batch_size=32,0"]
    ended = run("train.py", "-m", *TINY, *words, "hydra.sweep.dir=sweep")
    assert ended.code == 1
    lines = [line.split() for line in ended.out.splitlines()]
    places = [line[0] for line in lines if line and line[0].endswith("/6")]
    assert places == [f"{number}/6" for number in range(1, 7)] and "epoch" not in ended.out
    assert sum(line[-2:] == ["done", "|"] for line in lines) == 2, "the table is there"
    assert sum(line[-2:] == ["failed", "|"] for line in lines) == 4
    errors = ended.err.splitlines()
    assert len(errors) == 4 and all(line.startswith("error: sweep/") for line in errors), ended.err
    assert "sweep/2 (optimizer.lr=1e+30 data.batch_size=32) failed" in errors[1] and "NaN or infinite" in errors[1]
    assert "sweep/1 (optimizer.lr=0.1 data.batch_size=0) failed: data.batch_size must be a positive" in errors[0]
    assert not (tmp_path / "sweep/2/checkpoints/last.ckpt").exists()
    assert "holds an existing sweep" in one_line(run("train.py", "-m", *TINY, "seed=1,2", "hydra.sweep.dir=sweep"))
    assert run("train.py", "resume=sweep/2", "optimizer.lr=0.2").code == 0
    ended = run("mnist_pl/sweep.py", "sweep")
    assert ended.code == 0 and "| 0.2 " in ended.out and "1e+30" in ended.out


@pytest.mark.promise("a killed sweep is resumed: nothing is lost, or run twice", "SIGKILL at random moments")
def test_a_sweep_survives(run: Run, tmp_path: Path, record_property: Any) -> None:
    """The same bits, and the same report, as of one that was never killed."""
    command = ["-m", *TINY, "optimizer.lr=0.01,0.001", "seed=1" if KILLS < 20 else "seed=range(1,11)"]
    assert run("train.py", *command, "hydra.sweep.dir=whole").code == 0
    random, killed, sweeps = Random(KILLS), 0, 0
    while killed < KILLS:
        sweeps += 1
        folder, ended = tmp_path / f"killed{sweeps}", dict[Path, int]()
        while not (folder / "results.csv").exists():
            fresh = [*command, f"hydra.sweep.dir={folder.name}"]
            words = [f"resume={folder.name}"] if (folder / PLAN).exists() else fresh
            process = start(tmp_path, "train.py", *words)
            process.join(random.uniform(0.3, 3.0) if killed < KILLS else 120)
            killed += process.is_alive()
            process.kill()
            process.join()
            for path in folder.glob("*/summary.json"):
                assert ended.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, "it was run twice"
        same_sweeps(tmp_path / "whole", folder)
    record_property("tried", killed)


def same_sweeps(one: Path, other: Path) -> None:
    """To the last bit, but for the seconds."""
    reports = [list(csv.DictReader((sweep / "results.csv").read_text().splitlines())) for sweep in (one, other)]
    for row in [row for report in reports for row in report]:
        del row["train_seconds"], row["train_seconds_sd"]
    assert reports[0] == reports[1]
    paths = sorted(one.glob("*/checkpoints/last.ckpt"))
    assert paths
    for path in paths:
        same_weights(path, other / path.relative_to(one))


def same_weights(*paths: Path) -> None:
    one, two = (checkpoint.read(path) for path in paths)
    for name in ("state_dict", "optimizer_states", "global_step"):
        same(one[name], two[name])


def test_a_sweep_is_resumed_as_it_was(run: Run, tmp_path: Path) -> None:
    """Not with other settings, and not with what could be a stranger's code."""
    assert run("train.py", "-m", *TINY, "seed=1,2", "hydra.sweep.dir=sweep").code == 0
    (tmp_path / "sweep/1/summary.json").unlink()
    ended = run("train.py", "resume=sweep")
    assert ended.code == 0 and "2 jobs, of which 1 have ended before" in ended.out, ended
    assert "leave out optimizer.lr=1" in one_line(run("train.py", "resume=sweep", "optimizer.lr=1"))
    plan = json.loads((tmp_path / "sweep" / PLAN).read_text())
    evil = "hydra.callbacks.x._target_=test_own_parts.Evil"
    for where in ("task", "hydra"):
        (tmp_path / "sweep" / PLAN).write_text(json.dumps({**plan, where: [*plan[where], f"+{evil}"]}))
        line = one_line(run("train.py", "resume=sweep"))
        assert "say it again" in line and evil in line
    (tmp_path / "sweep" / PLAN).write_text(json.dumps({**plan, "config_dirs": ["conf"]}))
    assert "--config-dir=conf" in one_line(run("train.py", "resume=sweep"))


@pytest.mark.long
@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGTERM],
        pytest.param([signal.SIGKILL, signal.SIGINT], marks=pytest.mark.combination),
    ],
)
def test_side_by_side(tmp_path: Path, numbers: list[signal.Signals]) -> None:
    """The bits of a job alone, third of a sweep, and beside others; killed, stopped, and resumed."""
    command = [sys.executable, str(ROOT / "train.py")]
    jobs, environment = [*TINY, "threads=1", "trainer.max_epochs=40"], {**os.environ, "PYTHONPATH": str(ROOT)}
    beside = ["-m", *jobs, "optimizer.lr=0.01,0.003", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]

    def finish(*words: str) -> str:
        ended = subprocess.run([*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0 and not ended.stderr, ended.stderr
        return ended.stdout

    finish("-m", *jobs, "optimizer.lr=0.01,0.003", "seed=1,2", "hydra.sweep.dir=whole")
    finish(*jobs, "optimizer.lr=0.003", "seed=1", "hydra.run.dir=alone")
    finish(*beside, "hydra.sweep.dir=beside")
    for number in numbers:
        name = number.name
        process = subprocess.Popen(
            [*command, *beside, f"hydra.sweep.dir={name}"],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while len(list(tmp_path.glob(f"{name}/*/checkpoints/last.ckpt"))) < 2:
            time.sleep(0.05)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
        if number != signal.SIGKILL:
            assert err == f"stopped by {name}; continue with resume={name}\n"
        finish(f"resume={name}")
        assert len(list(tmp_path.glob(f"{name}/*/summary.json"))) == 4
    for name in ("beside", *(number.name for number in numbers)):
        same_sweeps(tmp_path / "whole", tmp_path / name)
    same_weights(tmp_path / "alone/checkpoints/last.ckpt", tmp_path / "whole/2/checkpoints/last.ckpt")


@pytest.mark.long
def test_a_job_that_is_killed_beside_others(tmp_path: Path) -> None:
    words = [*TINY, "trainer.max_epochs=200", "seed=1,2,3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *words, "hydra.sweep.dir=sweep"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob("sweep/0/checkpoints/last.ckpt")):
        time.sleep(0.05)
    os.kill(int((tmp_path / "sweep/0/.lock").read_text().split()[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.count("\n") == 1 and err.endswith("continue with resume=sweep\n"), err
