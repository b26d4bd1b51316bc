"""Every optimiser and schedule of conf/ works: it trains, it is recorded, and it is resumed."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, Compose, ComposeRun, Train
from torch.nn import functional
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mnist_pl.data import MNISTDataModule
from mnist_pl.figures.plots import rows
from mnist_pl.models import MLP
from mnist_pl.models.schedules import HOW
from mnist_pl.reading import checkpoint
from mnist_pl.runs.build import build

WORDS = ["data=digits", "model=mlp", "model.hidden=[30]", "callbacks=minimal", "logger=csv"]
FEW, STEPS = "data.batch_size=128", 11  # of an epoch of 1,297 images
CHANCE = 2.30  # the loss of answers drawn at random

ABSTRACT, FOR_OTHERS = {"Optimizer"}, {"SparseAdam", "LBFGS"}  # for sparse gradients, whole data sets
NOT_ALONE = {"LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}  # need code, or others


def options(group: str) -> dict[str, dict[str, Any]]:
    return {
        path.stem: yaml.safe_load(path.read_text()) or {} for path in sorted((ROOT / "conf" / group).glob("*.yaml"))
    }


OPTIMIZERS, SCHEDULERS = options("optimizer"), options("scheduler")


def named(group: dict[str, dict[str, Any]]) -> set[str]:
    return {option["_target_"].rpartition(".")[2] for option in group.values() if option}


def classes(module: Any, kind: type) -> set[str]:
    found = {name: value for name, value in vars(module).items() if inspect.isclass(value) and issubclass(value, kind)}
    return {name for name in found if not name.startswith("_")}


def test_every_optimizer_of_pytorch_has_a_file() -> None:  # Muon's is ours, which takes filters as well
    assert named(OPTIMIZERS) == classes(torch.optim, Optimizer) - ABSTRACT - FOR_OTHERS


def test_every_simple_schedule_of_pytorch_has_a_file() -> None:
    assert named(SCHEDULERS) == classes(lr_scheduler, LRScheduler) - NOT_ALONE


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_takes_steps_that_help(name: str) -> None:
    data = MNISTDataModule("digits", batch_size=200)
    data.setup("fit")
    torch.manual_seed(0)
    model = MLP(hidden=[30], optimizer=OPTIMIZERS[name])
    optimizer = model.make_optimizer()
    images, labels = next(iter(data.train_dataloader()))
    losses = []
    for _ in range(20):
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(CHANCE, abs=0.2) and losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    "name", [name if name in ("muon", "sgd") else pytest.param(name, marks=pytest.mark.long) for name in OPTIMIZERS]
)
def test_an_optimizer_learns(train_here: Train, tmp_path: Path, name: str) -> None:
    words = [f"optimizer={name}", "scheduler=none", "trainer.max_epochs=3", "trainer.log_every_n_steps=20"]
    train_here(*WORDS, *words)
    record = rows(tmp_path / "run" / "metrics.csv")
    before, *_, after = [row["val/loss"] for row in record if "val/loss" in row]
    assert before == pytest.approx(CHANCE, abs=0.2) and after < 1.5
    rate = OPTIMIZERS[name]["lr"]
    assert [row["lr"] for row in record if "lr" in row] == [rate] * (3 * 41 // 20)
    last = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["hyper_parameters"]["optimizer"]["lr"] == rate and last["global_step"] == 3 * 41


NEVER_BETTER = {"threshold": 10}  # for the validation loss, so that the rate falls within a few epochs


def plain_rates(name: str, epochs: int, losses: list[float]) -> list[float]:
    """What a plain loop over PyTorch's own class gives for each step; `losses` are the validation's, epoch by epoch."""
    settings = {key: value for key, value in SCHEDULERS[name].items() if key not in HOW}
    settings |= NEVER_BETTER if name == "plateau" else {}
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=OPTIMIZERS["adam"]["lr"])
    words = {"all_steps": epochs * STEPS, "lr": OPTIMIZERS["adam"]["lr"]}
    settings = {key: words.get(value, value) if isinstance(value, str) else value for key, value in settings.items()}
    kind = getattr(lr_scheduler, settings.pop("_target_").rpartition(".")[2])
    schedule = kind(optimizer, **settings)
    rates = []
    for epoch in range(epochs):
        for _ in range(STEPS):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if SCHEDULERS[name]["interval"] == "step":
                schedule.step()
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(losses[epoch])
        elif SCHEDULERS[name]["interval"] == "epoch":
            schedule.step()
    return rates


def rates_and_losses(run: Path) -> tuple[list[float], list[float]]:
    """Of each step, and of each epoch's validation."""
    record = rows(run / "metrics.csv")
    losses = [row["val/loss"] for row in record if "val/loss" in row]
    return [row["lr"] for row in record if "lr" in row], losses[1:]


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("onecycle", "plateau", "step") else pytest.param(name, marks=pytest.mark.long)
        for name in SCHEDULERS
        if name != "none"
    ],
)
def test_a_schedule_is_pytorchs_own_and_is_continued(train_here: Train, tmp_path: Path, name: str) -> None:
    """Stretched to the new length of the run, where it depends on that."""
    words = [*WORDS, FEW, f"scheduler={name}", "trainer.log_every_n_steps=1"]
    words += [f"scheduler.{key}={value}" for key, value in NEVER_BETTER.items()] if name == "plateau" else []
    train_here(*words, "trainer.max_epochs=2")
    rates, losses = rates_and_losses(tmp_path / "run")
    assert rates == pytest.approx(plain_rates(name, 2, losses), rel=1e-9)
    last = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 2 * STEPS and len(last["lr_schedulers"]) == 1

    train_here(*words, "trainer.max_epochs=5", "ckpt_path=run", folder="more")
    more, more_losses = rates_and_losses(tmp_path / "more")
    assert more == pytest.approx(plain_rates(name, 5, losses + more_losses)[2 * STEPS :], rel=1e-9)
    assert len({*rates, *more}) > 1, "a schedule is not constant"
    assert checkpoint.read(tmp_path / "more" / "checkpoints" / "last.ckpt")["global_step"] == 5 * STEPS


