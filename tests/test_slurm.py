"""On a real SLURM cluster, on this machine: whatever happens there, each result is the local one, to the last bit."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import slurm_cluster
from conftest import ROOT
from slurm_cluster import Cluster, wait_for
from test_resume import same_runs

from mnist_pl.runs import slurm

WORDS = ["data=digits", "model=mlp", "model.hidden=[8]", "model.dropout=0.2", "data.augment={shift: 1}"]
WORDS += ["callbacks=minimal", "logger=csv", "data.batch_size=32", "trainer.log_every_n_steps=7"]
WORDS += ["+callbacks.slow={_target_: slurm_cluster.Slow}"]
TRAIN = [sys.executable, str(ROOT / "train.py")]
SLOW_IMPORTS = """
import os, sys, time

class Slow:  # as a network's disk
    def find_spec(self, name, *_):
        if name in ("hydra", "submitit") and "SLURM_JOB_ID" in os.environ:
            time.sleep(4)

sys.meta_path.insert(0, Slow())
"""
ALONE = {"OMP_NUM_THREADS": "1"}  # as a job of one processor


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    with slurm_cluster.cluster() as one:
        one.variables |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        one.variables.pop("OMP_NUM_THREADS", None)
        yield one


def train(cluster: Cluster, folder: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    """train.py, where one submits jobs."""
    pipe, variables = subprocess.PIPE, {**cluster.variables, **variables}
    program = subprocess.Popen([*TRAIN, *words], cwd=folder, env=variables, stdout=pipe, stderr=pipe, text=True)
    cluster.programs.append(program)
    return program


def submit(cluster: Cluster, folder: Path, script: str, *options: str, **variables: str) -> str:
    """The number of a job that runs `script`; what it says goes into `out`."""
    (folder / "job.sh").write_text(f"#!/bin/bash\n{script}\n")
    where = [f"--chdir={folder}", f"--output={folder}/out", "--open-mode=append", "--parsable"]
    return cluster.call("sbatch", *where, *options, folder / "job.sh", **variables)


def goes_on(folder: Path) -> None:
    """Waits until the run, or the runs, below have trained further than now, and have a checkpoint."""

    def records() -> int:
        return sum(path.stat().st_size for path in folder.glob("**/metrics.csv"))

    before = records()
    wait_for(lambda: records() > before and list(folder.glob("**/last.ckpt")), 120)


def process_of(run: Path) -> int:
    return int((run / ".lock").read_text().split()[1])


def table(out: str) -> list[list[str]]:
    """What a sweep reports, but for the seconds."""
    rows = [line.strip("|").split("|") for line in out.splitlines() if line.startswith("|")]
    seconds = [cell.strip() for cell in rows[0]].index("seconds")
    return [[cell.strip() for cell in row[:seconds] + row[seconds + 1 :]] for row in rows if "---" not in row[0]]


@pytest.mark.long
@pytest.mark.promise("a stopped run is resumed to the same bits", "on SLURM: queued again, warned, preempted, killed")
def test_a_sweep_survives_whatever_happens_on_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    words = [*WORDS, "optimizer.lr=0.01,0.003,0.001", "seed=1,2", "trainer.max_epochs=8"]
    out, err = train(cluster, tmp_path, "-m", *words, "hydra.sweep.dir=local", **ALONE).communicate(timeout=120)
    whole = table(out)
    launcher = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.name=sweep"]
    sweep = train(cluster, tmp_path, "-m", *words, *launcher, "hydra.sweep.dir=sweep", SECONDS_A_ROUND="0.5")
    runs = [tmp_path / "sweep" / str(number) for number in range(6)]
    goes_on(runs[0])
    goes_on(runs[1])
    (array,) = set(cluster.call("squeue", "--noheader", "--name=sweep", "--format=%F").split())
    cluster.call("scontrol", "requeue", f"{array}_0")
    cluster.call("scancel", "--signal=USR2", f"{array}_1.0")  # to its step, as before a time limit
    goes_on(runs[2])
    os.kill(process_of(runs[2]), signal.SIGKILL)
    goes_on(runs[3])
    goes_on(runs[4])  # no job is being launched, which SLURM itself would not survive
    cluster.kill("slurmd")
    cluster.start("slurmd")
    goes_on(runs[4])
    cluster.call("scancel", f"{array}_4")
    goes_on(runs[5])
    urgent = submit(cluster, tmp_path, "true", "--partition=rush", "--ntasks=2")  # which takes the whole node
    out, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 1, err
    assert cluster.state(urgent) == "COMPLETED"
    lost = [line for line in err.splitlines() if line.startswith("error: sweep/")]
    assert len(lost) == 2 and lost[0].startswith("error: sweep/2 (") and lost[1].startswith("error: sweep/4 ("), err
    assert f"SLURM job {array}_2 ended as FAILED; its log is sweep/.submitit/" in lost[0], lost
    assert f"SLURM job {array}_4 ended as CANCELLED; its log is sweep/.submitit/" in lost[1], lost
    for number, (how, times) in {0: ("SIGTERM", 2), 1: ("SIGUSR2", 2), 3: (None, 1), 5: ("SIGTERM", 2)}.items():
        log = (tmp_path / f"sweep/.submitit/{array}_{number}/{array}_{number}_0_log.out").read_text()
        assert how is None or f"stopped by {how} after step" in log and "queued again, to go on there\n" in log, log
        assert log.count("Starting with") >= times, log  # the urgent job may have come upon it too
        same_runs(tmp_path / "local" / str(number), runs[number])
    again = train(cluster, tmp_path, "resume=sweep", WORDS[-1])  # its class of one's own
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0 and not err and table(out) == whole, err
    for number, run in enumerate(runs):
        same_runs(tmp_path / "local" / str(number), run)
        assert json.loads((run / "summary.json").read_text())["device"] == "cpu, 1 threads"


@pytest.mark.long
@pytest.mark.promise("a stopped run is resumed to the same bits", "on SLURM: a script that outlives its time limit")
@pytest.mark.parametrize(
    "how", ["sweep", "processes", *(pytest.param(how, marks=pytest.mark.combination) for how in ("limit", "warning"))]
)
def test_a_script_outlives_its_time_limit(cluster: Cluster, tmp_path: Path, how: str) -> None:
    """That of a minute, of which SLURM warns it; or it is warned by hand, twice."""
    more = {"sweep": ["-m", "seed=1,2"], "processes": ["trainer=ddp", "trainer.accelerator=cpu"]}.get(how, [])
    words = [*WORDS, "trainer.max_epochs=10", *more]
    whole = tmp_path.with_name(f"{tmp_path.name}-whole")
    local = train(cluster, tmp_path, *words, f"hydra.run.dir={whole}", f"hydra.sweep.dir={whole}", **ALONE)
    out, err = local.communicate(timeout=120)
    assert local.returncode == 0, err
    command = " ".join([*TRAIN, *(f"'{word}'" for word in words)])
    options = ["--requeue", "--cpus-per-task=1"]
    if how == "limit":
        options += ["--time=1", "--signal=USR1@5"]  # which comes up to half a minute earlier
        job = submit(cluster, tmp_path, f"srun {command}", *options, SECONDS_A_ROUND="1.5")
    else:
        srun, seconds = ("srun", "0.05") if how == "processes" else ("exec", "0.4")  # whose rounds are single batches
        options += ["--ntasks-per-node=2"] if how == "processes" else []
        job = submit(cluster, tmp_path, f"{srun} {command}", *options, SECONDS_A_ROUND=seconds)
        for life in range(2):
            goes_on(tmp_path)
            cluster.call("scancel", "--signal=USR1", *([f"{job}.0"] if srun == "srun" else ["--batch", job]))
            wait_for(lambda life=life: said(tmp_path).count("stopped by SIGUSR1") > life, 20)
    wait_for(lambda: cluster.state(job) in slurm.ENDED, 300)
    assert cluster.state(job) == "COMPLETED", said(tmp_path)
    times = said(tmp_path).count(f"SLURM job {job} is queued again, to go on there\n")
    assert times >= 1 if how == "limit" else times == 2, said(tmp_path)
    (ours,) = {path.parent for path in tmp_path.glob(f"[om]*/*/*/{slurm.RECORD}")}
    if how == "sweep":
        assert table(said(tmp_path)) == table(out)
    for name in ("0", "1") if how == "sweep" else ("",):
        same_runs(whole / name, ours / name)


def said(folder: Path) -> str:
    return (folder / "out").read_text()


def catches_sigterm(job: str) -> bool:
    """Whether train.py, which a script runs, has come to its first line; a signal before ends Python itself."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            texts = [(process / name).read_text(errors="replace") for name in ("environ", "cmdline")]
            variables, words = (text.split("\0") for text in texts)
            if f"SLURM_JOB_ID={job}" in variables and words[:2] == TRAIN:
                caught = re.search(r"SigCgt:\s*(\w+)", (process / "status").read_text())
                return caught is not None and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1 == 1
    return False


