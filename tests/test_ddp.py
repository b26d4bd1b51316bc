"""Several processes of one run: the same counts as of one, one record, and they end together."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, ComposeRun, Run, start
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from test_resume import same_runs
from test_train import QUICK, summary

from mnist_pl.figures.plots import rows
from mnist_pl.reading import checkpoint

THREE = ("trainer.accelerator=cpu", "trainer.devices=3", "data.val_size=201", "data.batch_size=17", "model.hidden=[8]")
FORK = "trainer.strategy=ddp_fork"
OURS = {"PYTHONPATH": str(ROOT / "tests")}  # for the processes that are programs of their own
LONG = pytest.mark.long


class Strike(Callback):
    """At a hook, in one of the processes: a signal, an error or an end; the others go on."""

    every_n_steps = None

    def __init__(self, hook: str, rank: int, what: str, step: int = 0, sanity: bool = False) -> None:
        self.left, self.rank, self.what, self.step, self.sanity = True, rank, what, step, sanity
        setattr(self, hook, self.strike)

    def strike(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if not self.left or trainer.sanity_checking != self.sanity or trainer.global_step < self.step:
            return
        self.left = False
        if trainer.global_rank == self.rank or self.rank < 0:
            if self.what == "ValueError":
                raise ValueError("something that a user can mend")
            if self.what == "wait":
                Path("waits").touch()
                time.sleep(60)
            os.kill(os.getpid(), getattr(signal, self.what))


def strike(**how: Any) -> str:
    return "+callbacks.strike={_target_: test_ddp.Strike, " + ", ".join(f"{k}: {v}" for k, v in how.items()) + "}"


@pytest.mark.parametrize("strategy", ["ddp_fork", pytest.param("ddp", marks=pytest.mark.long)])
def test_two_processes_share_the_work_and_count_every_test_image_once(run: Run, tmp_path: Path, strategy: str) -> None:
    words = ["trainer.accelerator=cpu", "trainer.devices=2", f"trainer.strategy={strategy}", "trainer.max_epochs=2"]
    ended = run("train.py", *QUICK, *words, "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    assert ended.out.count(" 2/2 ") == 1 and "Warning" not in ended.err
    facts = summary(tmp_path / "run")
    assert facts["test/acc"] * 300 == pytest.approx(round(facts["test/acc"] * 300), abs=1e-3)
    assert facts["test/acc"] > 0.8
    last = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["images_seen"] == 2 * 2 * (1297 // 2)


@pytest.mark.parametrize("strategy", [pytest.param(name, marks=LONG) for name in ("ddp_fork", "ddp", "ddp_spawn")])
def test_three_processes_and_numbers_that_do_not_divide(run: Run, tmp_path: Path, strategy: str) -> None:
    words = [*QUICK, *THREE, f"trainer.strategy={strategy}", "trainer.max_epochs=2", "trainer.val_check_interval=0.5"]
    ended = run("train.py", *words, "callbacks.last.every_n_minutes=0.001", "hydra.run.dir=run")
    assert ended.code == 0 and not ended.err, ended.err
    assert [ended.out.count(word) for word in ("data      digits", " 2/2 ", "\ntest ", "\npredict ")] == [1, 1, 1, 1]
    facts = summary(tmp_path / "run")
    assert facts["test/acc"] * 300 == pytest.approx(round(facts["test/acc"] * 300), abs=1e-3)
    steps = -(-432 // 17)
    assert (facts["epochs"], facts["steps"]) == (2, 2 * steps) and facts["train_seconds"] > 0
    for row in rows(tmp_path / "run" / "metrics.csv"):
        assert row.get("val/acc", 0) * 201 == pytest.approx(round(row.get("val/acc", 0) * 201), abs=1e-3)
        assert row["images"] <= 2 * 3 * 432
    last = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["images_seen"] == 2 * 3 * 432
    assert not list(tmp_path.glob("run/**/*.part"))


EARLY = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 1, min_delta: 100}"


@LONG
@pytest.mark.parametrize(
    ("words", "ended_by"),
    [
        (["callbacks.last.every_n_train_steps=5"], None),
        (["trainer.max_steps=10"], "trainer.max_steps=10"),
        (["trainer.max_time=00:00:00:01", "trainer.max_epochs=500"], "trainer.max_time, after"),
        ([f"+callbacks.early={EARLY}", "trainer.max_epochs=9"], "EarlyStopping: val/loss"),
        (["callbacks=default", "logger=tensorboard"], None),
    ],
)
def test_whatever_ends_a_training_ends_it_everywhere(
    run: Run, tmp_path: Path, words: list[str], ended_by: str | None
) -> None:
    ended = run("train.py", *QUICK, *THREE, FORK, *words, "hydra.run.dir=run")
    assert ended.code == 0 and not ended.err, ended.err
    assert (summary(tmp_path / "run")["ended_by"] or "").startswith(ended_by or "")
    assert run("predict.py", "ckpt_path=run").code == 0


@LONG
@pytest.mark.promise("a stopped run is resumed to the same bits", "three processes, of which one gets a signal")
@pytest.mark.parametrize(
    ("strategy", "devices", "rank"), [("ddp_fork", 2, 1), ("ddp_fork", 3, 0), ("ddp", 2, 0), ("ddp", 3, 2)]
)
def test_a_signal_to_one_stops_all_and_the_run_is_resumed(
    run: Run, tmp_path: Path, strategy: str, devices: int, rank: int
) -> None:
    """The sum of three gradients depends on their order, which PyTorch changes after a process's first step."""
    words = [*QUICK, *THREE, f"trainer.devices={devices}", f"trainer.strategy={strategy}", "trainer.max_epochs=2"]
    words += ["model.dropout=0.2", "data.augment={shift: 1}", "trainer.log_every_n_steps=7"]
    assert run("train.py", *words, "hydra.run.dir=whole").code == 0
    blow = strike(hook="on_train_batch_end", rank=rank, what="SIGTERM", step=30)
    ended = run("train.py", *words, blow, "hydra.run.dir=run", **OURS)
    assert ended.code == 143, ended.err
    assert ended.out.count("stopped by SIGTERM after step 30; continue with resume=run") == 1
    ended = run("train.py", "resume=run", "callbacks.strike=null", **OURS)
    assert ended.code == 0, ended.err
    if devices == 2:
        same_runs(tmp_path / "whole", tmp_path / "run")
    whole, resumed = (rows(tmp_path / name / "metrics.csv") for name in ("whole", "run"))
    for one, other in zip(whole, resumed, strict=True):
        assert one.keys() == other.keys()
        assert all(other[key] == pytest.approx(value, rel=1e-3) for key, value in one.items() if "second" not in key)


