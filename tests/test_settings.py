"""Every leaf of the configuration, set to anything: the run works, or one line names the leaf before any training."""

import os
import re
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Compose, Train
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.control import note
from omegaconf import DictConfig, OmegaConf

from mnist_pl.figures.plots import rows
from mnist_pl.models import CNN
from mnist_pl.runs.build import build

TINY = ["data=digits", "model.hidden=[8]", "trainer.max_epochs=1", "trainer.max_steps=3", "trainer.log_every_n_steps=1"]
TINY += [f"trainer.{name}=1" for name in ("num_sanity_val_steps", "limit_val_batches", "limit_test_batches")]
WRONG = "-1 0 1 nan 1e400 '' abc [] {} [a,b] [1] null true 1000000000 1000000000000000000000 0.5 '${oc.env:NOPE}' "
WRONG += "'${nowhere}' '${seed' ??? 3.7 '1' [null] [-1,-1] [0.5,0.5] {a:1} {_target_:3} {_target_:builtins.dict}"
TARGETS = ["3", "null", "torch.nope", "nowhere.At", "math.pi", "torch", "builtins.dict", "torch.nn.ReLU", "''"]
UNENDING = {"trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.min_steps", "trainer.min_epochs"}
DIVERGED = "NaN or infinite"  # which is only seen while it trains


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


# The quick option of each group comes first; the others are tried for their own settings.
CHOICES = {
    "model": ["mlp", "cnn"],
    "optimizer": ["sgd", *options("optimizer")],
    "scheduler": ["none", *options("scheduler")],
    "callbacks": ["minimal", *options("callbacks")],
    "logger": ["csv", "csv", "none", "tensorboard"],
}


def leaves(node: Any, path: str = "") -> Iterator[str]:
    """The whole names of all settings below a node; what refers to a group elsewhere is one of its own."""
    for key in node:
        inner = f"{path}.{key}".lstrip(".")
        refers = OmegaConf.is_interpolation(node, key)
        child = None if refers else node[key]
        if isinstance(child, DictConfig) and child:
            yield from leaves(child, inner)
        elif inner != "resume" and inner not in CHOICES:  # which is read before Hydra composes; groups without settings
            yield inner


def said(path: str) -> st.SearchStrategy[str]:
    """`path=value` for a value that may be anything."""
    values = st.sampled_from(TARGETS if path.endswith("_target_") else WRONG.split())
    numbers = st.one_of(st.integers(-(10**20), 10**20), st.integers(-3, 40), st.floats(), st.floats(0, 1)).map(str)
    text = st.text("abcxyz 0123456789_-./", max_size=12).map(lambda words: f"'{words}'")
    several = st.lists(numbers, max_size=3).map(lambda numbers: f"[{','.join(numbers)}]")
    return st.one_of(values, values, numbers, several, text).map(lambda value: f"{path}={value}")


def accept(words: list[str]) -> bool:
    """Not what takes for ever, or starts further processes."""
    keys = [word.partition("=")[0] for word in words]
    several = re.compile(r"trainer\.devices=\D*([2-9]|1\d)\D*")
    return len(UNENDING & set(keys)) < 2 and not any(several.fullmatch(word) for word in words)


