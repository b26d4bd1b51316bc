"""The table of a sweep: mean and standard deviation over the seeds."""

import json
from pathlib import Path

from conftest import Run, one_line

from mnist_pl import sweep


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
    assert "say which folder" in one_line(run("mnist_pl/sweep.py"))
