"""What anyone who knows Lightning tries, with plain Trainers, loaders and callbacks, works."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch.callbacks as lightning_callbacks
import pytest
import torch
from conftest import Run
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mnist_pl.data import MNISTDataModule
from mnist_pl.engine.strategy import FastSingleDevice
from mnist_pl.models import CNN, MLP

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",  # of loaders that are not ours
    "ignore:.*exists and is not empty",
    "ignore:.*is smaller than the logging interval",
    "ignore:Be aware that when using `ckpt_path`",
)


@pytest.fixture
def digits() -> MNISTDataModule:
    return MNISTDataModule(dataset="digits")


def plain(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    """A Trainer that knows nothing of this project."""
    usual: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "default_root_dir": folder}
    usual |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{**usual, "callbacks": list(callbacks), **settings})


def weights(model: LightningModule) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_fit_validate_and_test_with_no_setting_at_all(tmp_path: Path, digits: MNISTDataModule) -> None:
    model = MLP()
    trainer = plain(tmp_path, max_epochs=2)
    trainer.fit(model, digits)
    assert type(trainer.optimizers[0]) is torch.optim.Adam and trainer.optimizers[0].param_groups[0]["lr"] == 0.001
    (validated,) = trainer.validate(model, digits, verbose=False)
    (tested,) = trainer.test(model, digits, verbose=False)
    assert validated.keys() == {"val/loss", "val/acc"} and tested.keys() == {"test/loss", "test/acc"}
    assert tested["test/acc"] > 0.8 and validated["val/acc"] > 0.8
    images, labels = digits.splits["test"]
    with torch.inference_mode():
        right = (model.eval()(images.unsqueeze(1) / 255).argmax(1) == labels).double().mean()
    assert tested["test/acc"] == pytest.approx(float(right))


def test_any_loader_of_images_and_labels(tmp_path: Path) -> None:
    images, labels = torch.rand(70, 1, 28, 28), torch.randint(0, 10, (70,))
    loader = DataLoader(TensorDataset(images, labels), batch_size=16, shuffle=True)
    for strategy in ("auto", FastSingleDevice()):
        model = CNN(channels=[4, 8], hidden=[10])
        trainer = plain(tmp_path, strategy=strategy)
        trainer.fit(model, loader, DataLoader(TensorDataset(images, labels), batch_size=32))
        assert trainer.global_step == 5 and {"train/acc", "val/loss"} <= set(trainer.callback_metrics)
        (answers,) = {part.shape[1] for part in trainer.predict(model, DataLoader(images, batch_size=32))}
        assert answers == 10


def test_a_batch_is_what_the_network_takes(digits: MNISTDataModule) -> None:
    digits.setup("fit")
    images, labels = next(iter(digits.train_dataloader()))
    assert images.shape == (64, 1, 28, 28) and images.dtype == torch.float32
    assert images.min() == 0 and images.max() == 1 and labels.shape == (64,)
    assert CNN()(images).shape == (64, 10)


def test_load_from_checkpoint(trained: Path, tmp_path: Path, digits: MNISTDataModule) -> None:
    model = CNN.load_from_checkpoint(trained / "checkpoints" / "best.ckpt")
    assert model.hparams["channels"] == [24, 48] and model.lr == 0.001
    (tested,) = plain(tmp_path).test(model, digits, verbose=False)
    assert tested["test/acc"] > 0.9


@pytest.mark.parametrize("epochs", [1, pytest.param(2, marks=pytest.mark.long)])
def test_lightnings_own_checkpoint_is_continued_by_a_plain_trainer(
    tmp_path: Path, digits: MNISTDataModule, epochs: int
) -> None:
    """And gives the weights of a run that was never stopped."""
    seed_everything(1)
    unbroken = MLP(hidden=[20])
    plain(tmp_path, max_epochs=3).fit(unbroken, digits)
    seed_everything(1)
    keeper = ModelCheckpoint(tmp_path, filename="mine")
    plain(tmp_path, keeper, max_epochs=epochs, enable_checkpointing=True).fit(MLP(hidden=[20]), digits)
    resumed = MLP(hidden=[20])
    plain(tmp_path, max_epochs=3).fit(resumed, digits, ckpt_path=tmp_path / "mine.ckpt", weights_only=True)
    assert torch.equal(weights(unbroken), weights(resumed))


def test_a_runs_last_checkpoint_is_continued_by_a_plain_trainer(trained: Path, tmp_path: Path) -> None:
    data = MNISTDataModule(dataset="digits", batch_size=32, val_size=200)
    model = CNN.load_from_checkpoint(trained / "checkpoints" / "last.ckpt", scheduler=None)
    trainer = plain(tmp_path, max_epochs=6)
    trainer.fit(model, data, ckpt_path=trained / "checkpoints" / "last.ckpt", weights_only=True)
    assert trainer.global_step == 6 * 41 and trainer.callback_metrics["val/acc"] > 0.95


def test_a_plain_checkpoint_is_tested_and_continued_by_the_programs(run: Run, tmp_path: Path) -> None:
    data, model = MNISTDataModule(dataset="digits", batch_size=32), MLP(hidden=[20])
    keeper = ModelCheckpoint(tmp_path, filename="mine")
    plain(tmp_path, keeper, enable_checkpointing=True).fit(model, data)
    words = ["train.py", "data=digits", "model=mlp", "model.hidden=[20]", "callbacks=minimal", "logger=csv"]
    ended = run(*words, "scheduler=none", "ckpt_path=mine.ckpt", "trainer.max_epochs=2", "hydra.run.dir=run")
    assert ended.code == 0 and " 2/2 " in ended.out and " 1/2 " in ended.out, ended.err
    assert run("predict.py", "ckpt_path=mine.ckpt").code == 0


def test_the_learning_rate_finder(tmp_path: Path, digits: MNISTDataModule) -> None:
    model = MLP(hidden=[20])
    finder = Tuner(plain(tmp_path)).lr_find(model, datamodule=digits, num_training=30)
    assert finder is not None and model.lr == finder.suggestion() != 0.001
    assert model.make_optimizer().param_groups[0]["lr"] == model.lr


def test_the_batch_size_finder(tmp_path: Path, digits: MNISTDataModule) -> None:
    size = Tuner(plain(tmp_path)).scale_batch_size(MLP(hidden=[20]), datamodule=digits, max_trials=2, init_val=16)
    assert size == digits.train_dataloader().batch_size > 16


CALLBACKS: dict[str, dict[str, Any]] = {
    "EarlyStopping": {"monitor": "val/loss"},
    "StochasticWeightAveraging": {"swa_lrs": 0.01},
    "EMAWeightAveraging": {"decay": 0.9},
    "LearningRateMonitor": {},
    "LearningRateFinder": {"num_training_steps": 20},
    "DeviceStatsMonitor": {"cpu_stats": True},
    "Timer": {"duration": {"hours": 1}},
    "TQDMProgressBar": {},
    "RichProgressBar": {},
    "RichModelSummary": {},
    "GradientAccumulationScheduler": {"scheduling": {0: 2, 1: 4}},
    "ModelPruning": {"pruning_fn": "l1_unstructured", "amount": 0.3},
    "ModelCheckpoint": {"monitor": "val/acc", "mode": "max", "filename": "mine", "save_last": True},
    "LambdaCallback": {},
}
# Those that change how a network is trained are tried by `make test`, the others by `make trust`.
CHANGING = ("EarlyStopping", "StochasticWeightAveraging", "EMAWeightAveraging", "GradientAccumulationScheduler")
CHANGING += ("LearningRateFinder", "ModelPruning")


@pytest.mark.parametrize(
    "name", [name if name in CHANGING else pytest.param(name, marks=pytest.mark.long) for name in CALLBACKS]
)
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*swa", "ignore:.*lr_scheduler", "ignore:.*LRScheduler"
)
def test_lightnings_callbacks(tmp_path: Path, digits: MNISTDataModule, name: str) -> None:
    """With the engine's strategy they see what they see without it, so that the weights are the same."""
    kind = getattr(lightning_callbacks, name)
    found = []
    for strategy in ("auto", FastSingleDevice()):
        seed_everything(1)
        settings = {"logger": CSVLogger(tmp_path), "max_epochs": 2, "enable_checkpointing": "Checkpoint" in name}
        settings |= {
            "enable_progress_bar": "Bar" in name,
            "log_every_n_steps": 4,
            "enable_model_summary": "Rich" in name,
        }
        model = MLP(hidden=[20], dropout=0.1)
        trainer = plain(tmp_path, kind(**CALLBACKS[name]), strategy=strategy, **settings)
        trainer.fit(model, digits)
        assert trainer.callback_metrics["val/loss"] < (2.4 if name == "LearningRateFinder" else 2.1)
        found.append(weights(model))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "profiler", ["simple", *(pytest.param(name, marks=pytest.mark.long) for name in ("advanced", "pytorch"))]
)
@pytest.mark.filterwarnings("ignore")  # of PyTorch's profiler
def test_profilers(tmp_path: Path, digits: MNISTDataModule, profiler: str) -> None:
    trainer = plain(tmp_path, profiler=profiler, limit_train_batches=3, strategy=FastSingleDevice())
    trainer.fit(MLP(hidden=[20]), digits)
    if profiler == "simple":
        assert trainer.profiler.recorded_durations["run_training_batch"].__len__() == 3


