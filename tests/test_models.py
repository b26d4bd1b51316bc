"""The networks compute what their sources do, and their metrics are plain counts."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import nn

from mnist_pl.data import Batches, MNISTDataModule, to_float
from mnist_pl.models import CLASSES, CNN, MLP
from mnist_pl.models.metrics import Scores
from mnist_pl.models.muon import Muon, orthogonal

SGD = {"_target_": "torch.optim.SGD", "lr": 0.1}


def test_the_mlp_is_its_sources() -> None:
    model = MLP(hidden=[50], dropout=0.5)
    first, second = (layer for layer in model.net if isinstance(layer, nn.Linear))
    images = torch.rand(7, 1, 28, 28)
    expected = second(F.relu(first(((images - 0.1307) / 0.3081).flatten(1))))
    assert torch.allclose(model.eval()(images), expected, atol=1e-6)


@pytest.mark.parametrize("pools", [[2, 2], [2, 1]])
def test_pooling_before_relu_is_the_sources_function(pools: list[int]) -> None:
    model = CNN(channels=[10, 20], kernel_sizes=[5, 3], pools=pools, hidden=[50], mean=0.5, std=0.5).eval()
    convolutions = [layer for layer in model.net if isinstance(layer, nn.Conv2d)]
    first, second = (layer for layer in model.net if isinstance(layer, nn.Linear))
    images = torch.rand(7, 1, 28, 28)
    x = (images - 0.5) / 0.5
    for convolution, pool in zip(convolutions, pools, strict=True):
        x = F.max_pool2d(F.relu(convolution(x)), pool)
    assert torch.allclose(model(images), second(F.relu(first(x.flatten(1)))), atol=1e-5)


def test_channel_dropout_drops_whole_channels_before_pooling() -> None:
    kinds = [type(layer).__name__ for layer in CNN(channel_dropout=[0.0, 0.5], dropout=0.5).net]
    assert kinds == ["Conv2d", "MaxPool2d", "ReLU", "Conv2d", "Dropout2d", "MaxPool2d", "ReLU", "Flatten"] + [
        "Linear",
        "ReLU",
        "Dropout",
        "Linear",
    ]


def test_the_metrics_are_plain_counts(tmp_path: Path) -> None:
    """Over a short last batch too, and for training over all batches although they are scored many at a time."""
    data = MNISTDataModule("digits", batch_size=100, val_size=150)
    model = MLP(hidden=[20], optimizer={**SGD, "lr": 1e-30})  # a network that stays as it is
    off = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, **off)
    trainer.fit(model, datamodule=data)
    scores = dict(trainer.callback_metrics)
    trainer.test(model, datamodule=data, verbose=False)
    scores.update(trainer.callback_metrics)
    model.eval()
    for stage, (images, labels) in data.splits.items():
        with torch.inference_mode():
            logits = model(to_float(images))
        assert float(scores[f"{stage}/acc"]) == pytest.approx(int((logits.argmax(1) == labels).sum()) / len(labels))
        assert float(scores[f"{stage}/loss"]) == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_scores_are_the_same_however_many_batches_are_scored_together() -> None:
    logits, labels = torch.randn(1000, CLASSES), torch.randint(0, CLASSES, (1000,))
    scores = Scores("train/")
    since = []
    for number, batch in enumerate(zip(logits.split(7), labels.split(7), strict=True)):
        scores.update(*batch)
        if number % 20 == 19:
            since.append(scores.score_pending())
    whole = scores.compute()
    right = (logits.argmax(1) == labels).double()
    assert float(whole["train/acc"]) == pytest.approx(float(right.mean()))
    assert float(whole["train/loss"]) == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    assert float(since[1]["train/acc"]) == pytest.approx(float(right[140:280].mean())), "since the last time, alone"
    scores.reset()
    assert scores.score_pending() == {} and not scores.pending


def test_few_logits_are_kept_before_they_are_scored() -> None:
    scores = Scores("train/")
    for _ in range(50):
        scores.update(torch.zeros(4096, CLASSES), torch.zeros(4096, dtype=torch.long))
        assert len(scores.pending) <= 16


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_network_overfits_a_few_images(batch_norm: bool) -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(20, 1, 28, 28), torch.arange(20) % 10
    adam = {"_target_": "torch.optim.Adam", "lr": 0.01}
    model = CNN(channels=[4, 8], hidden=[20], batch_norm=batch_norm, optimizer=adam)
    optimizer = model.make_optimizer()
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.training_step((images, labels), 0)
        loss.backward()
        optimizer.step()
    assert loss < 0.1 and model.train_scores.compute()["train/acc"] > 0.3


def test_a_network_learns() -> None:
    torch.manual_seed(0)
    data = MNISTDataModule("digits", val_size=200)
    data.setup("fit")
    model = CNN(optimizer=SGD)
    optimizer = model.make_optimizer()
    losses = []
    for epoch in range(2):
        batches = Batches(data.splits["train"], 32, seed=1)
        batches.sampler.set_epoch(epoch)
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": [8]}, "model.kernel_sizes"),
        ({"channels": [8, 0]}, "model.channels"),
        ({"hidden": ["many"]}, "model.hidden"),
        ({"std": 0}, "model.std"),
        ({"pools": [28, 2]}, "28x28"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CNN(**settings)


def test_an_optimizer_needs_a_learning_rate() -> None:
    with pytest.raises(ValueError, match="optimizer.lr must be a positive number, got None"):
        MLP(optimizer={"_target_": "torch.optim.Adam"}).make_optimizer()
    assert MLP().make_optimizer().param_groups[0]["lr"] == MLP().lr == 0.001


def test_words_in_a_schedule_stand_for_numbers() -> None:
    cycle = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": "lr", "total_steps": "all_steps"}
    model = MLP(optimizer=SGD, scheduler={**cycle, "interval": "step"})
    model.lr = 0.5
    scheduler = model.make_scheduler(model.make_optimizer(), 70)
    assert scheduler.total_steps == 70 and scheduler.optimizer.param_groups[0]["max_lr"] == 0.5


@pytest.mark.parametrize("shape", [(8, 25), (64, 144), (64, 16)])
def test_muon_steps_equally_far_in_every_direction(shape: tuple[int, int]) -> None:
    """Whose gradient differs by a factor of a hundred from one direction to another."""
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    gradient = left * torch.logspace(0, -2, min(shape)) @ right
    values = torch.linalg.svdvals(orthogonal(gradient, iterations=8))
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_has_groups_of_its_own() -> None:
    with pytest.raises(ValueError, match="Muon takes parameters, not groups"):
        Muon([{"params": CNN().parameters()}])  # type: ignore[list-item]


def test_muon_continues_from_its_state_to_the_same_bits() -> None:
    def make() -> tuple[CNN, Muon]:
        torch.manual_seed(1)
        model = CNN(channels=[4, 8], hidden=[20], batch_norm=True)
        return model, Muon(model.parameters(), lr=0.1)

    def steps(model: CNN, optimizer: Muon, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()

    images, labels = torch.rand(20, 1, 28, 28), torch.arange(20) % CLASSES
    whole, optimizer = make()
    steps(whole, optimizer, 6)
    first, before = make()
    steps(first, before, 3)
    second, after = make()
    second.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    steps(second, after, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    "setting", [{"momentum": 1.0}, {"betas": (0.9, 1.0)}, {"iterations": 0}, {"adam_share": -1.0}, {"eps": -1e-8}]
)
def test_a_setting_of_muon_out_of_range_is_named(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"optimizer.{next(iter(setting))}"):
        Muon(CNN().parameters(), **setting)
