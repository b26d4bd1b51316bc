"""Networks, data, schedules, callbacks and loggers of one's own: they work, or are refused at the start."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, Train, one_line

from mnist_pl.reading import checkpoint

OWN = '''
import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.nn.utils import parametrizations, prune

from mnist_pl.data import MNISTDataModule
from mnist_pl.models import CNN, MLP, DigitClassifier


class Tied(DigitClassifier):
    """Two layers share their weights; buffers of several kinds, one of a single number."""

    def __init__(self, width=600, **shared):
        super().__init__(**shared)
        one, two = nn.Linear(width, width), nn.Linear(width, width)
        two.weight = one.weight
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, width), one, nn.ReLU(), two, nn.Linear(width, 10))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("seen", torch.tensor(3))
        self.register_buffer("mask", torch.ones(2, dtype=torch.bool))
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def forward(self, images):
        return super().forward(images) * self.scale


class Recurrent(DigitClassifier):
    """Layers that answer with tuples, dictionaries and None."""

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(28, 8, batch_first=True)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.nothing = Nothing()
            self.named = Named()

        def forward(self, images):
            rows, _ = self.lstm(images.squeeze(1))
            self.nothing(rows)
            return self.named(self.attention(rows, rows, rows)[0])["last"]

    def __init__(self, **shared):
        super().__init__(**shared)
        self.net = nn.Sequential(self.Rows(), nn.Linear(8, 10))


class Nothing(nn.Module):
    def forward(self, rows):
        return None


class Named(nn.Module):
    def forward(self, rows):
        return {"last": rows[:, -1]}


class Dressed(CNN):
    """A network of this project with another head: normalised and pruned weights; a path that depends on numbers."""

    def __init__(self, **more):
        super().__init__(channels=[4, 8], hidden=[], **more)
        parametrizations.weight_norm(self.net[0])
        prune.random_unstructured(self.net[-1], "weight", amount=0.5)

    def forward(self, images):
        return super().forward(images if images.sum().item() >= 0 else -images)


class Deep(Dressed):
    def get_extra_state(self):
        return {"version": 2}

    def set_extra_state(self, state):
        assert state["version"] == 2


class MLP(MLP):
    """By the name of another."""


class Half(MNISTDataModule):
    def __init__(self, share=0.5, **more):
        super().__init__(**more)
        self.share = share

    def setup(self, stage):
        if self.splits:  # it is called for each stage
            return
        super().setup(stage)
        images, labels = self.splits["train"]
        kept = round(self.share * len(labels))
        self.splits["train"] = images[:kept], labels[:kept]


class Plain(LightningModule):
    def __init__(self, optimizer=None, scheduler=None):
        super().__init__()
        self.net = nn.Linear(784, 10)


class PlainData(LightningDataModule):
    pass


class NoOptimizer(DigitClassifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


class Unkept(DigitClassifier):
    def __init__(self, activation=nn.ReLU, **shared):
        super().__init__(**shared)
        self.net = nn.Sequential(nn.Flatten(), activation(), nn.Linear(784, 10))


class Fading(torch.optim.lr_scheduler.LRScheduler):
    def get_lr(self):
        return [rate / (1 + self.last_epoch) for rate in self.base_lrs]


class Count(Callback):
    def __init__(self):
        self.batches = 0

    def on_train_batch_end(self, *_):
        self.batches += 1

    def state_dict(self):
        return {"batches": self.batches}


class Keep(Logger):
    name, version = "keep", ""

    def __init__(self, path):
        self.path = path

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step=None):
        with open(self.path, "a") as file:
            print(step, *metrics, file=file)
'''
QUICK = ("data=digits", "callbacks=minimal", "logger=csv", "trainer.max_epochs=1", "trainer.limit_train_batches=5")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module `my_parts`, in the current folder of `train_here` and `run`."""
    (tmp_path / "my_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_parts  # type: ignore[import-not-found]

    yield my_parts
    del sys.modules["my_parts"]


@pytest.mark.parametrize(
    "name",
    ["Recurrent", *(pytest.param(name, marks=pytest.mark.long) for name in ("Tied", "Dressed", "Deep", "MLP"))],
)
def test_a_network_of_ones_own(train_here: Train, own: Any, tmp_path: Path, name: str) -> None:
    """Trained, resumed, tested from its file, and read for predictions by who names it, and by nobody else."""
    train_here(*QUICK, f"model._target_=my_parts.{name}")
    train_here("resume=run", "trainer.max_epochs=2", f"model._target_=my_parts.{name}")
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    train_here(*QUICK, f"model._target_=my_parts.{name}", "fit=false", "ckpt_path=run", folder="tested")
    with pytest.raises(ValueError, match=rf"holds the network my_parts.{name}, .* model._target_=my_parts.{name}$"):
        checkpoint.load_model(best)
    model, _ = checkpoint.load_model(best, getattr(own, name))
    assert type(model) is getattr(own, name) and model(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    with pytest.raises(SystemExit, match=rf"holds the network my_parts.{name} and model is CNN; choose"):
        train_here(*QUICK, "ckpt_path=run", folder="other")


@pytest.mark.long
def test_the_printed_command_predicts(run: Run, own: Any, tmp_path: Path) -> None:
    """The class is found in the current folder, as is another command's in which it is not named."""
    ended = run("train.py", *QUICK, "model._target_=my_parts.Recurrent", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    words = ended.out.rpartition("predict   python ")[2].split()
    assert words == ["predict.py", "ckpt_path=run", "model._target_=my_parts.Recurrent"]
    ended = run(*words)
    assert ended.code == 0 and "of 300 test images right" in ended.out, ended.err
    assert one_line(run("predict.py", "ckpt_path=run")).endswith(f" told {words[-1]}")
    assert "model._target_=my_parts.Other: " in one_line(
        run("predict.py", "ckpt_path=run", "model._target_=my_parts.Other")
    )


def test_naming_a_class_is_the_only_way_to_have_it_run(train_here: Train, own: Any, tmp_path: Path) -> None:
    train_here(*QUICK, "model._target_=my_parts.Tied", "+model.width=20")
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    del sys.modules["my_parts"]
    (tmp_path / "my_parts.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    whole = checkpoint.read(path)
    for name in ("my_parts.Tied", "os.system", "mnist_pl.models.nowhere.Net", "a b", "\x1b[2J", 1):
        torch.save({**whole, "model_class": name}, path)
        with pytest.raises(ValueError, match=r"ckpt_path=.*: (holds|not)") as caught:
            checkpoint.load_model(path)
        assert str(caught.value).isprintable()
    assert not (tmp_path / "ran").exists()
    sys.modules["my_parts"] = own


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["model._target_=my_parts.Plain"], "model._target_=my_parts.Plain: must be a subclass of mnist_pl.models."),
        (
            ["data._target_=my_parts.PlainData"],
            "data._target_=my_parts.PlainData: must be a subclass of mnist_pl.data.",
        ),
        (["model._target_=my_parts.NoOptimizer"], "model._target_=my_parts.NoOptimizer: gets no optimizer; have its"),
        (["model._target_=my_parts.Unkept"], "model.activation cannot be kept in a checkpoint .*ReLU.*; take plain"),
        (["model._target_=my_parts.Nowhere"], "model._target_=my_parts.Nowhere: .*No module named"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(
    train_here: Train, own: Any, tmp_path: Path, words: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit, match=f"^error: {reason}") as caught:
        train_here(*QUICK, *words)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_data_schedules_callbacks_and_loggers_of_ones_own(train_here: Train, own: Any, tmp_path: Path) -> None:
    words = ["data._target_=my_parts.Half", "+data.share=0.1", "data.dataset=digits", "model=mlp", "model.hidden=[8]"]
    words += ["scheduler._target_=my_parts.Fading", "+callbacks.count={_target_: my_parts.Count}"]
    words += [f"+logger.keep={{_target_: my_parts.Keep, path: '{tmp_path / 'kept'}'}}", "data.batch_size=16"]
    train_here(*words, "callbacks=minimal", "trainer.max_epochs=1", "trainer.log_every_n_steps=2")
    with pytest.raises(SystemExit, match="^error: resume=run: its .* is my_parts.*if you know it, say so: ") as caught:
        train_here("resume=run", "trainer.max_epochs=2")
    train_here(*str(caught.value).partition("say so: ")[2].split(), "trainer.max_epochs=2")
    last = checkpoint.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["images_seen"] == 2 * round(0.1 * (1497 - 125)) and last["callbacks"]["Count"] == {"batches": 9}
    assert "train/loss_step" in (tmp_path / "kept").read_text()
