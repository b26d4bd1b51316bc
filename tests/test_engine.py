"""Each plug-in of the engine can be taken away, and nothing but speed, records and safety is lost."""

import ast
import random
import re
import shutil
import signal
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from omegaconf import open_dict
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pl import engine
from mnist_pl.data import Batches, MNISTDataModule
from mnist_pl.engine.checkpoints import Best, DurableIO, Last
from mnist_pl.engine.record import Record
from mnist_pl.engine.resume import ExactResume
from mnist_pl.engine.strategy import FastSingleDevice
from mnist_pl.figures.plots import rows
from mnist_pl.models import CNN, MLP
from mnist_pl.runs import config  # noqa: F401  # registers the schema

PLUG_INS = [path for path in sorted((ROOT / "mnist_pl/engine").glob("*.py")) if path.name != "__init__.py"]
WITHOUT = re.compile(r"Without it: delete `(.*?)` in (\S+)\.$", re.MULTILINE)
LINES = [(path.stem, *found) for path in PLUG_INS for found in WITHOUT.findall(path.read_text())]
WORDS = ["data=digits", "model.channels=[4,8]", "model.hidden=[20]", "model.dropout=0.5", "trainer.max_epochs=2"]
WORDS += ["data.augment={shift: 2}", "trainer.log_every_n_steps=5", "data.batch_size=48", "callbacks=minimal"]
WORDS += ["logger=csv", "trainer.accelerator=cpu"]


@pytest.fixture
def fresh_hydra() -> Iterator[None]:
    yield
    HydraConfig.instance().cfg = None


def train(folder: Path, conf: Path, build: Any) -> tuple[Tensor, Trainer]:
    with initialize_config_dir(str(conf), version_base="1.3"):
        cfg = compose("train", WORDS, return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(cfg)
    data, model, trainer = build(cfg)
    trainer.fit(model, data)
    return weights(model), trainer


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_every_plug_in_says_what_it_buys_and_how_to_live_without_it() -> None:
    for path in PLUG_INS:
        about = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert "\nBuys: " in about and WITHOUT.search(about), path.name
    assert {name for name, *_ in LINES} == {path.stem for path in PLUG_INS}


@pytest.mark.usefixtures("fresh_hydra")
@pytest.mark.parametrize("each", [False, pytest.param(True, marks=pytest.mark.long)], ids=["all", "each"])
def test_without_any_plug_in_the_weights_are_the_same_to_the_last_bit(tmp_path: Path, each: bool) -> None:
    """The line that its file names is deleted, and a run is trained: all plug-ins together, or each on its own."""
    source = (ROOT / "mnist_pl/runs/build.py").read_text()

    def train_without(number: str, *lines: tuple[str, str]) -> tuple[Tensor, Trainer]:
        conf, text = tmp_path / f"conf{number}", source
        shutil.copytree(ROOT / "conf", conf)
        for line, file in lines:
            place = conf.parent / file.replace("conf/", f"conf{number}/")
            whole = text if file == "runs/build.py" else place.read_text()
            kept = [one for one in whole.splitlines() if not one.strip().startswith(line.strip())]
            assert len(kept) == len(whole.splitlines()) - 1, f"{line} is not one line of {file}"
            if file == "runs/build.py":
                text = "\n".join(kept)
            else:
                place.write_text("\n".join(kept))
        module = types.ModuleType("build")
        exec(compile(text, "build.py", "exec"), module.__dict__)
        return train(tmp_path / number, conf, module.build)

    whole, trainer = train_without("whole")
    assert isinstance(trainer.strategy, FastSingleDevice)
    for number, (_, *line) in enumerate(LINES if each else []):
        alone, _ = train_without(str(number), tuple(line))
        assert torch.equal(whole, alone), line
    bare, trainer = train_without("bare", *[tuple(line) for _, *line in LINES])
    assert torch.equal(whole, bare)
    own = [callback for callback in trainer.callbacks if "mnist_pl" in type(callback).__module__]
    assert [type(callback).__name__ for callback in own] == ["Progress"]
    assert not isinstance(trainer.strategy, FastSingleDevice)


def plain(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    usual: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 2, "logger": False, "default_root_dir": folder}
    usual |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{**usual, "callbacks": list(callbacks), **settings})


