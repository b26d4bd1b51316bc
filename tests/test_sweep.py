"""The table of a sweep: mean and standard deviation over the seeds."""

import json
from pathlib import Path

import pytest
from conftest import Run, one_line

from mnist_pl.runs import sweep


def leave(folder: Path, overrides: list[str], accuracy: float | None, claim: float | None = None) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in overrides))
    facts = {
        "epochs": 3,
        "claim": claim,
        "val/acc": accuracy,
        "test/acc": accuracy and accuracy - 0.01,
        "test/loss": 0.1,
        "train_seconds": 9,
    }
    (folder / "summary.json").write_text(json.dumps(facts))


def test_seeds_are_gathered(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.9, 0.92)):
        leave(tmp_path / f"a{seed}", ["optimizer.lr=0.1", f"seed={seed}"], accuracy, claim=93.8)
    leave(tmp_path / "b", ["optimizer.lr=0.01", "seed=0"], None)
    head, _, first, second = sweep.table(sweep.read(tmp_path))
    assert "claimed %" in head
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells == [
        "optimizer.lr=0.1",
        "2",
        "3",
        "91.00 ± 1.41",
        "93.8",
        "90.00 ± 1.41",
        "0.1000 ± 0.0000",
        "9.0 ± 0.0",
    ]
    assert "–" in second


def test_the_command_prints_a_finished_sweep(run: Run, tmp_path: Path) -> None:
    leave(tmp_path / "sweep" / "0", ["model=mlp"], 0.5)
    ended = run("mnist_pl/sweep.py", "sweep")
    assert ended.code == 0 and "| model=mlp | 1" in ended.out
    assert "no run below nothing" in one_line(run("mnist_pl/sweep.py", "nothing"))
    ended = run("mnist_pl/sweep.py")
    assert ended.code == 2 and ended.err.startswith("usage: python -m mnist_pl.sweep") and "folder" in ended.err


@pytest.mark.promise(
    "a sweep with a failed job finishes the others and says so", "a learning rate of 1e30 among others"
)
def test_a_failed_job_does_not_stop_the_others(run: Run, tmp_path: Path) -> None:
    words = ["data=digits", "model=mlp", "callbacks=minimal", "logger=csv", "trainer.max_epochs=1"]
    words += ["optimizer=sgd", "scheduler=none", "optimizer.lr=0.1,1e30,0.01", "data.batch_size=32,0"]
    ended = run("train.py", "-m", *words, "hydra.sweep.dir=sweep")
    assert ended.code == 1
    assert len([line for line in ended.out.splitlines() if line.startswith("| data=digits")]) == 2, "the table is there"
    lines = ended.err.splitlines()
    assert len(lines) == 8 and all(line.startswith("error: ") for line in lines), ended.err
    assert "sweep/2 failed" in lines[5] and "optimizer.lr=1e+30" in lines[5] and "NaN or infinite" in lines[5]
    assert "sweep/1 failed" in lines[4] and "data.batch_size must be a positive whole number" in lines[4]
    assert not (tmp_path / "sweep/0/error.txt").exists()
    assert not (tmp_path / "sweep/2/checkpoints/last.ckpt").exists()
    ended = run("train.py", "resume=sweep/2", "optimizer.lr=0.1")
    assert ended.code == 0, ended.err
    assert not (tmp_path / "sweep/2/error.txt").exists()
