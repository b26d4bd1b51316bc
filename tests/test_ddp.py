"""Several processes of one run: the same counts as of one, one record, and they end together."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MNIST_ROOT, ROOT, ComposeRun, Ended, Run, Whole, needs_mnist, one_line, start
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from slurm_cluster import wait_for
from test_resume import same_runs
from test_train import QUICK, summary
from torch.distributed import TCPStore

from mnist_pl.data.batches import Batches
from mnist_pl.figures.plots import rows
from mnist_pl.reading import checkpoint
from mnist_pl.world import World, is_first, world

THREE = ("trainer.accelerator=cpu", "trainer.devices=3", "data.val_size=201", "data.batch_size=17", "model.hidden=[8]")
FORK = "trainer.strategy=ddp_fork"
OURS = {"PYTHONPATH": str(ROOT / "tests")}  # for the processes that are programs of their own
LONG = pytest.mark.long
COMBINATION = pytest.mark.combination
SCORES = ("val/loss", "val/acc", "test/loss", "test/acc")


class Strike(Callback):
    """At a hook, in one of the processes: a signal, an error or an end; the others go on."""

    hooks_every_n_steps = None

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


def words_for(strategy: str) -> list[str]:
    """For three processes; for two where each has to start afresh, which takes it a while."""
    return [*QUICK, *THREE, f"trainer.strategy={strategy}", f"trainer.devices={3 if strategy == 'ddp_fork' else 2}"]


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
    assert last["images_seen"] == 2 * 1297 and facts["processes"] == 2


@LONG
@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp", "ddp_spawn"])
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
        (["callbacks.last.every_n_train_steps=5", "threads=2"], None),
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
    said = summary(tmp_path / "run")["ended_by"]
    assert said is None if ended_by is None else said.startswith(ended_by)
    assert run("predict.py", "ckpt_path=run").code == 0


@LONG
@pytest.mark.promise("a stopped run is resumed to the same bits", "three processes, of which one gets a signal")
@pytest.mark.parametrize(
    ("strategy", "devices", "rank", "number"),
    [
        ("ddp_fork", 3, 0, "SIGTERM"),
        ("ddp", 2, 1, "SIGKILL"),
        pytest.param("ddp_fork", 2, 1, "SIGTERM", marks=COMBINATION),
        pytest.param("ddp", 2, 0, "SIGTERM", marks=COMBINATION),
        pytest.param("ddp", 3, 2, "SIGTERM", marks=COMBINATION),
        pytest.param("ddp_fork", 2, 0, "SIGKILL", marks=COMBINATION),
        pytest.param("ddp_fork", 2, -1, "SIGKILL", marks=COMBINATION),
        pytest.param("ddp", 2, -1, "SIGKILL", marks=COMBINATION),
    ],
)
def test_a_signal_to_one_stops_all_and_the_run_is_resumed(
    run: Run, whole: Whole, tmp_path: Path, strategy: str, devices: int, rank: int, number: str
) -> None:
    """The sum of three gradients depends on their order, which PyTorch changes after a process's first step."""
    words = [*QUICK, *THREE, f"trainer.devices={devices}", f"trainer.strategy={strategy}", "trainer.max_epochs=2"]
    words += ["model.dropout=0.2", "data.augment={shift: 1}", "trainer.log_every_n_steps=7", "data.val_size=200"]
    words += ["callbacks.last.every_n_train_steps=20"]
    unbroken = whole(*words)
    blow = strike(
        hook="on_train_batch_end", rank=rank, what=number, step=45
    )  # after an epoch whose last batches were of unlike sizes
    ended = run("train.py", *words, blow, "hydra.run.dir=run", **OURS)
    assert ended.code != 0
    if number == "SIGTERM":
        assert ended.code == 143, ended.err
        assert ended.out.count("stopped by SIGTERM after step 45; continue with resume=run") == 1
    ended = run("train.py", "resume=run", "callbacks.strike=null", **OURS)
    assert ended.code == 0, ended.err
    if devices == 2:
        same_runs(unbroken, tmp_path / "run")
    tables = (rows(folder / "metrics.csv") for folder in (unbroken, tmp_path / "run"))
    for one, other in zip(*tables, strict=True):
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
    ended = run("train.py", *words_for(strategy), blow, "hydra.run.dir=run", **OURS)
    assert ended.code == 128 + getattr(signal, number), ended.err
    assert "Traceback" not in ended.err and ended.err.count("stopped by") == 1