class EveryBatch(Callback):
    """Its presence makes each batch a round of Lightning's loop."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((batch_idx, trainer.global_step))


SGD = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}
CYCLE = {
    "_target_": "torch.optim.lr_scheduler.OneCycleLR",
    "max_lr": "lr",
    "total_steps": "all_steps",
    "interval": "step",
}


@pytest.mark.parametrize("kind", ["plain", "every batch", "together"])
@pytest.mark.parametrize("scheduled", [pytest.param(False, marks=pytest.mark.long), True])
def test_training_is_the_plain_loop_bit_for_bit(tmp_path: Path, kind: str, scheduled: bool) -> None:
    data = MNISTDataModule("digits", batch_size=32, val_size=200, seed=3)

    def fresh() -> CNN:
        torch.manual_seed(0)
        settings = {"channels": [4, 8], "hidden": [20], "channel_dropout": [0.0, 0.5], "dropout": 0.5}
        return CNN(**settings, optimizer=SGD, scheduler=CYCLE if scheduled else None)

    model, ours = fresh(), fresh()
    seen = EveryBatch()
    callbacks = [seen] if kind == "every batch" else []
    trainer = plain(
        tmp_path, *callbacks, strategy="auto" if kind == "plain" else FastSingleDevice(), log_every_n_steps=7
    )
    torch.manual_seed(1)
    trainer.fit(ours, datamodule=data)
    assert trainer.global_step == 2 * 41 and trainer.fit_loop.total_batch_idx == 2 * 41 - 1
    if kind == "every batch":
        assert seen.seen == [(step % 41, step + 1) for step in range(82)]

    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=82) if scheduled else None
    for epoch in range(2):
        batches = Batches(data.splits["train"], 32, seed=3)
        batches.sampler.set_epoch(epoch)
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
    for name, expected in model.state_dict().items():
        assert torch.equal(expected, ours.state_dict()[name]), name


class Talkative(MLP):
    """A newcomer's change: logs in the training step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train/mine", loss, on_step=True, on_epoch=True)
        return loss


@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval")
def test_what_a_training_step_logs_is_the_same_with_several_steps_in_a_round(tmp_path: Path) -> None:
    found = []
    for number, strategy in enumerate(("auto", FastSingleDevice())):
        seed_everything(1)
        logger = CSVLogger(tmp_path / str(number))
        data = MNISTDataModule("digits", batch_size=16)
        model = Talkative(hidden=[20])
        plain(tmp_path, logger=logger, strategy=strategy, log_every_n_steps=10).fit(model, data)
        found.append(rows(Path(logger.log_dir, "metrics.csv")))
    assert len([row for row in found[0] if "train/mine_step" in row]) == 17
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_rows_are_recorded_at_the_steps_that_are_asked_for(tmp_path: Path) -> None:
    """With the images seen so far; the untrained network first; means over the steps since the last row."""
    logger = CSVLogger(tmp_path)
    data = MNISTDataModule("digits", batch_size=16, val_size=200)
    record = Record()
    trainer = plain(tmp_path, record, logger=logger, strategy=FastSingleDevice(), log_every_n_steps=10)
    trainer.fit(MLP(hidden=[20]), data)
    table = rows(Path(logger.log_dir, "metrics.csv"))
    steps = [row for row in table if "train/loss_step" in row]
    assert [row["step"] for row in steps] == list(range(10, 2 * 82 + 1, 10))
    assert [row["images"] for row in steps] == [
        16 * (row["step"] % 82) + (1297 if row["step"] > 82 else 0) for row in steps
    ]
    assert all(row["grad_norm"] > 0 and row["lr"] == 0.001 for row in steps)
    scored = [(row["step"], row["images"]) for row in table if "val/acc" in row]
    assert scored == [(0, 0), (82, 1297), (164, 2 * 1297)]
    assert record.images_seen == 2 * 1297 and record.train_seconds > 0


