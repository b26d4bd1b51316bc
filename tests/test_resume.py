"""Checkpoints are whole whatever happens, and a run that is resumed equals a run that was never stopped."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from conftest import ComposeRun, Run, Train, Whole, one_line, start
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_pl.engine.checkpoints import STOPPING, DurableIO, Last
from mnist_pl.figures.plots import rows
from mnist_pl.reading import checkpoint
from mnist_pl.runs.sweep import choice

WORDS = ["data=digits", "model.channels=[4,8]", "model.hidden=[20]", "model.dropout=0.5", "trainer.max_epochs=3"]
WORDS += ["data.augment={shift: 2}", "trainer.log_every_n_steps=10", "data.batch_size=16"]
WORDS += ["callbacks=minimal", "logger=csv"]
QUICK = ["data=digits", "model=mlp", "callbacks=minimal", "logger=csv"]


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


class Stop(Callback):
    """Sends its own process a signal at a known moment, before the callbacks that write checkpoints are called."""

    hooks_every_n_steps = None

    def __init__(self) -> None:
        hook, step, number = os.environ["STOP"].split()

        def send(trainer: Trainer, *rest: Any, **more: Any) -> None:
            if trainer.global_step == int(step) and not trainer.sanity_checking and "STOP" in os.environ:
                del os.environ["STOP"]
                os.kill(os.getpid(), int(number))

        setattr(self, hook, send)


def same_runs(one: Path, other: Path, record: bool = True) -> None:
    for name in ("last", "best"):
        left, right = (checkpoint.read(folder / "checkpoints" / f"{name}.ckpt") for folder in (one, other))
        for part in (  # the first that differs tells most
            "global_step",
            "epoch",
            "images_seen",
            "metrics",
            "state_dict",
            "optimizer_states",
            "lr_schedulers",
        ):
            same(left[part], right[part], f"{name}: {part}")
        same(left["training"]["random"], right["training"]["random"], f"{name}: random")
    if record:
        timeless = [
            [{k: value for k, value in row.items() if "second" not in k} for row in rows(run / "metrics.csv")]
            for run in (one, other)
        ]
        assert timeless[0] == timeless[1]


STOP = "+callbacks.stop={_target_: test_resume.Stop}"
GO = "+callbacks.stop=null"
ONE_BY_ONE = "+callbacks.each={_target_: test_resume.EachBatch}"  # else several batches are a round of Lightning's loop
KNOWN = "++callbacks.each._target_=test_resume.EachBatch"  # a class outside the project is to be named again
MOMENTS = {  # 82 steps make an epoch
    "mid-epoch": ("on_train_batch_end", 100, ONE_BY_ONE),
    "mid-epoch, several steps in a round": ("on_train_batch_end", 140),
    "after the last step": ("on_train_batch_end", 164, ONE_BY_ONE),
    "after the last step, several in a round": ("on_train_batch_end", 82),
    "in validation": ("on_validation_batch_start", 82, "scheduler=step", "scheduler.step_size=1"),
    "in validation, batches one by one": ("on_validation_batch_start", 164, ONE_BY_ONE),
    "at an epoch's end": ("on_train_epoch_end", 82),
    "in a validation within an epoch": ("on_validation_batch_start", 41, "trainer.val_check_interval=0.5"),
    "before gradients are complete": ("on_train_batch_start", 20, "trainer.accumulate_grad_batches=3"),
}


# The others, and more, are among the random stops of test_stops.py too, within one process.
BRIEFLY = "mid-epoch, several steps in a round"


class EachBatch(Callback):
    """Its presence makes each batch a round of Lightning's loop."""

    def on_train_batch_end(self, *_: Any) -> None:
        pass


