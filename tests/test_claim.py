"""No two processes share a folder, and who holds one is told."""

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, one_line, start

from mnist_pl.storage import LOCK, FolderLock, is_locked

ALONE = "no two processes share a folder"
STARTS = int(os.environ.get("STARTS", 3))
ONE_STEP = ["data=digits", "model=mlp", "model.hidden=[8]", "callbacks=minimal", "logger=csv", "scheduler=none"]
ONE_STEP += ["trainer.max_steps=1", "trainer.num_sanity_val_steps=0", "trainer.limit_val_batches=1"]
WAITS = "+callbacks.busy={_target_: test_stops.Busy}"


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("**/*") if path.is_file()}


def runs(below: Path) -> list[Path]:
    return sorted(path.parent for path in below.glob("**/summary.json"))


def busy(folder: Path, *words: str) -> tuple[int, Path]:
    """The process of a run that has taken its first step, and stays there."""
    process = start(folder, *words, WAITS)
    while not (folder / "busy").exists() and process.is_alive():
        time.sleep(0.02)
    (folder / "busy").unlink()
    return process.pid or 0, folder


@pytest.mark.promise(ALONE, "as many starts at once, each with all that a run leaves")
def test_runs_that_start_at_once(tmp_path: Path, record_property: Any) -> None:
    record_property("tried", STARTS)
    together = min(STARTS, 8)
    for _ in range(-(-STARTS // together)):
        before = set(runs(tmp_path))
        started = [start(tmp_path, "train.py", *ONE_STEP) for _ in range(together)]
        for process in started:
            process.join(120)
        assert [process.exitcode for process in started] == [0] * together
        new = set(runs(tmp_path)) - before
        assert len(new) == together
        for run in new:
            assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
            assert len((run / "metrics.csv").read_text().splitlines()) == 3, "one run's rows"
    assert len({(run / LOCK).read_text() for run in runs(tmp_path)}) == -(-STARTS // together) * together


@pytest.mark.long
@pytest.mark.promise(ALONE, "sweeps and predictions at once")
def test_sweeps_and_predictions_that_start_at_once(tmp_path: Path, trained: Path) -> None:
    started = [start(tmp_path, "train.py", "-m", *ONE_STEP, "seed=1,2") for _ in range(2)]
    started += [start(tmp_path, "predict.py", f"ckpt_path={trained}", "seed=1") for _ in range(2)]
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * 4
    assert len(runs(tmp_path / "multirun")) == 4 and len(list(tmp_path.glob("multirun/**/results.md"))) == 2
    assert len(list(tmp_path.glob("predictions/**/test_images.png"))) == 2


@pytest.mark.promise(ALONE, "a name that was chosen, a second resume, a holder that is killed")
def test_a_folder_that_another_process_holds(run: Run, tmp_path: Path) -> None:
    words = [word for word in ONE_STEP if "max_steps" not in word] + ["trainer.max_epochs=2"]
    pid, _ = busy(tmp_path, "train.py", *words, "hydra.run.dir=outputs/a")
    before = files(tmp_path / "outputs" / "a")
    line = one_line(run("train.py", "resume=outputs/a"))
    assert "resume=outputs/a" in line and f"process {pid} on {socket.gethostname()}" in line
    ended = run("train.py", *ONE_STEP, "hydra.run.dir=outputs/a")
    assert ended.code == 0 and "outputs/a-2 (outputs/a is taken)" in ended.out, ended
    assert files(tmp_path / "outputs" / "a") == before
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        time.sleep(0.01)
    ended = run("train.py", "resume=outputs/a", "callbacks.busy=null")
    assert ended.code == 0, ended.err
    assert "holds an existing run" in one_line(run("train.py", *ONE_STEP, "hydra.run.dir=outputs/a"))


def test_a_lock_that_is_not_kept_leaves_nothing(tmp_path: Path) -> None:
    new = tmp_path / "new"
    lock = FolderLock(new)
    assert is_locked(new)
    with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on "):
        FolderLock(new)
    lock.release()
    assert not new.exists() and not is_locked(new)
    lock = FolderLock(tmp_path, ", SLURM job 45")
    lock.keep()
    lock.release()
    held = (tmp_path / LOCK).read_text()
    assert held.endswith(", SLURM job 45\n")
    FolderLock(tmp_path).release()
    assert (tmp_path / LOCK).read_text() == held and not is_locked(tmp_path)