@LONG
@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp"])
@pytest.mark.parametrize(
    ("hook", "sanity"), [("on_validation_batch_start", True), ("on_test_batch_start", False), ("on_test_end", False)]
)
@pytest.mark.parametrize(("rank", "number"), [(1, "SIGTERM"), (0, "SIGUSR1")])
def test_a_signal_outside_training_ends_all(
    run: Run, tmp_path: Path, strategy: str, hook: str, sanity: bool, rank: int, number: str
) -> None:
    """The others wait for the one that gets it, inside of PyTorch."""
    blow = strike(hook=hook, rank=rank, what=number, sanity=sanity)
    ended = run("train.py", *QUICK, *THREE, f"trainer.strategy={strategy}", blow, "hydra.run.dir=run", limit=60, **OURS)
    assert ended.code == 128 + getattr(signal, number), ended.err
    assert "Traceback" not in ended.err and ended.err.count("stopped by") == 1


@LONG
@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp"])
@pytest.mark.parametrize(("rank", "what"), [(-1, "ValueError"), (1, "ValueError"), (1, "SIGKILL"), (0, "SIGKILL")])
def test_one_that_fails_ends_all(run: Run, tmp_path: Path, strategy: str, rank: int, what: str) -> None:
    blow = strike(hook="on_train_batch_end", rank=rank, what=what, step=3)
    began = time.monotonic()
    ended = run("train.py", *QUICK, *THREE, f"trainer.strategy={strategy}", blow, "hydra.run.dir=run", limit=60, **OURS)
    assert ended.code != 0 and "Traceback" not in ended.err, ended.err
    if what == "ValueError":
        assert ended.err.count("error: something that a user can mend") == 1, ended.err
    assert time.monotonic() - began < 60


@LONG
def test_those_that_wait_for_another_end_too(tmp_path: Path) -> None:
    blow = strike(hook="on_validation_batch_start", rank=1, what="wait", sanity=True)
    process = start(tmp_path, "train.py", *QUICK, *THREE, "trainer.strategy=ddp", blow, "hydra.run.dir=run", **OURS)
    while not (tmp_path / "waits").exists():
        time.sleep(0.1)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(10)
    assert process.exitcode == 143


def test_a_sweep_of_several_processes_is_refused(compose_run: ComposeRun) -> None:
    words = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]
    with pytest.raises(ValueError, match="^trainer.devices=2: in a sweep"):
        compose_run([*QUICK, *words, "hydra.mode=MULTIRUN"])