@pytest.mark.parametrize(
    "precision",
    ["bf16-mixed", *(pytest.param(name, marks=pytest.mark.long) for name in ("64-true", "bf16-true", "32-true"))],
)
@pytest.mark.filterwarnings("ignore:.*bf16")
def test_precisions(tmp_path: Path, digits: MNISTDataModule, precision: Any) -> None:
    for strategy in ("auto", FastSingleDevice()):
        trainer = plain(tmp_path, precision=precision, strategy=strategy)
        model = MLP(hidden=[20])
        trainer.fit(model, digits)
        assert trainer.test(model, digits, verbose=False)[0]["test/acc"] > 0.3


@pytest.mark.filterwarnings("ignore:.*barebones")
def test_barebones(tmp_path: Path, digits: MNISTDataModule) -> None:
    settings: dict[str, Any] = {"accelerator": "cpu", "barebones": True, "max_epochs": 1, "default_root_dir": tmp_path}
    found = []
    for strategy in ("auto", FastSingleDevice()):
        seed_everything(1)
        model = MLP(hidden=[20])
        Trainer(**settings, strategy=strategy).fit(model, digits)
        found.append(weights(model))
    assert torch.equal(*found)


PROCESSES = """
import torch
from lightning import Callback, Trainer
from mnist_pl.data import MNISTDataModule
from mnist_pl.models import MLP
class Tell(Callback):
    def on_train_end(self, trainer, pl_module):
        print("batches", trainer.num_training_batches, flush=True)
if __name__ == "__main__":
    data, model = MNISTDataModule(dataset="digits", val_size=201), MLP(hidden=[20])
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", max_epochs=1, logger=False,
        enable_progress_bar=False, enable_checkpointing=False, callbacks=[Tell()])
    before = model.net[1].weight.clone()
    trainer.fit(model, data.train_dataloader(), data.val_dataloader())  # older than the processes that share them
    assert not torch.equal(before, model.net[1].weight)
    (tested,) = trainer.test(model, data, verbose=False)
    right = tested["test/acc"] * 300
    assert abs(right - round(right)) < 1e-3, right
    print("tested", tested["test/acc"])
"""


