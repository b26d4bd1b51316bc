"""The benchmark measures, and says what it measured. No speed is asserted here."""

import json

import pytest
import torch
from conftest import ComposeRun, Run

from mnist_pl import benchmark


@pytest.mark.long
def test_a_row_is_measured_on_random_images_where_there_is_no_mnist(run: Run) -> None:
    ended = run("mnist_pl/benchmark.py", "--only", "reading", "--json")
    assert ended.code == 0, ended.err
    facts = json.loads(ended.out)
    assert facts["images"] == "random" and facts["threads"] > 0 and facts["torch"]
    (row,) = facts["rows"]
    assert row["what"] == "reading the four files" and 0 < row["low"] <= row["result"] <= row["high"]


def test_pairs_are_compared_one_by_one() -> None:
    compared = benchmark.compare([1.0, 4.0, 2.0], [2.0, 4.0, 8.0], "x")
    assert (compared["result"], compared["low"], compared["high"]) == (0.5, 0.25, 1.0)
    assert benchmark.compare([9.0, 7.0], [4.0, 4.0], "+s")["result"] == 4.0
    row = benchmark.table([{"what": "a", "yardstick": "b", "target": "c", **compared}])[-1]
    assert row == "| a | 2.00 s | b | 4.00 s | 0.50 × | 0.25 × to 1.00 × | c |"


@pytest.mark.parametrize("preset", ["seed_mlp", "seed_cnn3_adam"])
def test_a_yardstick_follows_the_preset(preset: str, compose_run: ComposeRun) -> None:
    data, model, _ = compose_run([f"experiment={preset}", "logger=none"])
    make_network, make_optimizer, batch_size, mean, std = benchmark.RECIPES[preset]
    network = make_network()
    shapes, theirs = ([parameter.shape for parameter in net.parameters()] for net in (model, network))
    assert shapes == theirs and data.hparams["batch_size"] == batch_size and (model.mean, model.std) == (mean, std)
    ours, optimizer = model.make_optimizer(), make_optimizer(network.parameters())
    assert type(optimizer) is type(ours) and optimizer.param_groups[0]["lr"] == ours.param_groups[0]["lr"]
    assert optimizer.param_groups[0].get("momentum") == ours.param_groups[0].get("momentum")
    logits = network(torch.zeros(2, 1, 28, 28))
    assert logits.shape == (2, 10) and benchmark.RECIPES["peer"][0]()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_epochs_of_both_alternate(compose_run: ComposeRun) -> None:
    timer = benchmark.Epochs(lambda: 0.5)
    short = ["trainer.limit_train_batches=2", "trainer.limit_val_batches=0", "callbacks=minimal", "logger=none"]
    data, model, trainer = compose_run(["data=digits", "model=mlp", "trainer.max_epochs=3", *short])
    trainer.callbacks.append(timer)  # type: ignore[attr-defined]
    trainer.fit(model, datamodule=data)
    assert timer.theirs == [0.5] * 3 and len(timer.ours) == 2 and min(timer.ours) > 0
    assert trainer.strategy.together  # type: ignore[attr-defined] # steps are grouped as without the timer