@pytest.mark.promise("a stopped run is resumed to the same bits", "signals at each kind of moment, then resume=")
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        pytest.param(moment, number, marks=[] if moment == BRIEFLY else pytest.mark.long)
        for moment, number in zip(MOMENTS, cycle(STOPPING), strict=False)
    ],
)
def test_a_signal_stops_a_run_that_is_then_resumed(
    run: Run, tmp_path: Path, whole: Whole, moment: str, number: int
) -> None:
    hook, step, *more = MOMENTS[moment]
    words = ["train.py", *WORDS, *more, STOP, "hydra.run.dir=run"]
    ended = run(*words, STOP=f"{hook} {step} {int(number)}")
    assert ended.code == 128 + number, ended
    assert f"stopped by {signal.Signals(number).name} after step" in ended.out and "resume=run" in ended.out
    assert "Traceback" not in ended.err
    last = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert step <= last["global_step"] <= step + 1
    if number == signal.SIGTERM:  # the other way, in a folder of its own; its curve begins where it does
        other = ["hydra.run.dir=other", "ckpt_path=run", "trainer.num_sanity_val_steps=0"]
        assert run("train.py", *WORDS, *more, *other).code == 0
        same_runs(whole(*WORDS, *more), tmp_path / "other", record=False)
    ended = run("train.py", "resume=run", GO, *[KNOWN] * (ONE_BY_ONE in more))
    assert ended.code == 0 and not ended.err, ended.err
    same_runs(whole(*WORDS, *more), tmp_path / "run")


@pytest.mark.long
@pytest.mark.promise("a stopped run is resumed to the same bits", "2 epochs, then resume= or ckpt_path= to 4")
def test_two_epochs_and_two_more_are_four(
    run: Run, tmp_path: Path, whole: Whole, record_property: Callable[[str, Any], None]
) -> None:
    words = ["scheduler=step", "scheduler.step_size=1", "logger=tensorboard"]
    assert run("train.py", *WORDS, *words, "trainer.max_epochs=2", "hydra.run.dir=run").code == 0
    four = whole(*WORDS, *words, "trainer.max_epochs=4")
    other = [*WORDS, *words, "ckpt_path=run", "hydra.run.dir=more", "trainer.num_sanity_val_steps=0"]
    for folder, more in {"more": other, "run": ["resume=run"]}.items():
        ended = run("train.py", *more, "trainer.max_epochs=4")
        assert ended.code == 0 and not ended.err, ended.err
        same_runs(four, tmp_path / folder, record=False)
    for tag in ("val/acc", "trainer/lr", "vs_images/train/loss_step"):
        assert curve(tmp_path / "run", tag) == curve(four, tag), tag
    record_property("tried", 2)


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """As TensorBoard shows it."""
    (events_folder,) = {path.parent for path in folder.glob("*/events.out.tfevents*")}
    events = EventAccumulator(str(events_folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.mark.long
def test_more_or_fewer_batches_in_a_round_are_the_same_run(run: Run, tmp_path: Path, whole: Whole) -> None:
    for step, before, after in ((140, "+callbacks.each=null", ONE_BY_ONE), (147, ONE_BY_ONE, "+callbacks.each=null")):
        words = ["train.py", *WORDS, before, STOP, f"hydra.run.dir=run{step}"]
        assert run(*words, STOP=f"on_train_batch_end {step} 15").code == 128 + 15
        ended = run("train.py", f"resume=run{step}", after, GO)
        assert ended.code == 0, ended.err
        same_runs(whole(*WORDS), tmp_path / f"run{step}")


@pytest.mark.parametrize("schedule", ["none", pytest.param("cosine", marks=pytest.mark.long)])
def test_new_settings_win_over_those_that_a_run_was_started_with(
    train_here: Train, tmp_path: Path, schedule: str
) -> None:
    def rates(*more: str) -> list[float]:
        words = [f"scheduler={schedule}", *more]
        folder = f"run{len(list(tmp_path.iterdir()))}"
        begin = [*QUICK, "data.batch_size=64", "trainer.log_every_n_steps=5", "optimizer=sgd", "optimizer.lr=0.1"]
        train_here(*begin, "trainer.max_epochs=1", words[0], folder=folder)
        train_here(f"resume={folder}", "trainer.max_epochs=2", *words)
        last = checkpoint.read(tmp_path / folder / "checkpoints" / "last.ckpt")
        momentum = last["optimizer_states"][0]["param_groups"][0]["momentum"]
        assert momentum == (0.5 if "optimizer.momentum=0.5" in words else 0.9)
        table = rows(tmp_path / folder / "metrics.csv")
        return [row["lr"] for row in table if "lr" in row and row["step"] > 21]

    plain = rates()
    assert schedule != "none" or plain == pytest.approx([0.1] * len(plain))
    assert rates("optimizer.lr=0.05", "optimizer.momentum=0.5") == pytest.approx([rate / 2 for rate in plain])
    with pytest.raises(SystemExit, match="was trained with the optimizer SGD, and optimizer is Adam"):
        train_here("resume=run0", "optimizer=adam", "trainer.max_epochs=3")
    train_here("resume=run0", "trainer.max_epochs=3")  # what was refused is not remembered


def test_what_resume_says(run: Run, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "outputs" / "a" / "b")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/**/*")}
    contents = files_of(tmp_path / "outputs")
    for name in ("last", "outputs/a/b"):
        ended = run("train.py", f"resume={name}")
        assert ended.code == 0 and "outputs/a/b is finished" in ended.out and "trainer.max_epochs=10" in ended.out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/**/*")} == before
    assert "trainer.max_epochs is 5; raise it" in one_line(run("train.py", "resume=last", "logger=csv"))
    assert "resume=nowhere: nowhere/.hydra/overrides.yaml" in one_line(run("train.py", "resume=nowhere"))
    assert "leave out -m" in one_line(run("train.py", "-m", "resume=last"))
    assert "there is no such setting" in one_line(run("train.py", "resume=last", "trainer.max_epoch=7"))
    line = one_line(run("train.py", "data=digits", "hydra.run.dir=outputs/a/b"))
    assert "holds an existing run" in line and "resume=outputs/a/b" in line
    assert files_of(tmp_path / "outputs") == contents, "what is refused changes no run"


@pytest.mark.long
def test_a_run_killed_before_its_first_checkpoint_begins_anew(run: Run, tmp_path: Path) -> None:
    words = ["train.py", *WORDS, STOP, "hydra.run.dir=run"]
    assert run(*words, STOP="on_train_batch_end 60 9").code == -signal.SIGKILL
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / ".best.ckpt.part").write_text("half")
    ended = run("train.py", "resume=run", "trainer.max_epochs=1", GO)
    assert ended.code == 0 and "0/1" in ended.out, ended.err
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) > 3