@pytest.mark.promise("an invalid setting ends in one line that names it, before any training", "any value for any leaf")
@pytest.mark.filterwarnings("default")
def test_any_value_of_any_setting(
    train_here: Train, compose: Compose, tmp_path: Path, record_property: Any, capfd: Any
) -> None:
    number, tried = count(), 0
    found: dict[tuple[str, ...], list[str]] = {}

    @settings(
        max_examples=int(os.environ.get("SETTINGS", 12)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # a few words need no shrinking
    )
    @given(st.data())
    def try_one(data: st.DataObject) -> None:
        nonlocal tried
        group = data.draw(st.sampled_from([None, *CHOICES]))
        choice = {name: names[0] for name, names in CHOICES.items()}
        if group is not None:
            choice[group] = data.draw(st.sampled_from(CHOICES[group][1:]))
        chosen = tuple(f"{name}={option}" for name, option in choice.items())
        chosen += ("model.channels=[2,2]",) * (choice["model"] == "cnn")
        if chosen not in found:
            found[chosen] = list(leaves(compose(*chosen, *TINY)))
        mine = [path for path in found[chosen] if group is None or path.startswith(f"{group}.")] or found[chosen]
        paths = data.draw(st.lists(st.sampled_from(mine), min_size=1, max_size=2, unique=True))
        words = [data.draw(said(path)) for path in paths]
        assume(accept(words))
        note(" ".join([*chosen, *words]))
        tried += 1
        folder = tmp_path / f"run{next(number)}"
        try:
            train_here(*chosen, *TINY, *words, folder=folder.name)
        except SystemExit as ended:
            line = str(ended.code)
            assert line.startswith("error: ") and "\n" not in line, line
            if DIVERGED not in line:
                assert any(path.removeprefix("model.") in line for path in paths), line
                assert not (folder / "checkpoints").exists(), line
        finally:
            for left in tmp_path.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    try_one()
    record_property("tried", tried)


STOP = "+callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:"


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("model=cnn model.padding=-1", ["model.padding", "-1"]),
        ("model=cnn model.padding=-442", ["model.padding", "-442"]),
        ("model.hidden=[1000000000]", ["model.hidden", "memory"]),
        ("data.seed=[0,0]", ["data.seed", "whole number", "[0, 0]"]),
        ("scheduler=0.5", ["scheduler=0.5", "onecycle"]),
        ("trainer.profiler=1", ["trainer.profiler", "1"]),
        ("trainer.accumulate_grad_batches=abc", ["trainer.accumulate_grad_batches", "whole number", "'abc'"]),
        ("trainer.limit_val_batches=1e-9", ["trainer.limit_val_batches", "Try at least"]),
        ("trainer.limit_test_batches=1e-152", ["trainer.limit_test_batches=1e-152", "at least"]),
        ("trainer.val_check_interval=0", ["trainer.val_check_interval", "positive", "0"]),
        ("model.scheduler={a:1}", ["model.scheduler", "_target_"]),
        ("model.optimizer={_target_:torch.nn.ReLU}", ["model.optimizer._target_=torch.nn.ReLU", "Optimizer"]),
        ("optimizer.amsgrad=abc", ["optimizer.amsgrad", "true or false", "'abc'"]),
        ("optimizer.lr='${oc.env:NOPE}'", ["optimizer.lr=${oc.env:NOPE}", "'NOPE' not found"]),
        ("callbacks=default callbacks.projector.images=3.7", ["callbacks.projector.images", "whole number", "3.7"]),
        ("trainer.max_epochs=-1", ["trainer.max_epochs=-1", "scheduler=none"]),
        ("trainer.limit_train_batches=0", ["trainer.limit_train_batches=0", "scheduler=none"]),
        ("scheduler.total_steps=5", ["scheduler.total_steps=5", "all_steps"]),
        (STOP + "val_loss}", ["callbacks.stop.monitor=val_loss", "val/loss"]),
        ("scheduler=plateau scheduler.monitor=val_loss", ["scheduler.monitor=val_loss", "val/loss"]),
        ("model=cnn optimizer._target_=torch.optim.LBFGS", ["optimizer._target_=torch.optim.LBFGS"]),
        ("trainer.precision=transformer-engine", ["trainer.precision=transformer-engine"]),
        ("trainer.devices=1000000000", ["trainer.devices=1000000000", "cores"]),
        ("trainer.num_nodes=2", ["trainer.num_nodes=2", "SLURM"]),
        ("claim=nan", ["claim"]),
    ],
)
def test_a_setting_is_named(train_here: Train, tmp_path: Path, word: str, parts: list[str]) -> None:
    words = ["data=digits", "model=mlp", "callbacks=minimal", "logger=csv", "trainer.accelerator=cpu", *word.split()]
    with pytest.raises(SystemExit) as ended:
        train_here(*words)
    line = str(ended.value.code)
    assert line.startswith("error: ") and "\n" not in line
    assert all(part in line for part in parts), line
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["scheduler=null", "logger=false", "callbacks=null"],
        pytest.param(["~scheduler", "~logger"], marks=pytest.mark.long),
        ["trainer.limit_test_batches=0", "callbacks=default"],
        ["trainer.precision=bf16-true", "callbacks=default"],
        ["scheduler=none", "trainer.max_epochs=0"],
        pytest.param([STOP + "val/loss}", "trainer.max_steps=-1"], marks=pytest.mark.long),
        ["trainer._target_=lightning.Trainer", "trainer.accelerator=cpu", "trainer.max_epochs=1"],
    ],
    ids=" ".join,
)
def test_a_setting_works(train_here: Train, tmp_path: Path, words: list[str]) -> None:
    train_here(*TINY, "model=mlp", "callbacks=minimal", "logger=csv", *words)
    assert (tmp_path / "run" / "summary.json").exists()


PARTS = (
    "{_target_: torch.optim.lr_scheduler.LinearLR, total_iters: 4}, {_target_: torch.optim.lr_scheduler.ExponentialLR"
)
OWN = {
    "SequentialLR": f"schedulers: [{PARTS}, gamma: 0.5}}]\nmilestones: [5]\ninterval: step",
    "ChainedScheduler": f"schedulers: [{PARTS}, gamma: 0.5}}]\ninterval: step",
    "ReduceLROnPlateau": "monitor: train/loss",
    "StepLR": "step_size: 1",  # Lightning's default interval: an epoch
}


@pytest.mark.parametrize("name", ["SequentialLR", *(pytest.param(name, marks=pytest.mark.long) for name in [*OWN][1:])])
def test_a_schedule_of_ones_own(train_here: Train, tmp_path: Path, name: str) -> None:
    """In a file; resumed in mid-course, its rates are those of a run that never stopped."""
    (tmp_path / "conf" / "scheduler").mkdir(parents=True)
    text = f"_target_: torch.optim.lr_scheduler.{name}\n{OWN[name]}\n"
    (tmp_path / "conf" / "scheduler" / "own.yaml").write_text(text)
    words = [*TINY[:2], "model=mlp", "callbacks=minimal", "logger=csv", "data.batch_size=433", "scheduler=own"]
    words += ["trainer.log_every_n_steps=1", f"hydra.searchpath=[file://{tmp_path}/conf]"]
    train_here(*words, "trainer.max_epochs=4", folder="whole")
    train_here(*words, "trainer.max_epochs=2", folder="half")
    train_here(*words, "trainer.max_epochs=4", "ckpt_path=half", folder="more")
    whole, half, more = (
        [row["lr"] for row in rows(tmp_path / run / "metrics.csv") if "lr" in row] for run in ("whole", "half", "more")
    )
    assert len(whole) == 12 and half + more == whole


def test_looking_ahead_draws_no_random_numbers(compose: Compose) -> None:
    """The weights are those that come first after the seed, and the next number is the one after them."""
    data, model, _ = build(compose("data=digits", "model.dropout=0.5", "callbacks=minimal", "logger=csv", "seed=3"))
    after = torch.rand(3)
    torch.manual_seed(3)
    plain = CNN(dropout=0.5)
    assert all(torch.equal(weights, plain.state_dict()[name]) for name, weights in model.state_dict().items())
    assert torch.equal(after, torch.rand(3))