def test_lightning_still_has_what_the_engine_uses(tmp_path: Path) -> None:
    missing = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            for path in engine.PRIVATE:
                place: Any = trainer
                for name in path.split("."):
                    try:
                        place = place[int(name)] if name.isdigit() else getattr(place, name)
                    except (AttributeError, LookupError):
                        missing.append(path)
                        break

    model = MLP(hidden=[5], scheduler={"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": "all_steps"})
    keeper = ModelCheckpoint(tmp_path)
    trainer = plain(tmp_path, Look(), keeper, enable_checkpointing=True, max_epochs=1, limit_train_batches=2)
    trainer.fit(model, MNISTDataModule("digits"))
    assert not missing, f"this Lightning lacks {missing[0]}, which mnist_pl/engine uses: {engine.PRIVATE[missing[0]]}"


ELSEWHERE = {  # os documents the first; Hydra has no other way to the order of a sweep's jobs, and to a job's result
    "signals.py": {"_exit"},
    "resume.py": {"_step_count"},  # of the engine: a key of a schedule's state
    "plan.py": {"_internal"},
    "slurm.py": {"_return_value"},
}


def test_private_names_of_others_are_used_in_the_engine_alone() -> None:
    """And those are in its list."""
    listed = {name for path in engine.PRIVATE for name in path.split(".") if name.startswith("_")}
    for path in [*ROOT.glob("mnist_pl/**/*.py"), ROOT / "train.py", ROOT / "predict.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom | ast.keyword):
                names = [node.arg] if isinstance(node, ast.keyword) else [alias.name for alias in node.names]
                names += (node.module or "").split(".") if isinstance(node, ast.ImportFrom) else []
                hidden = {name for name in names if name and re.match("_[a-z]", name) and not name.endswith("_")}
                assert hidden <= ELSEWHERE.get(path.name, set()), f"{where}: {hidden}"
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                of_its_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                # Of a configuration; of os and of named tuples, which document theirs.
                public = node.attr in ("_target_", "_exit", "_fields", "_replace")
                if not of_its_own and not public:
                    assert path.parent.name == "engine" and node.attr in listed, f"{where}: {node.attr}"


class Peek(Callback):
    """Looks at the loaders' first batches, at each batch."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen += batch[0].sum((1, 2, 3)).tolist()
        place = trainer.train_dataloader.state_dict()  # type: ignore[union-attr]
        next(iter(trainer.train_dataloader))  # type: ignore[call-overload]
        assert trainer.train_dataloader.state_dict() == place != {"done": 0}, "where a checkpoint would resume"
        next(iter(trainer.val_dataloaders))  # type: ignore[call-overload]


@pytest.mark.parametrize("fast", [False, True])
def test_who_looks_at_a_loader_takes_nothing_away(tmp_path: Path, fast: bool) -> None:
    peek, data = Peek(), MNISTDataModule("digits")
    plain(tmp_path, peek, max_epochs=1, strategy=FastSingleDevice() if fast else "auto").fit(MLP(hidden=[5]), data)
    images, _ = data.splits["train"]
    expected = (images.float() / 255).sum((1, 2))
    assert torch.allclose(torch.tensor(sorted(peek.seen)), expected.sort().values)
    loader = data.val_dataloader()
    assert [one[1].tolist() for one, _ in zip(loader, loader, strict=True)] == [labels.tolist() for _, labels in loader]


class EachBatch(Callback):
    """With an attribute that many such classes have."""

    every_n_steps = 5

    def __init__(self) -> None:
        self.calls = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.calls += 1


class EachBatchToo(Record):
    calls = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.calls += 1


class AndKeeps(ModelCheckpoint):
    calls = 0

    def on_train_batch_end(self, *args: Any, **more: Any) -> None:
        self.calls += 1
        super().on_train_batch_end(*args, **more)


@pytest.mark.parametrize("kind", [EachBatch, EachBatchToo, AndKeeps])
def test_hooks_of_ones_own_are_called_at_each_batch(tmp_path: Path, kind: Any) -> None:
    callback = kind()
    trainer = plain(tmp_path, callback, strategy=FastSingleDevice(), max_epochs=1, enable_checkpointing=True)
    trainer.fit(MLP(hidden=[5]), MNISTDataModule("digits"))
    assert callback.calls == trainer.global_step == 22


def test_lightnings_checkpoints_are_named_by_their_own_step(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=7, save_top_k=-1)
    trainer = plain(tmp_path, Record(), keeper, strategy=FastSingleDevice(), enable_checkpointing=True)
    trainer.fit(MLP(hidden=[5]), MNISTDataModule("digits"))
    names = {f"epoch={(step - 1) // 22}-step={step}.ckpt" for step in range(7, 45, 7)}
    assert {path.name for path in (tmp_path / "kept").iterdir()} == names


class OwnRates(MLP):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(
            [{"params": self.net[1].parameters(), "lr": 0.1}, {"params": self.net[3].parameters()}], lr=0.02
        )


def resume_plainly(folder: Path, make: Any, *callbacks: Any, again: Any = None) -> tuple[Trainer, Trainer]:
    """An epoch, and one more from its checkpoint by another Trainer; `again` are its settings of `make`."""
    first = plain(folder, *(kind() for kind in callbacks), max_epochs=1)
    first.fit(*make())
    first.save_checkpoint(folder / "one.ckpt")
    second = plain(folder, *(kind() for kind in callbacks), max_epochs=2)
    second.fit(*(again or make)(), ckpt_path=folder / "one.ckpt", weights_only=True)
    return first, second


def test_rates_of_ones_own_stay_when_a_run_is_resumed(tmp_path: Path) -> None:
    _, second = resume_plainly(tmp_path, lambda: (OwnRates(hidden=[5]), MNISTDataModule("digits")), ExactResume)
    assert [group["lr"] for group in second.optimizers[0].param_groups] == [0.1, 0.02]


@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`")
def test_a_schedule_stays_when_a_run_of_a_plain_loader_is_resumed_with_the_data_module(tmp_path: Path) -> None:
    slower = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 10, "gamma": 0.5, "interval": "step"}
    data = MNISTDataModule("digits")

    def make() -> Any:
        return MLP(hidden=[5], optimizer=SGD, scheduler=slower), data.train_dataloader()

    def again() -> Any:
        return MLP(hidden=[5], optimizer=SGD, scheduler=slower), MNISTDataModule("digits")

    _, second = resume_plainly(tmp_path, make, ExactResume, again=again)
    assert second.optimizers[0].param_groups[0]["lr"] == 0.1 * 0.5**4


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_best_keeps_its_best_in_anybodys_trainer(tmp_path: Path) -> None:
    def fit(epochs: int, **more: Any) -> float:
        best = Best(str(tmp_path / "kept"))
        trainer = plain(tmp_path, best, ExactResume(), max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(MLP(hidden=[20], optimizer={**SGD, "lr": more.pop("lr")}), MNISTDataModule("digits"), **more)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return float(best.best_model_score or 0)

    before = fit(2, lr=0.1)
    worse = {"lr": 1e4, "ckpt_path": tmp_path / "last.ckpt", "weights_only": True}
    assert fit(3, **worse) == before > 0.5
    kept = torch.load(tmp_path / "kept" / "best.ckpt", weights_only=True)
    assert kept["metrics"]["val/acc"] == before


def test_signals_are_handed_back_after_an_error(tmp_path: Path) -> None:
    class Fails(MLP):
        def on_train_epoch_end(self) -> None:
            raise RuntimeError("in the middle")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="in the middle"):
        plain(tmp_path, Last(str(tmp_path)), enable_checkpointing=True).fit(Fails(), MNISTDataModule("digits"))
    assert signal.getsignal(signal.SIGINT) is before


def test_other_file_systems_are_lightnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    DurableIO().save_checkpoint({"one": 1}, "memory://kept/one.ckpt")
    assert DurableIO().load_checkpoint("memory://kept/one.ckpt") == {"one": 1} and not list(tmp_path.iterdir())


class Noise:
    """An augmentation that draws from Python's and numpy's random numbers."""

    def __call__(self, images: Tensor) -> Tensor:
        return images * random.uniform(0.5, 1) + 0.1 * torch.from_numpy(np.random.rand(*images.shape)).float()


def test_random_numbers_of_others_are_resumed(tmp_path: Path) -> None:
    def make() -> Any:
        return MLP(hidden=[5]), MNISTDataModule("digits", augment={"_target_": f"{__name__}.Noise"})

    seed_everything(1)
    unbroken, data = make()
    plain(tmp_path, max_epochs=2).fit(unbroken, data)
    seed_everything(1)
    _, second = resume_plainly(tmp_path, make, ExactResume)
    assert torch.equal(weights(unbroken), weights(second.lightning_module))