@LONG
@pytest.mark.parametrize(
    "strategy", ["ddp", *(pytest.param(f"ddp_{how}", marks=COMBINATION) for how in ("fork", "spawn"))]
)
@pytest.mark.parametrize(("rank", "what"), [(-1, "ValueError"), (1, "ValueError"), (1, "SIGKILL"), (0, "SIGKILL")])
def test_one_that_fails_ends_all(run: Run, whole: Whole, tmp_path: Path, strategy: str, rank: int, what: str) -> None:
    blow = strike(hook="on_train_batch_end", rank=rank, what=what, step=3)
    ended = run("train.py", *words_for(strategy), blow, "hydra.run.dir=run", **OURS)
    assert ended.code != 0 and "Traceback" not in ended.err, ended.err
    if what == "ValueError":
        assert ended.err.count("error: something that a user can mend") == 1, ended.err
    elif rank or strategy == "ddp_fork":
        assert one_line(ended).startswith("error: another process of this run has ended; continue with resume=run ")
    if what == "SIGKILL":  # of a program of its own that is killed, only those that it has started can tell
        wait_for((tmp_path / ".err").read_text)
        told = (tmp_path / ".err").read_text()
        assert told.count("\n") == 1 and "continue with resume=run " in told
        assert run("train.py", "resume=run", "callbacks.strike=null", **OURS).code == 0
        resumed, unbroken = summary(tmp_path / "run"), summary(whole(*words_for(strategy), FORK))
        assert [resumed[score] for score in SCORES] == pytest.approx([unbroken[score] for score in SCORES], abs=1e-3)


@LONG
def test_those_that_wait_for_another_end_too(tmp_path: Path) -> None:
    blow = strike(hook="on_validation_batch_start", rank=1, what="wait", sanity=True)
    process = start(tmp_path, "train.py", *QUICK, *THREE, "trainer.strategy=ddp", blow, "hydra.run.dir=run", **OURS)
    while not (tmp_path / "waits").exists():
        time.sleep(0.1)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(40)  # the other would wait for a minute
    assert process.exitcode == 143


def test_a_sweep_of_several_processes_is_refused(compose_run: ComposeRun) -> None:
    with pytest.raises(ValueError, match="^trainer.devices=2: in a sweep"):
        compose_run([*QUICK, "trainer=ddp", "trainer.accelerator=cpu", "hydra.mode=MULTIRUN"])


