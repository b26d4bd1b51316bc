"""A sweep and single runs on a real SLURM cluster, on this machine: whatever happens there, every result is the local one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_cluster
from conftest import ROOT
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from slurm_cluster import Cluster, wait_for
from test_resume import same_runs

from mnist_pl.runs import slurm

WORDS = ["data=digits", "model=mlp", "model.hidden=[8]", "model.dropout=0.2", "data.augment={shift: 1}"]
WORDS += ["callbacks=minimal", "logger=csv", "data.batch_size=32", "trainer.log_every_n_steps=7"]
SLOW = "+callbacks.slow={_target_: test_slurm.Slow}"
TRAIN = [sys.executable, str(ROOT / "train.py")]
SECONDS = "SLOW_SECONDS"


class Slow(Callback):
    """A training that lasts as long as is said outside of its settings, for something to happen to it."""

    every_n_steps = None

    def on_train_batch_end(self, *_: object, **__: object) -> None:
        time.sleep(float(os.environ.get(SECONDS, 0)))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    with slurm_cluster.cluster() as one:
        paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        one.variables |= {"PYTHONPATH": os.pathsep.join(paths)}
        one.variables.pop("OMP_NUM_THREADS", None)
        yield one


def train(cluster: Cluster, folder: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TRAIN, *words],
        cwd=folder,
        env={**cluster.variables, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def steps(run: Path) -> int:
    """Rows of its record so far."""
    path = run / "metrics.csv"
    return len(path.read_text().splitlines()) if path.exists() else 0


def further(run: Path) -> Callable[[], bool]:
    """Whether it has trained further since, by two rows of its record or an epoch."""
    before = steps(run)
    return lambda: steps(run) > before + 1 and (run / "checkpoints" / "last.ckpt").exists()


def process_of(run: Path) -> int:
    return int((run / ".lock").read_text().split()[1])


def lives(run: Path) -> int:
    """How often SLURM has started it."""
    return 0


@pytest.mark.long
@pytest.mark.promise("a stopped run is resumed to the same bits", "a sweep on SLURM: requeued, warned, killed, cancelled")
def test_a_sweep_survives_whatever_happens_on_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    choices = ["optimizer.lr=0.01,0.003,0.001", "seed=1,2", "trainer.max_epochs=8"]
    words = [*WORDS, SLOW, *choices]
    code, _, err = ended(train(cluster, tmp_path, "-m", *words, "hydra.sweep.dir=local", OMP_NUM_THREADS="1"))
    assert code == 0, err
    launcher = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.name=sweep"]
    sweep = train(cluster, tmp_path, "-m", *words, *launcher, "hydra.sweep.dir=sweep", **{SECONDS: "0.3"})
    runs = [tmp_path / "sweep" / str(number) for number in range(6)]
    try:
        wait_for(further(runs[0]))
        (array,) = set(cluster.call("squeue", "--noheader", "--name=sweep", "--format=%A").split())
        print(array)
    finally:
        sweep.kill()