@pytest.mark.long
def test_processes_that_are_spawned(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(PROCESSES)
    ended = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert ended.returncode == 0 and "tested" in ended.stdout, ended.stderr
    assert ended.stdout.count("batches 11") == 2, "each process takes half of the 1,296 images"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch.compile's own looks
def test_torch_compile(tmp_path: Path, digits: MNISTDataModule) -> None:
    for strategy in ("auto", FastSingleDevice()):
        model = MLP(hidden=[20])
        trainer = plain(tmp_path, max_epochs=2, strategy=strategy)
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            trainer.fit(torch.compile(model, backend="aot_eager"), digits)
        assert trainer.callback_metrics["val/acc"] > 0.5


@pytest.mark.filterwarnings("ignore")  # of jsonargparse
def test_lightnings_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.chdir(tmp_path)
    words = ["fit", "--model.hidden=[20]", "--data.dataset=digits", "--trainer.max_epochs=1", "--trainer.logger=false"]
    words += ["--model.mean=0.5", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    cli = LightningCLI(MLP, MNISTDataModule, args=words)
    assert cli.trainer.callback_metrics["val/acc"] > 0.3 and cli.model.mean == 0.5
    (path,) = tmp_path.glob("**/*.ckpt")
    assert MLP.load_from_checkpoint(path).hparams["mean"] == 0.5


LIGHTNING = lightning_callbacks.__name__


@pytest.mark.parametrize(
    "words",
    [
        [f"+callbacks.x={{_target_: {LIGHTNING}.ModelPruning, pruning_fn: l1_unstructured, amount: 0.5}}"],
        *(
            pytest.param(words, marks=pytest.mark.long)
            for words in (
                [f"+callbacks.x._target_={LIGHTNING}.LearningRateFinder", "+callbacks.x.num_training_steps=20"],
                [f"+callbacks.x._target_={LIGHTNING}.GradientAccumulationScheduler", "+callbacks.x.scheduling={0: 2}"],
                ["trainer.precision=64-true"],
                ["trainer.barebones=true"],
                ["trainer.strategy=ddp_spawn", "trainer.devices=2"],
            )
        ),
    ],
    ids=lambda words: words[0][:70],
)
def test_train_py_with_what_lightning_has(run: Run, words: list[str], tmp_path: Path) -> None:
    """With all of the engine and the pictures around it."""
    usual = ("data=digits", "model=mlp", "trainer.max_epochs=2", "trainer.accelerator=cpu", "hydra.run.dir=run")
    ended = run("train.py", *usual, *words)
    assert ended.code == 0 and "Traceback" not in ended.err, ended.err
    assert (tmp_path / "run" / "summary.json").exists()


def test_several_loaders_are_scored_together(tmp_path: Path, digits: MNISTDataModule) -> None:
    model = MLP(hidden=[20])
    trainer = plain(tmp_path)
    digits.setup("fit")
    both = [digits.val_dataloader(), digits.test_dataloader()]
    trainer.fit(model, digits.train_dataloader(), both)
    joint = trainer.validate(model, both, verbose=False)[0]["val/acc"]
    each = [trainer.test(model, loader, verbose=False)[0]["test/acc"] for loader in both]
    counts = [len(loader.labels) for loader in both]
    assert joint * sum(counts) == pytest.approx(sum(acc * count for acc, count in zip(each, counts, strict=True)))
    assert [len(part) for part in trainer.predict(model, both)] == [len(loader) for loader in both]


class OwnStep(MLP):
    """A newcomer's, which logs by itself and knows no `train_scores`."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("my_loss", loss)
        return loss


def test_what_a_step_of_ones_own_does_not_score_is_not_logged(tmp_path: Path, digits: MNISTDataModule) -> None:
    trainer = plain(tmp_path)
    trainer.fit(OwnStep(hidden=[20]), digits)
    assert set(trainer.callback_metrics) == {"my_loss", "val/loss", "val/acc"}


def test_a_data_module_without_a_trainer() -> None:
    digits = MNISTDataModule(dataset="digits", nondigits=10)
    assert sum(len(labels) for _, labels in digits.train_dataloader()) == 1497 - 125 + 10
    digits = MNISTDataModule(dataset="digits")
    digits.setup()
    assert len(digits.splits["test"][1]) == 300


@pytest.mark.parametrize("wrong", [{"lr": 0.1}, "adam", torch.optim.Adam])
def test_what_is_no_optimizer_is_one_line(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"^model.optimizer must be a mapping with a _target_, the class, got .+$"):
        MLP(optimizer=wrong)


STEPS = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 1, "interval": "epoch"}


def test_a_schedule_without_a_length_needs_no_trainer() -> None:
    made = MLP(scheduler=STEPS).configure_optimizers()
    assert type(made["lr_scheduler"]["scheduler"]).__name__ == "StepLR"


def test_lightnings_own_checkpoint_within_an_epoch(tmp_path: Path, digits: MNISTDataModule) -> None:
    """Continued by a plain Trainer, with a schedule: the rest of the epoch."""
    seed_everything(1)
    unbroken = MLP(hidden=[20], scheduler=STEPS)
    keeper = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=30, save_top_k=-1)
    plain(tmp_path, keeper, max_epochs=2, enable_checkpointing=True).fit(unbroken, digits)
    resumed = MLP(hidden=[20], scheduler=STEPS)
    path = tmp_path / "step=30.ckpt"
    plain(tmp_path, max_epochs=2).fit(resumed, MNISTDataModule("digits"), ckpt_path=path, weights_only=True)
    assert torch.equal(weights(unbroken), weights(resumed))


class Twice(torch.optim.SGD):
    """Asks for the loss at a second place, as sharpness-aware minimisation does."""

    def step(self, closure: Any = None) -> Any:
        assert closure is not None, "needs a closure"
        closure()
        super().step()
        return closure()


@pytest.mark.parametrize("fast", [False, True])
def test_an_optimizer_that_asks_for_the_loss_again(tmp_path: Path, digits: MNISTDataModule, fast: bool) -> None:
    model = MLP(hidden=[20], optimizer={"_target_": f"{__name__}.Twice", "lr": 0.1})
    trainer = plain(tmp_path, strategy=FastSingleDevice() if fast else "auto")
    trainer.fit(model, digits)
    assert trainer.callback_metrics["val/acc"] > 0.5


def test_a_validation_by_the_clock(tmp_path: Path, digits: MNISTDataModule) -> None:
    trainer = plain(tmp_path, strategy=FastSingleDevice(), val_check_interval="00:00:01:00")
    trainer.fit(MLP(hidden=[20]), digits)
    assert trainer.global_step == 22
