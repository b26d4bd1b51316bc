"""Checkpoints are whole whatever happens, and a run that goes on from one equals a run that was never stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Run

from mnist_pl import checkpoint

WORDS = ["data=digits", "model.channels=[4,8]", "model.hidden=[20]", "model.dropout=0.5", "trainer.max_epochs=3"]
WORDS += ["data.augment={shift: 2}", "trainer.log_every_n_steps=10", "data.batch_size=16"]


def same(one: Any, other: Any, where: str = "") -> None:
    """Plain values and tensors are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            same(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


@pytest.mark.parametrize(
    ("number", "every"),
    [(signal.SIGKILL, "null"), (signal.SIGKILL, "7"), (signal.SIGTERM, "null"), (signal.SIGINT, "null")],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(run: Run, tmp_path: Path, number: int, every: str) -> None:
    words = ["train.py", *WORDS, f"callbacks.last.every_n_train_steps={every}"]
    assert run(*words, "hydra.run.dir=whole").code == 0
    command = [sys.executable, str(ROOT / "train.py"), *words[1:], "hydra.run.dir=stopped"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (last.exists() and checkpoint.read(last)["global_step"] >= 82):
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    else:
        assert process.returncode == 128 + number and "Traceback" not in err, err
        assert f"stopped by {signal.Signals(number).name} after step" in out
    stopped = checkpoint.read(last)
    assert 82 <= stopped["global_step"] < 3 * 82
    assert run(*words, "hydra.run.dir=more", "ckpt_path=stopped").code == 0
    whole, more = (checkpoint.read(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "more"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "metrics", "images_seen", "global_step"):
        same(whole[part], more[part], part)
    best, ours = (checkpoint.read(tmp_path / name / "checkpoints" / "best.ckpt") for name in ("whole", "more"))
    same(best["state_dict"], ours["state_dict"], "best")


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs to be root")
    try:
        plugin = checkpoint.DurableIO()
        plugin.save_checkpoint({"a": torch.arange(10)}, disk / "last.ckpt")
        with pytest.raises(OSError, match="last.ckpt: cannot be written .No space left on device"):
            plugin.save_checkpoint({"a": torch.zeros(100_000)}, disk / "last.ckpt")
        assert torch.equal(torch.load(disk / "last.ckpt", weights_only=True)["a"], torch.arange(10))
        assert os.listdir(disk) == ["last.ckpt"]
    finally:
        subprocess.run(["umount", disk], check=True)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_checkpoint_that_runs_code_is_refused(run: Run, tmp_path: Path) -> None:
    torch.save({"model": Payload(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    ended = run("predict.py", "ckpt_path=evil.ckpt")
    assert (
        ended.code != 0
        and len(ended.err.splitlines()) == 1
        and "cannot be read safely" in ended.err.replace("that can", "cannot")
    )
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_cannot_ask_for_memory_or_for_other_classes(trained: Path, tmp_path: Path) -> None:
    whole = checkpoint.read(trained / "checkpoints" / "best.ckpt")
    for change, message in (
        ({"hyper_parameters": {**whole["hyper_parameters"], "hidden": [10**9]}}, "does not hold what it describes"),
        ({"hyper_parameters": {**whole["hyper_parameters"], "colour": 1}}, "does not hold what it describes"),
        ({"model": "os.system"}, "not one of"),
        ({"state_dict": {}}, "does not hold what it describes"),
    ):
        torch.save({**whole, **change}, tmp_path / "changed.ckpt")
        with pytest.raises(ValueError, match=message):
            checkpoint.load_model(tmp_path / "changed.ckpt")


def test_a_loss_that_is_no_number_stops_the_run(run: Run, tmp_path: Path) -> None:
    ended = run("train.py", *WORDS, "optimizer=sgd", "optimizer.lr=1e30", "scheduler=none", "hydra.run.dir=run")
    assert ended.code != 0
    line = ended.err.strip().splitlines()[-1]
    assert "no longer a number, noticed after step" in line and "1e+30" in line and "smaller optimizer.lr" in line