@pytest.mark.long
@pytest.mark.parametrize(("setting", "step"), [("every_n_train_steps=50", 50), ("every_n_minutes=0.0001", 80)])
def test_checkpoints_within_an_epoch(run: Run, train_here: Train, tmp_path: Path, setting: str, step: int) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*callbacks\.last\.every_n.*$"):
        train_here(*WORDS, f"callbacks.last.{setting.partition('=')[0]}=0", folder="refused")
    words = ["train.py", *WORDS, f"callbacks.last.{setting}", STOP, "hydra.run.dir=run"]
    assert run(*words, STOP="on_train_batch_end 82 9").code == -9
    assert checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == step
    assert run("train.py", "resume=run", GO).code == 0


@pytest.mark.promise("a killed run is resumed to the same bits", "SIGKILL at random moments, then resume=")
def test_a_run_that_is_killed_at_random_moments_is_resumed(
    tmp_path: Path, whole: Whole, record_property: Callable[[str, Any], None]
) -> None:
    words = ["trainer.max_epochs=8", "callbacks.last.every_n_train_steps=15"]
    random, kills, wanted = Random(1), 0, int(os.environ.get("KILLS", "3"))
    while kills < wanted:
        folder = tmp_path / str(kills)
        folder.mkdir()
        begin = ["train.py", *WORDS, *words, "hydra.run.dir=run"]
        said, reached, code = folder / "run" / ".hydra" / "overrides.yaml", 0, None
        while code != 0:
            started = said.exists() and said.stat().st_size
            process = start(folder, *(["train.py", "resume=run"] if started else begin))
            process.join(random.uniform(0.2, 1.5) if kills < wanted else 120)
            process.kill()
            process.join()
            code = process.exitcode
            assert code in (0, -signal.SIGKILL), (folder / ".err").read_text()
            kills += code != 0
            steps = {}
            for name in ("last", "best"):
                path = folder / "run" / "checkpoints" / f"{name}.ckpt"
                steps[name] = checkpoint.read(path)["global_step"] if path.exists() else 0
            assert steps["last"] >= reached, "a checkpoint was lost"
            reached = steps["last"]
        same_runs(whole(*WORDS, *words), folder / "run")
        assert not list((folder / "run").glob("**/*.part"))
    record_property("tried", kills)


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs to be root")
    try:
        plugin = DurableIO()
        plugin.save_checkpoint({"a": torch.arange(10)}, disk / "last.ckpt")
        with pytest.raises(OSError, match="last.ckpt: cannot be written .No space left on device"):
            plugin.save_checkpoint({"a": torch.zeros(100_000)}, disk / "last.ckpt")
        assert torch.equal(torch.load(disk / "last.ckpt", weights_only=True)["a"], torch.arange(10))
        assert os.listdir(disk) == ["last.ckpt"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_checkpoint_whose_training_state_is_broken_is_refused(
    train_here: Train, trained: Path, tmp_path: Path
) -> None:
    whole = checkpoint.read(trained / "checkpoints" / "last.ckpt")
    loop = whole["loops"]["fit_loop"]
    changes: list[dict[str, Any]] = [
        {"training": {}},
        {"loops": {"fit_loop": {**loop, "epoch_loop.batch_progress": 3}}},
        {"optimizer_states": [{"state": {}, "param_groups": []}]},
        {"lr_schedulers": [{}], "optimizer_states": 1},
    ]
    for number, change in enumerate(changes):
        torch.save({**whole, **change}, tmp_path / "broken.ckpt")
        with pytest.raises(SystemExit, match="^error: ckpt_path=broken.ckpt: .*cannot be continued"):
            words = ["trainer.max_epochs=6", "ckpt_path=broken.ckpt", "callbacks=minimal", "logger=csv"]
            train_here("data=digits", *words, folder=f"run{number}")


@pytest.mark.promise("a NaN loss stops the run, the last good checkpoint stays", "a rate of 1e30, SGD")
@pytest.mark.parametrize("every", ["null", pytest.param("1", marks=pytest.mark.long)])
def test_a_nan_loss_stops_the_run(run: Run, train_here: Train, tmp_path: Path, every: str) -> None:
    words = [*WORDS, "optimizer=sgd", "scheduler=none", f"callbacks.last.every_n_train_steps={every}"]
    train_here(*words, "trainer.max_epochs=1")
    line = one_line(run("train.py", "resume=run", "trainer.max_epochs=2", "optimizer.lr=1e30"))
    assert (
        "NaN or infinite" in line
        and "noticed after step" in line
        and "1e+30" in line
        and "smaller optimizer.lr" in line
    )
    last, best = (checkpoint.read(tmp_path / "run" / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    assert all(weights.isfinite().all() for part in (last, best) for weights in part["state_dict"].values())
    # Written at each step, the last may be from the very step that ruined the network; the best never is.
    more = ["resume=run"] if every == "null" else [*words, "ckpt_path=run/checkpoints/best.ckpt"]
    train_here(*more, "trainer.max_epochs=2", "optimizer.lr=0.01", folder="more")


def test_a_run_of_version_0_1_is_resumed_in_the_middle_of_its_epoch(run: Run, tmp_path: Path) -> None:
    """Lightning's loops counted several batches as one then."""
    old = tmp_path / "run"
    shutil.copytree(Path(__file__).parent / "version_0_1", old)
    started = checkpoint.read(old / "checkpoints" / "last.ckpt")["global_step"]
    assert 41 < started < 82
    ended = run("train.py", "resume=run", "callbacks=minimal", "logger=csv")
    assert ended.code == 0 and " 2/3 " in ended.out and " 1/3 " not in ended.out, ended.err
    last = checkpoint.read(old / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 3 * 41 and last["images_seen"] == 3 * 1297
    steps = [row["step"] for row in rows(old / "metrics.csv") if "lr" in row]
    assert steps == [100], "each 50 steps"
    assert last["metrics"]["train/loss"] < 2.4


def test_a_run_that_version_0_1_stopped_during_a_validation_is_refused(run: Run, tmp_path: Path) -> None:
    old = tmp_path / "run"
    shutil.copytree(Path(__file__).parent / "version_0_1", old)
    last = torch.load(old / "checkpoints" / "last.ckpt", weights_only=True)
    last["training"]["validate_first"] = True
    torch.save(last, old / "checkpoints" / "last.ckpt")
    assert "which only that version can resume" in one_line(run("train.py", "resume=run"))
    assert run("predict.py", "ckpt_path=run/checkpoints/last.ckpt").code == 0


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("**/*") if path.is_file()}


@pytest.mark.long
def test_a_run_is_resumed_with_the_settings_that_it_was_composed_with(run: Run, tmp_path: Path) -> None:
    """Wherever they came from: files that are gone since, a configuration of one's own, the environment."""
    own = tmp_path / "own"
    (own / "experiment").mkdir(parents=True)
    preset = own / "experiment" / "mine.yaml"
    preset.write_text("# @package _global_\nmodel: {hidden: [7]}\noptimizer: {lr: '${oc.decode:${oc.env:RATE}}'}\n")
    (own / "all.yaml").write_text(
        "defaults: [train_schema, {data: digits}, {model: mlp}, {optimizer: sgd}, {scheduler: none}, "
        "{trainer: default}, {callbacks: minimal}, {logger: csv}, {experiment: mine}, _self_]\n"
        "trainer: {max_epochs: 2}\nclaim: 12\nseed: 1\nhydra: {output_subdir: null}\n"
    )
    more = ["--config-dir", str(own), "--config-name", "all"]
    stop = "+callbacks.stop={_target_: test_resume.Stop}"
    ended = run("train.py", *more, stop, "hydra.run.dir=run", RATE="0.05", STOP="on_train_epoch_end 41 15")
    assert ended.code == 128 + 15, ended.err
    preset.unlink()
    (own / "all.yaml").unlink()
    ended = run(
        "train.py", "resume=run", "callbacks.stop=null", "trainer.max_epochs=3", "callbacks.last.every_n_train_steps=5"
    )
    assert ended.code == 0, ended.err
    first = ended.out.splitlines()[0]
    assert "resumes run, with " in first and "trainer.max_epochs 2 -> 3" in first
    assert "callbacks.last.every_n_train_steps None -> 5" in first and "optimizer" not in first
    last = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["hyper_parameters"]["hidden"] == [7] and last["hyper_parameters"]["optimizer"]["lr"] == 0.05
    facts = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (facts["claim"], facts["experiment"], facts["epochs"]) == (12, "mine", 3)
    assert [row["images"] for row in rows(tmp_path / "run" / "metrics.csv") if "val/acc" in row][-1] == 3 * 1297
    ended = run(
        "train.py", "resume=run", "optimizer.momentum=0.5", "logger=tensorboard", "trainer.max_epochs=4", *more[:2]
    )
    assert ended.code == 0 and "optimizer.momentum 0.9 -> 0.5" in ended.out, ended.err
    assert list((tmp_path / "run").glob("digits-mine-lr0.05*/events*"))
    assert "hydra.run.dir=b: resume= continues" in one_line(run("train.py", "resume=run", "hydra.run.dir=b"))
    assert "experiment: sets what resume= takes" in one_line(run("train.py", "resume=run", "experiment=fast"))


@pytest.mark.parametrize(
    ("size", "steps"), [(64, 20 + 11 + 21), pytest.param(16, 20 + 42 + 82, marks=pytest.mark.long)]
)
def test_batches_of_another_size_are_the_rest_of_the_epoch(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, steps: int
) -> None:
    monkeypatch.setenv("STOP", "on_train_batch_end 20 15")
    with pytest.raises(SystemExit):
        train_here(*QUICK, "trainer.max_epochs=2", ONE_BY_ONE, STOP)
    train_here("resume=run", f"data.batch_size={size}", GO, KNOWN)
    last = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert (last["global_step"], last["images_seen"]) == (steps, 2 * 1297)


def test_a_strangers_run_executes_nothing(
    run: Run, train_here: Train, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "outputs" / "run"
    shutil.copytree(trained, folder)
    (tmp_path / "evil.py").write_text("open('executed', 'w')\nclass Evil: pass\ndef evil(**_): open('executed', 'w')\n")
    config = folder / ".hydra" / "config.yaml"
    settings = OmegaConf.load(config)
    for key, target in (
        ("callbacks.x._target_", "evil.Evil"),
        ("model._target_", "evil.evil"),
        ("optimizer._target_", "mnist_pl.runs.summary.subprocess.Popen"),
        ("scheduler._target_", "torch.hub.load"),
        ("data.augment._target_", "os.system"),
        ("trainer.plugins.0._target_", "torch.serialization.load"),
    ):
        changed = settings.copy()
        OmegaConf.update(changed, key, target, force_add=True)
        if "plugins" in key:
            changed.trainer.plugins = [{"_target_": target}]
        OmegaConf.save(changed, config)
        with pytest.raises(SystemExit) as refused:
            train_here("resume=outputs/run", "trainer.max_epochs=7")
        line = str(refused.value)
        assert line.startswith("error: ") and f"its {key} is {target}" in line, line
        assert f"resume=outputs/run {key}={target}" in line
        assert not (tmp_path / "executed").exists()
    config.unlink()  # as of version 0.1
    (folder / ".hydra" / "overrides.yaml").write_text("- data=digits\n- +callbacks.x._target_=evil.Evil\n")
    assert "+callbacks.x._target_=evil.Evil; if you know" in one_line(run("train.py", "resume=outputs/run", "seed=2"))


def test_early_stopping_takes_its_new_patience(train_here: Train, tmp_path: Path) -> None:
    early = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 1, min_delta: 9}"
    words = [*QUICK, "trainer.max_epochs=9"]
    train_here(*words, f"+callbacks.early={early}")
    train_here("resume=run", "callbacks.early.patience=3")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 4
    train_here("resume=run", "callbacks.early=null", "trainer.max_epochs=5")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ended_by"] is None


def test_testing_a_run_leaves_it_as_it_is(run: Run, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "outputs" / "run")
    before = files_of(tmp_path / "outputs" / "run")
    for words in (["resume=outputs/run"], ["data=digits", "ckpt_path=outputs/run", "callbacks=minimal", "logger=csv"]):
        ended = run("train.py", *words, "fit=false", "hydra.run.dir=test")
        assert ended.code == 0, ended.err
        tested = json.loads((tmp_path / "test" / "summary.json").read_text())
        facts = json.loads((trained / "summary.json").read_text())
        assert {name: tested[name] for name in ("test/acc", "epochs", "steps")} == {
            name: facts[name] for name in ("test/acc", "epochs", "steps")
        }
        shutil.rmtree(tmp_path / "test")
    assert files_of(tmp_path / "outputs" / "run") == before


def test_the_newest_run_may_have_no_checkpoint_yet(run: Run, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "outputs" / "older")
    words = ["train.py", *WORDS, STOP, "hydra.run.dir=outputs/newer"]
    assert run(*words, STOP="on_train_batch_end 30 9").code == -signal.SIGKILL
    ended = run("train.py", "resume=last", "trainer.max_epochs=1", GO)
    assert ended.code == 0 and "resumes outputs/newer" in ended.out, ended.err
    assert (tmp_path / "outputs" / "newer" / "summary.json").exists()


def test_a_checkpoint_callback_of_lightnings_writes_beside_ours(train_here: Train, tmp_path: Path) -> None:
    words = [*QUICK, "trainer.max_epochs=1"]
    train_here(*words, "+callbacks.own={_target_: lightning.pytorch.callbacks.ModelCheckpoint, save_last: true}")
    assert {path.parent for path in tmp_path.glob("**/*.ckpt")} == {tmp_path / "run" / "checkpoints"}
    train_here("resume=run", "trainer.max_epochs=2")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 2


def test_what_ends_the_process_at_a_signal_comes_last(compose_run: ComposeRun) -> None:
    words = [
        "data=digits",
        "callbacks=minimal",
        "+callbacks.own={_target_: lightning.pytorch.callbacks.ModelCheckpoint}",
    ]
    *_, trainer = compose_run(words)
    assert isinstance(trainer.callbacks[-1], Last)


@pytest.mark.parametrize(
    "left_out", ["record", *(pytest.param(name, marks=pytest.mark.long) for name in ("progress", "nan", "best"))]
)
def test_a_run_is_resumed_without_one_of_the_callbacks(train_here: Train, tmp_path: Path, left_out: str) -> None:
    words = [*QUICK, "trainer.max_epochs=1"]
    train_here(*words, f"callbacks.{left_out}=null")
    train_here("resume=run", "trainer.max_epochs=2")
    assert checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2 * 41
    assert choice(tmp_path / "run").endswith("trainer.max_epochs=2 callbacks." + left_out + "=null")
    facts = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert facts["test/acc"] > 0.3 and (facts["val/acc"] is None) == (left_out == "best")
    assert (facts["train_seconds"] is None) == (left_out == "record")