@pytest.mark.long
@pytest.mark.promise("a stopped run is resumed to the same bits", "on SLURM: preempted while it starts")
def test_jobs_that_are_preempted_while_they_start(cluster: Cluster, tmp_path: Path) -> None:
    """A sweep's from the first moment on; a script's from the first line of train.py on."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_IMPORTS)
    slowly = {"PYTHONPATH": os.pathsep.join([str(tmp_path), cluster.variables["PYTHONPATH"]])}
    words = [*WORDS, "trainer.max_epochs=1"]
    launcher = ["seed=1,2", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.name=sweep"]
    script = " ".join(["srun", *TRAIN, *(f"'{word}'" for word in words)])

    def preempt() -> None:
        urgent = submit(cluster, tmp_path, "true", "--partition=rush", "--ntasks=2")
        wait_for(lambda: cluster.state(urgent) == "COMPLETED")

    sweep = train(cluster, tmp_path, "-m", *words, *launcher, **slowly)
    wait_for(lambda: "RUNNING" in cluster.call("squeue", "--noheader", "--name=sweep", "--array", "--format=%T"))
    preempt()
    assert sweep.wait(120) == 0, sweep.communicate()
    job = submit(cluster, tmp_path, script, "--requeue", "--cpus-per-task=1", **slowly)
    wait_for(lambda: catches_sigterm(job))
    preempt()
    wait_for(lambda: cluster.state(job) in slurm.ENDED, 120)
    assert cluster.state(job) == "COMPLETED", said(tmp_path)


@pytest.mark.long
def test_a_job_that_gets_nowhere_is_not_queued_again_for_ever(cluster: Cluster, tmp_path: Path) -> None:
    command = " ".join([*TRAIN, *(f"'{word}'" for word in WORDS)])
    job = submit(cluster, tmp_path, f"exec {command}", "--requeue", "--cpus-per-task=1", SECONDS_A_ROUND="900")
    wait_for(lambda: (tmp_path / "out").exists() and "0/5" in said(tmp_path), 60)
    for _ in range(2):  # the second is not waited for
        cluster.call("scancel", "--batch", "--signal=USR1", job)
        time.sleep(1)
    wait_for(lambda: cluster.state(job) in slurm.ENDED)
    assert cluster.state(job) == "FAILED"


@pytest.mark.long
def test_a_job_that_may_not_be_queued_again_says_so(cluster: Cluster, tmp_path: Path) -> None:
    command = " ".join([*TRAIN, *(f"'{word}'" for word in WORDS)])
    options = ["--no-requeue", "--cpus-per-task=1"]
    job = submit(cluster, tmp_path, f"{command} hydra.run.dir=run &\nwait", *options, SECONDS_A_ROUND="0.5")
    goes_on(tmp_path / "run")
    os.kill(process_of(tmp_path / "run"), signal.SIGUSR1)
    wait_for(lambda: cluster.state(job) in slurm.ENDED)
    assert f"SLURM job {job} is not queued again: it was submitted without --requeue\n" in said(tmp_path)
    assert "stopped by SIGUSR1 after step" in said(tmp_path) and "; continue with resume=run" in said(tmp_path)


@pytest.mark.long
def test_what_the_cluster_refuses_ends_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    for words in (["partition=gpus"], ["timeout_min=61"], ["additional_parameters={nonsense: 1}"]):
        refused = [f"hydra.launcher.{word}" for word in words]
        process = train(cluster, tmp_path, "-m", "data=digits", "seed=1,2", "hydra/launcher=slurm", *refused)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1 and err.count("\n") == 1 and err.startswith("error: hydra.launcher: sbatch"), err


def test_a_machine_without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = slurm.Slurm()
    nothing: dict[str, object] = dict.fromkeys(("hydra_context", "task_function", "config"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="^hydra/launcher=slurm: there is no sbatch here"):
        launcher.setup(**nothing)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_submitit_launcher.submitit_launcher", None)
    with pytest.raises(ValueError, match=r"^hydra/launcher=slurm: is an extra; pip install -e \"\.\[slurm\]\"$"):
        launcher.setup(**nothing)  # type: ignore[arg-type]
