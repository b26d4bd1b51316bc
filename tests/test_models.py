"""The networks compute what their sources do, and their metrics are plain counts."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import nn

from mnist_pl.data import Batches, MNISTDataModule, to_float
from mnist_pl.models import CNN, MLP

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
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, datamodule=data)
    scores = dict(trainer.callback_metrics)
    scores.update(trainer.test(model, datamodule=data, verbose=False)[0])
    scores.update(trainer.callback_metrics)
    model.eval()
    for stage, (images, labels) in data.splits.items():
        with torch.inference_mode():
            logits = model(to_float(images))
        assert float(scores[f"{stage}/acc"]) == pytest.approx(int((logits.argmax(1) == labels).sum()) / len(labels))
        assert float(scores[f"{stage}/loss"]) == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_a_network_learns() -> None:
    torch.manual_seed(0)
    data = MNISTDataModule("digits", val_size=200)
    data.setup("fit")
    model = CNN(optimizer=SGD)
    optimizer = model.make_optimizer()
    losses = []
    for epoch in range(2):
        batches = Batches(data.splits["train"], 32, seed=1)
        batches.set_epoch(epoch)
        for images, labels in batches:
            loss = F.cross_entropy(model(to_float(images)), labels)
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


def test_training_needs_an_optimizer() -> None:
    with pytest.raises(ValueError, match="optimizer"):
        MLP().make_optimizer()