@pytest.mark.parametrize(
    ("count", "processes", "size"), [(1297, 2, 32), (100, 3, 11), (97, 3, 32), (64, 3, 1), (7, 5, 4)]
)
def test_each_image_is_seen_once_an_epoch_in_the_batches_of_one_process(count: int, processes: int, size: int) -> None:
    """Also where the images divide by nothing; and the weighed mean of the processes' means is the joint mean."""
    split = (torch.zeros(count, 28, 28, dtype=torch.uint8), torch.arange(count))

    def steps(rank: int, done: int = 0) -> list[tuple[torch.Tensor, float]]:
        loader = Batches(split, size, 1, rank=rank, world_size=processes)
        loader.load_state_dict({"done": done})
        batches = [(labels, loader.weight) for _, labels in loader]
        assert loader.seen == count and len(loader) == -(-(count // processes) // size)
        return batches

    whole = [labels for _, labels in Batches(split, size * processes, 1)]
    ranks = [steps(rank) for rank in range(processes)]
    assert sorted(label for rank in ranks for labels, _ in rank for label in labels.tolist()) == list(range(count))
    together = list(zip(*ranks, strict=True))
    for step, parts in enumerate(together):
        joint = sorted(label for labels, _ in parts for label in labels.tolist())
        alone = whole[step] if step < len(together) - 1 else torch.cat(whole[step:])
        assert joint == sorted(alone.tolist())
        mean = sum(weight * labels.double().mean() for labels, weight in parts) / processes
        assert float(mean) == pytest.approx(alone.double().mean().item())
    for rank, batches in enumerate(ranks):
        for done in range(len(batches)):
            rest = steps(rank, done * size)
            assert [labels.tolist() for labels, _ in rest] == [labels.tolist() for labels, _ in batches[done:]]


SGD = ("data=digits", "model=mlp", "optimizer=sgd", "optimizer.lr=0.1", "scheduler=none", "callbacks=minimal")


@pytest.mark.parametrize(
    ("processes", "size", "length"),
    [
        (2, 32, "trainer.max_epochs=1"),
        pytest.param(2, 32, "trainer.max_steps=20", marks=LONG),
        pytest.param(3, 28, "trainer.max_epochs=1", marks=LONG),
    ],
)
def test_several_processes_learn_what_one_does_with_the_joint_batch(
    run: Run, tmp_path: Path, processes: int, size: int, length: str
) -> None:
    """An epoch has 1,297 images: 20 steps of 64 in two processes, and one of nine and eight images.

    In three, 15 of 84, and one of 13, 12 and 12.
    """
    ddp = ["trainer=ddp", "trainer.strategy=ddp_fork", f"trainer.devices={processes}", f"data.batch_size={size}"]
    for name, words in {"one": [f"data.batch_size={processes * size}"], "several": ddp}.items():
        ended = run("train.py", *SGD, *words, length, "trainer.accelerator=cpu", f"hydra.run.dir={name}")
        assert ended.code == 0, ended.err
    weights = []
    for name in ("one", "several"):
        last = checkpoint.read(tmp_path / name / "checkpoints" / "last.ckpt")
        weights.append(torch.cat([value.flatten() for value in last["state_dict"].values()]))
    assert last["global_step"] == {"trainer.max_steps=20": 20}.get(length, {2: 21, 3: 16}[processes])
    difference = float((weights[0] - weights[1]).abs().max())
    print(f"after {last['global_step']} steps the weights differ by {difference:.1e} at the most")
    assert 0 < difference < 1e-6


@LONG
@needs_mnist
@pytest.mark.parametrize("processes", [2, 3])
def test_ten_thousand_test_images_are_counted_exactly(run: Run, tmp_path: Path, processes: int) -> None:
    words = ["data=mnist", "model=mlp", "trainer=ddp", "trainer.accelerator=cpu", "trainer.strategy=ddp_fork"]
    words += [f"trainer.devices={processes}", "trainer.max_steps=100", "callbacks=minimal", "logger=none"]
    ended = run("train.py", *words, "hydra.run.dir=run", MNIST_ROOT=MNIST_ROOT)
    assert ended.code == 0, ended.err
    words = ["fit=false", "ckpt_path=run", "trainer.accelerator=cpu", "callbacks=minimal", "logger=none", "model=mlp"]
    ended = run("train.py", *words, "hydra.run.dir=alone", MNIST_ROOT=MNIST_ROOT)
    assert ended.code == 0, ended.err
    several, alone = summary(tmp_path / "run"), summary(tmp_path / "alone")
    assert several["test/acc"] == alone["test/acc"] and several["test/acc"] * 10_000 == pytest.approx(
        round(several["test/acc"] * 10_000), abs=0.01
    )
    assert several["test/loss"] == pytest.approx(alone["test/loss"], abs=1e-5)


def torchrun_starts(folder: Path, processes: int, *words: str) -> list[Ended]:
    """What each of the processes says that torchrun's agent would start so; the store is the agent's, too."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    shared = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0"}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    started = []
    for rank in map(str, range(processes)):
        own = folder / f"rank{rank}"  # the current folder: what a process writes without being told where
        own.mkdir()
        started.append((own, start(own, "train.py", *words, **shared, RANK=rank, LOCAL_RANK=rank)))
    said = []
    for own, process in started:
        process.join(60)
        out, err = ((own / f".{name}").read_text() for name in ("out", "err"))
        said.append(Ended(-1 if process.exitcode is None else process.exitcode, out, err))
    return said


def test_of_the_processes_of_torchrun_the_first_one_speaks_and_writes(tmp_path: Path) -> None:
    words = [*QUICK, "trainer=ddp", "trainer.accelerator=cpu"]
    first, second = torchrun_starts(tmp_path, 2, *words, f"hydra.run.dir={tmp_path}/run")
    assert first.code == second.code == 0, first.err + second.err
    assert first.out.count("2 processes") == 1 and not first.err + second.err + second.out
    assert {path.name for path in tmp_path.glob("rank1/*")} <= {".out", ".err"}
    assert summary(tmp_path / "run")["processes"] == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        pytest.param(
            ["trainer=ddp", "trainer.devices=3"],
            "trainer.devices=3, trainer.num_nodes=1: torchrun has started 2 processes",
            marks=LONG,
        ),
        (
            ["trainer.devices=1"],
            "trainer.devices=1, trainer.num_nodes=1: torchrun has started 2 processes; say trainer=ddp",
        ),
        pytest.param(["trainer=ddp", "optimizer.lr=-1"], "optimizer.lr must be", marks=LONG),
        (["trainer=ddp", "-m"], "-m: torchrun has started 2 processes"),
    ],
)
def test_what_all_processes_of_torchrun_refuse_is_told_once(tmp_path: Path, words: list[str], line: str) -> None:
    ended = torchrun_starts(tmp_path, 2, *QUICK, "trainer.accelerator=cpu", *words)
    assert [one.code for one in ended] == [1, 1]
    told = [one.err for one in ended if one.err]
    assert len(told) == 1 and told[0].startswith(f"error: {line}") and told[0].count("\n") == 1, told


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", "GROUP_WORLD_SIZE": "2"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "2(x2)"}


@pytest.mark.parametrize(
    ("variables", "where", "first"),
    [
        ({}, None, True),
        ({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}, World("torchrun", 0, 6, 2, 3), True),
        ({**TORCHRUN, "RANK": "3", "LOCAL_RANK": "0"}, World("torchrun", 3, 6, 2, 3), False),
        ({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "5"}, World("torchrun", 0, 5, 2, None), True),
        ({**STEP, "SLURM_PROCID": "3", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, World("srun", 3, 4, 2, 2), False),
        ({**STEP, "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "3,1"}, World("srun", 0, 4, 2, None), True),
        ({**BATCH, "SLURM_PROCID": "0"}, None, True),  # the script of sbatch
        (BATCH, None, True),  # a shell of salloc
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, None, False),  # started by Lightning
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, None, False),
    ],
)
def test_which_process_this_is(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], where: World | None, first: bool
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in ("LOCAL_RANK", "NODE_RANK")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (world(), is_first()) == (where, first)


def torchrun(folder: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    arguments = ["--nproc_per_node=2", str(ROOT / "train.py"), *words]
    path = {"PYTHONPATH": os.pathsep.join([variables.pop("first_path", ""), str(ROOT), str(ROOT / "tests")])}
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **path, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


WATCH = """
import os, sys
def note(event, arguments):
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")) and "/run" in str(arguments[0]):
        os.write(watched, f"{os.environ.get('LOCAL_RANK')} {event} {arguments[0]}\\n".encode())
watched = os.open(os.environ["WATCHED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sys.addaudithook(note)
"""


@LONG
def test_torchrun_as_typed_and_only_the_first_process_writes(tmp_path: Path) -> None:
    """Python itself tells of every file that a process opens for writing, makes, renames or removes."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    words = ["data=digits", "model=mlp", "trainer.max_epochs=2", "trainer=ddp", "trainer.accelerator=cpu"]
    watching = {"first_path": str(tmp_path / "watch"), "WATCHED": str(tmp_path / "log")}
    process = torchrun(tmp_path, *words, f"hydra.run.dir={tmp_path}/run", **watching)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and not err, err
    assert out.count("data      digits") == 1 and out.count(" 2/2 ") == 1
    writes = (tmp_path / "log").read_text().splitlines()
    assert sum(line.startswith("0 open") for line in writes) > 10
    # Hydra sees to it that the folder is there.
    assert [line for line in writes if line[0] == "1" and line != f"1 os.mkdir {tmp_path}/run"] == []


@LONG
def test_a_killed_process_of_torchrun_ends_the_other_and_the_run_is_resumed(tmp_path: Path) -> None:
    words = [
        *QUICK,
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "data.batch_size=8",
        "callbacks.last.every_n_train_steps=9",
    ]
    whole = torchrun(tmp_path, *words, "hydra.run.dir=whole")
    assert whole.communicate(timeout=120)[1] == "" and whole.returncode == 0
    for rank in (0, 1):
        blow = strike(hook="on_train_batch_end", rank=rank, what="SIGKILL", step=30)
        process = torchrun(tmp_path, *words, blow, f"hydra.run.dir=run{rank}")
        told = process.communicate(timeout=120)[1]  # PyTorch would wait for the other for half an hour
        assert process.returncode != 0
        lines = [line for line in told.splitlines() if line.startswith(("error: ", "stopped by"))]
        assert len(lines) == 1, told
        assert f"another process of this run has ended; continue with resume=run{rank} " in lines[0], told
        resumed = torchrun(tmp_path, f"resume=run{rank}", "callbacks.strike=null")
        assert resumed.communicate(timeout=120)[1] == "" and resumed.returncode == 0
        same_runs(tmp_path / "whole", tmp_path / f"run{rank}")


def test_batch_norm_over_processes_is_refused_where_pytorch_lacks_it(compose_run: ComposeRun) -> None:
    with pytest.raises(ValueError, match="^trainer.sync_batchnorm=true: "):
        compose_run([*QUICK, "trainer=ddp", "trainer.accelerator=cpu", "trainer.sync_batchnorm=true"])