def test_no_schedule_is_a_constant_rate(train_here: Train, tmp_path: Path) -> None:
    train_here(*WORDS, FEW, "scheduler=none", "trainer.max_epochs=2", "trainer.log_every_n_steps=1")
    rates, _ = rates_and_losses(tmp_path / "run")
    assert rates == [OPTIMIZERS["adam"]["lr"]] * (2 * STEPS)
    assert checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")["lr_schedulers"] == []


ADAMS, CYCLES = ("betas", "amsgrad", "fused"), ("max_lr", "total_steps", "pct_start", "interval")


@pytest.mark.parametrize(
    ("words", "group", "expected", "gone"),
    [
        (
            ["optimizer._target_=torch.optim.RMSprop", "optimizer.lr=0.01"],
            "optimizer",
            {"_target_": "torch.optim.RMSprop", "lr": 0.01},
            ADAMS,
        ),
        (
            ["optimizer._target_=torch.optim.NAdam"],
            "optimizer",
            {"_target_": "torch.optim.NAdam", "lr": 0.002},  # the class's own default
            ADAMS,
        ),
        (
            ["scheduler._target_=torch.optim.lr_scheduler.ExponentialLR", "+scheduler.gamma=0.9"],
            "scheduler",
            {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.9},
            CYCLES,
        ),
    ],
    ids=["optimizer", "its rate", "scheduler"],
)
def test_another_class_begins_with_its_own_defaults(
    compose: Compose, words: list[str], group: str, expected: dict[str, Any], gone: tuple[str, ...]
) -> None:
    cfg = compose(*WORDS, *words)
    assert set(gone) <= set(cfg[group]), "which is what the rule is for"
    _, model, _ = build(cfg)
    assert model.hparams[group] == cfg[group] == expected
    optimizer = model.make_optimizer()
    made: Any = optimizer if group == "optimizer" else model.make_scheduler(optimizer, 100)
    assert type(made).__name__ == expected["_target_"].rpartition(".")[2]
    assert optimizer.param_groups[0]["lr"] == model.lr


def test_another_class_trains(train_here: Train, tmp_path: Path) -> None:
    """ExponentialLR's rate after each epoch, which is when Lightning steps a schedule that does not say."""
    words = ["optimizer._target_=torch.optim.RMSprop", "optimizer.lr=0.01", "trainer.log_every_n_steps=41"]
    words += ["scheduler._target_=torch.optim.lr_scheduler.ExponentialLR", "+scheduler.gamma=0.9"]
    train_here(*WORDS, *words, "trainer.max_epochs=2")
    rates, losses = rates_and_losses(tmp_path / "run")
    assert rates == pytest.approx([0.01, 0.009]) and losses[-1] < 1


def test_a_rate_and_an_interpolation_that_the_class_has_stay(compose_run: ComposeRun) -> None:
    """`data.seed` refers to `seed`; what was said of the old option stays said."""
    _, model, _ = compose_run([*WORDS, "optimizer._target_=torch.optim.SGD", "optimizer.weight_decay=0.1"])
    assert model.hparams["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 0.001, "weight_decay": 0.1}
    data, _, _ = compose_run(["seed=7", "data._target_=mnist_pl.data.MNISTDataModule", "data.dataset=digits"])
    assert data.hparams["seed"] == 7 and data.hparams["val_size"] is None


@pytest.mark.parametrize(
    ("words", "lacking"),
    [
        (
            ["trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1.0"],
            lambda m, t: m.hparams["optimizer"]["fused"],
        ),
        (
            ["trainer.strategy={_target_: lightning.pytorch.strategies.DDPStrategy, find_unused_parameters: true}"],
            lambda m, t: type(t.strategy).__name__ != "DDPStrategy",
        ),
        (
            ["trainer.plugins=[{_target_: lightning.pytorch.plugins.io.AsyncCheckpointIO}]"],
            lambda m, t: type(t.strategy.checkpoint_io).__name__ != "AsyncCheckpointIO",
        ),
    ],
    ids=["clipped in bfloat16", "PyTorch's settings of DDP", "another way to write checkpoints"],
)
def test_what_lightning_takes_is_taken(compose_run: ComposeRun, words: list[str], lacking: Any) -> None:
    _, model, trainer = compose_run(["data=digits", "model=mlp", "callbacks=minimal", "logger=none", *words])
    assert not lacking(model, trainer)
