"""The networks compute what their sources do, and their metrics are plain counts."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from mnist_pl.data import Batches, MNISTDataModule, to_float
from mnist_pl.models import BLOCK, CLASSES, CNN, MLP, Gather

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


def trainer_of(folder: Path, callbacks: list[Callback], epochs: int = 1) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=7,
        default_root_dir=folder,
    )


class EveryBatch(Callback):
    """Its presence makes each batch a step of Lightning's own."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1


def test_the_metrics_are_plain_counts(tmp_path: Path) -> None:
    """Over a short last batch too, and for training over all batches although they are scored many at a time."""
    data = MNISTDataModule("digits", batch_size=100, val_size=150)
    model = MLP(hidden=[20], optimizer={**SGD, "lr": 1e-30})  # a network that stays as it is
    trainer = trainer_of(tmp_path, [])
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


@pytest.mark.parametrize("kinds", [[], [EveryBatch]], ids=["many batches at once", "one batch at a time"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_training_is_the_plain_loop_bit_for_bit(tmp_path: Path, kinds: list[type[EveryBatch]], scheduled: bool) -> None:
    callbacks = [kind() for kind in kinds]
    data = MNISTDataModule("digits", batch_size=32, val_size=200, seed=3)
    cycle = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1, "total_steps": "all_steps"}
    torch.manual_seed(0)
    model = CNN(
        channels=[4, 8],
        hidden=[20],
        channel_dropout=[0.0, 0.5],
        dropout=0.5,
        optimizer={**SGD, "momentum": 0.9},
        scheduler={**cycle, "interval": "step"} if scheduled else None,
    )
    plain = copy.deepcopy(model)
    torch.manual_seed(1)
    trainer = trainer_of(tmp_path, list(callbacks), epochs=2)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 2 * 41 and model.images_seen == 2 * 1297
    assert [callback.batches for callback in callbacks] == [2 * 41 for _ in callbacks]

    torch.manual_seed(1)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=82) if scheduled else None
    for epoch in range(2):
        batches = Batches(data.splits["train"], 32, seed=3)
        batches.set_epoch(epoch)
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(plain(to_float(images)), labels).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
    for name, weights in plain.state_dict().items():
        assert torch.equal(weights, model.state_dict()[name]), name


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


def test_every_answer_is_kept_in_its_place() -> None:
    """In blocks of BLOCK answers, whatever the batches."""
    gather = Gather()
    for _ in range(2):  # what was kept is forgotten with a reset
        gather.reset()
        sizes = [250] * 39 + [400, 7, BLOCK + 3, 1]
        images = torch.randint(0, 256, (sum(sizes), 28, 28), dtype=torch.uint8)
        labels = torch.randint(0, CLASSES, (len(images),))
        logits = torch.randn(len(images), CLASSES)
        for batch in zip(to_float(images).split(sizes), labels.split(sizes), logits.split(sizes), strict=True):
            gather.update(*batch)
        answers = gather.compute()
        assert torch.equal(answers.images, images) and torch.equal(answers.labels, labels)
        assert torch.equal(answers.probabilities, logits.softmax(dim=1))
