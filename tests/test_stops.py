"""A stop is a stop: a signal at any moment, or whatever ends a training early; resumed, it equals an unbroken run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import ROOT, Run, Train, Whole, start
from hydra.experimental.callback import Callback as HydraCallback
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from test_resume import same_runs

from mnist_pl.figures.plots import rows
from mnist_pl.reading.checkpoint import load_model
from mnist_pl.signals import STOPPING

SMALL = ["data=digits", "model=mlp", "model.hidden=[8]", "model.dropout=0.2", "trainer.max_epochs=2"]
SMALL += ["callbacks=minimal", "logger=csv", "data.augment={shift: 1}"]


class StopAt(Callback):
    """At a batch, or a validation: a signal to its own process, or what max_time and EarlyStopping do."""

    hooks_every_n_steps = None

    def __init__(self, step: int, how: str, hook: str, each: bool = False) -> None:
        self.step, self.how, self.left = step, how, True
        if each:
            self.hooks_every_n_steps = 1  # type: ignore[assignment]
        setattr(self, hook, self.stop)

    def stop(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if self.left and trainer.global_step >= self.step and not trainer.sanity_checking:
            self.left = False
            if self.how == "should_stop":
                trainer.should_stop = True
            else:
                os.kill(os.getpid(), getattr(signal, self.how))


def trial(random: Random) -> tuple[list[str], list[str], list[str], int | None]:
    """Settings, what stops the run, what takes the stop away, and the exit code of the stopped run."""
    words = [f"data.batch_size={random.choice((16, 32, 48))}", f"trainer.log_every_n_steps={random.choice((1, 7, 20))}"]
    words += [f"trainer.accumulate_grad_batches={random.choice((1, 1, 2, 3))}"]
    words += [f"trainer.val_check_interval={random.choice(('1.0', '1.0', '0.5', '0.3', '11'))}"]
    words += [f"trainer.limit_train_batches={random.choice(('1.0', '0.7', '23'))}"]
    words += [f"callbacks.last.every_n_train_steps={random.choice(('null', 'null', '5'))}"]
    kind = random.choice(("max_steps", "should_stop", "signal", "signal"))
    step = random.randint(1, 45)
    words += [f"scheduler={'none' if kind == 'max_steps' else random.choice(('none', 'onecycle', 'step'))}"]
    if kind == "max_steps":
        return words, [f"trainer.max_steps={step}"], ["trainer.max_steps=-1"], None
    how = "should_stop" if kind == "should_stop" else random.choice(STOPPING).name
    hooks = ["on_train_batch_end", "on_train_batch_start", "on_validation_batch_end", "on_validation_end"]
    hooks += ["on_train_epoch_end", "on_validation_start"] if kind == "signal" else []
    each = random.random() < 0.3
    stop = f"{{_target_: test_stops.StopAt, step: {step}, how: {how}, hook: {random.choice(hooks)}, each: {each}}}"
    code = None if kind == "should_stop" else 128 + getattr(signal, how)
    return words, [f"+callbacks.stop={stop}"], ["callbacks.stop=null"], code


@pytest.mark.promise("a stopped run is resumed to the same bits", "random settings, stops and moments")
def test_random_stops_equal_the_unbroken_run(
    train_here: Train, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    stopped = 0
    first, wanted = int(os.environ.get("FIRST_STOP", "2")), int(os.environ.get("STOPS", "4"))  # each kind is among them
    for number in range(first, first + wanted):
        words, stop, go, code = trial(Random(number))
        for folder in tmp_path.iterdir():
            shutil.rmtree(folder)
        train_here(*SMALL, *words, folder="whole")
        try:
            train_here(*SMALL, *words, *stop, folder="run")
        except SystemExit as ended:
            assert code is not None and ended.code == code, f"{number}: {words} {stop} {ended.code}"
            stopped += 1
        try:
            train_here("resume=run", *go)
        except SystemExit as ended:  # what was to stop it came too late
            assert "raise it to train further" in str(ended.code), f"{number}: {words} {stop}: {ended.code}"
        try:
            same_runs(tmp_path / "whole", tmp_path / "run")
        except AssertionError as error:
            raise AssertionError(f"trial {number}: {words} {stop}") from error
    assert stopped
    record_property("tried", wanted)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        pytest.param("trainer.max_steps=30", "by trainer.max_steps=30, at step 30", marks=pytest.mark.long),
        ("trainer.max_time=00:00:00:01", "by trainer.max_time, after"),
        ("trainer.max_steps=5", "by trainer.max_steps=5, at step 5"),
        (
            "+callbacks.early={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 1, "
            "min_delta: 100}",
            "by EarlyStopping: val/loss has not improved for 1 validations, at step",
        ),
    ],
)
def test_the_last_line_names_what_ended_a_run(run: Run, limit: str, said: str, tmp_path: Path) -> None:
    early = "+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/acc, patience: 900}"
    ended = run("train.py", *SMALL, limit, early, "trainer.max_epochs=500", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    assert said in ended.out.strip().splitlines()[-1]
    assert load_model(tmp_path / "run" / "checkpoints" / "best.ckpt")
    validated = [row["step"] for row in rows(tmp_path / "run" / "metrics.csv") if "val/acc" in row]
    assert all(step % 41 == 0 for step in validated)


class SignalIn(Callback):
    """Sends its own process a signal when a hook is called, and then a second."""

    hooks_every_n_steps = None

    def __init__(self, hook: str, number: int) -> None:
        setattr(self, hook, lambda *_, **__: os.kill(os.getpid(), number))


@pytest.mark.promise("a signal ends the program at any moment", "in the sanity check, the test, while drawing")
@pytest.mark.parametrize(
    ("hook", "number"),
    [
        pytest.param("setup", signal.SIGINT, marks=pytest.mark.long),
        ("on_sanity_check_start", signal.SIGTERM),
        pytest.param("on_test_batch_start", signal.SIGINT, marks=pytest.mark.long),
        pytest.param("on_test_end", signal.SIGUSR1, marks=pytest.mark.long),
    ],
)
def test_a_signal_outside_the_training(run: Run, whole: Whole, tmp_path: Path, hook: str, number: int) -> None:
    stop = f"+callbacks.stop={{_target_: test_stops.SignalIn, hook: {hook}, number: {int(number)}}}"
    ended = run("train.py", *SMALL, stop, "hydra.run.dir=run")
    assert ended.code == 128 + number, ended
    how = "continue with resume=run callbacks.stop._target_=test_stops.SignalIn"
    assert ended.err == f"stopped by {signal.Signals(number).name}; {how}\n"
    ended = run("train.py", "resume=run", "callbacks.stop=null")
    assert ended.code == 0 and not ended.err, ended.err
    same_runs(whole(*SMALL), tmp_path / "run")


class StopBetweenJobs(HydraCallback):
    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if config.hydra.job.num == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_between_the_jobs_of_a_sweep(run: Run, tmp_path: Path) -> None:
    words = ["+hydra.callbacks.stop._target_=test_stops.StopBetweenJobs", "hydra.sweep.dir=sweep", "seed=1,2"]
    ended = run("train.py", "-m", *SMALL, *words)
    assert ended.code == 128 + signal.SIGTERM, ended
    assert ended.err == f"stopped by SIGTERM; continue with resume=sweep {words[0]}\n"
    assert (tmp_path / "sweep/0/summary.json").exists() and not list((tmp_path / "sweep/1").glob(".hydra"))


@pytest.mark.promise("a signal ends the program at any moment", "before the imports are done, and a second signal")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_signal_while_the_program_starts(tmp_path: Path, number: int) -> None:
    for seconds in (0, 0.5, 1.5):
        command = [sys.executable, str(ROOT / "train.py"), *SMALL, "hydra.run.dir=run"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        about = Path(f"/proc/{process.pid}/status")
        while not int(about.read_text().partition("SigCgt:")[2].split()[0], 16) >> signal.SIGUSR2 - 1 & 1:
            time.sleep(0.001)
        time.sleep(seconds)  # it imports, or composes
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number, err
        assert err.startswith(f"stopped by {signal.Signals(number).name}; ") and err.count("\n") == 1


class Careless(Callback):
    """Catches whatever comes up while it is built, the end of the program too; goes on, or raises another error."""

    def __init__(self, raises: bool) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except BaseException:
            if raises:
                raise ValueError("no such thing") from None


@pytest.mark.parametrize("raises", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_signal_in_code_that_catches_all(run: Run, tmp_path: Path, raises: bool) -> None:
    words = [f"+callbacks.part={{_target_: test_stops.Careless, raises: {raises}}}", "trainer.max_epochs=10000"]
    ended = run("train.py", "-m", *SMALL, *words, "hydra.sweep.dir=sweep", "seed=1,2")
    assert ended.code == 128 + signal.SIGTERM, ended
    assert ended.err.startswith("stopped by SIGTERM; ") and ended.err.count("\n") == 1
    assert not (tmp_path / "sweep/1").exists()


class Busy(Callback):
    """Says so, and lets a training step last for a minute."""

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        Path("busy").touch()
        time.sleep(60)


def test_a_second_signal_is_not_waited_for(tmp_path: Path) -> None:
    process = start(tmp_path, "train.py", *SMALL, "+callbacks.busy={_target_: test_stops.Busy}", "hydra.run.dir=run")
    while not (tmp_path / "busy").exists() and process.is_alive():
        time.sleep(0.01)
    for _ in range(2):
        os.kill(process.pid or 0, signal.SIGTERM)
        time.sleep(1)  # the first is waited for: the step under way is to end
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM
