"""What is drawn for training: digits in other forms, and images that show none, for a network to say no from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Train
from lightning import Trainer

from mnist_pl.data import Augment, MNISTDataModule, to_float
from mnist_pl.data.nondigits import nondigits
from mnist_pl.data.strokes import drawn_digits
from mnist_pl.models import CNN, DigitClassifier, RefusingCNN
from mnist_pl.reading.checkpoint import load_model


def module(**settings: Any) -> MNISTDataModule:
    data = MNISTDataModule("digits", val_size=200, batch_size=32, **settings)
    data.setup("fit")
    return data


def test_what_is_drawn_is_in_mnists_form_and_the_same_every_time() -> None:
    data = module(drawn_digits=40, nondigits=200)
    (digits, labels), (others, none) = data.made
    assert labels.tolist() == 4 * list(range(10)) and none.tolist() == 200 * [-1]
    for images in (digits, others):
        assert images.dtype == torch.uint8 and images.shape[1:] == (28, 28) and (images.amax((1, 2)) > 150).all()
        for axis in (1, 2):
            profile = images.sum(axis).double()
            inked = profile > 0
            ends = inked.int().argmax(1), inked.flip(1).int().argmax(1)
            assert (28 - ends[0] - ends[1] <= 20).all()
            centres = profile @ torch.arange(28.0).double() / profile.sum(1)
            assert ((centres - 14).abs() < 0.51).double().mean() > 0.99  # but not where the box would leave the image
    again = module(drawn_digits=40, nondigits=200, seed=7).made
    assert all(torch.equal(*pair) for pair in zip((digits, others), (again[0][0], again[1][0]), strict=True))
    assert not torch.equal(others, nondigits(200, data.splits["train"], seed=1))
    assert not torch.equal(digits, drawn_digits(40, seed=1)[0])
    assert len({image.numpy().tobytes() for image in others}) > 190


def test_what_is_drawn_changes_no_split_and_is_seen_in_training_alone() -> None:
    plain, data = module(), module(drawn_digits=20, nondigits=30)
    assert all(
        torch.equal(*pair) for name in plain.splits for pair in zip(plain.splits[name], data.splits[name], strict=True)
    )
    assert plain.made == []
    labels = torch.cat([labels for _, labels in data.train_dataloader()])
    assert torch.bincount(labels + 1).sum() == 1297 + 50 and (labels == -1).sum() == 30
    assert all(
        (labels >= 0).all() for loader in (data.val_dataloader(), data.test_dataloader()) for _, labels in loader
    )
    drawn = {image.numpy().tobytes() for images, _ in data.made for image in images}
    assert not drawn & {image.numpy().tobytes() for images, _ in data.splits.values() for image in images}
    testing = MNISTDataModule("digits", nondigits=30)
    testing.setup("test")
    assert testing.made == []


def test_pieces_are_of_the_digits_that_are_given_alone() -> None:
    images = torch.zeros(10, 28, 28, dtype=torch.uint8)
    images[:, 4:24, 10:18] = torch.arange(100, 110).view(-1, 1, 1).to(torch.uint8)
    first, second = (nondigits(120, (images, labels)) for labels in (torch.arange(10), torch.arange(10).flip(0)))
    changed = [not torch.equal(*pair) for pair in zip(first, second, strict=True)]
    assert 0 < sum(changed) < 60 and not any(changed[:80])  # pieces and groups come last


@pytest.mark.parametrize("kind", [pytest.param(CNN, marks=pytest.mark.long), RefusingCNN])
def test_a_network_learns_to_say_no(kind: type[DigitClassifier]) -> None:
    torch.manual_seed(0)
    data = module(nondigits=600 if kind.refuses else 0)
    model = kind(channels=[8, 16], optimizer={"_target_": "torch.optim.Adam", "lr": 0.004})  # type: ignore[call-arg]
    quiet: dict[str, Any] = dict.fromkeys(["logger", "enable_progress_bar", "enable_checkpointing"], False)
    trainer = Trainer(max_epochs=6, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(model, data)
    assert trainer.callback_metrics["val/acc"] > 0.95 and trainer.callback_metrics["train/acc"] > 0.95
    with torch.inference_mode():
        others = nondigits(300, data.splits["val"], seed=99)
        no = [
            (model(to_float(images)).softmax(1).amax(1) < 0.5).double().mean()
            for images in (others, data.splits["val"][0])
        ]
    assert no[0] > 0.8 if kind.refuses else no[0] < 0.5
    assert no[1] < 0.05


def test_a_batch_without_a_digit_is_one_to_learn_from() -> None:
    model = RefusingCNN(nondigit_weight=0.7, channels=[4, 8])
    images = torch.rand(5, 1, 28, 28)
    loss = model.training_step((images, torch.full((5,), -1)), 0)
    assert loss >= 0.7 * np.log(10) - 1e-6
    mixed = torch.tensor([3, -1, 5, -1, -1])
    digits = torch.nn.functional.cross_entropy(model(images[[0, 2]]), mixed[[0, 2]])
    others = -model(images[[1, 3, 4]]).log_softmax(1).mean()
    assert torch.isclose(model.training_step((images, mixed), 0), (2 * digits + 0.7 * 3 * others) / 5)
    assert torch.isclose(model.train_scores.compute()["train/loss"], digits)


LINE = torch.zeros(400, 1, 28, 28)
LINE[:, :, 4:24, 12:15] = 1


def changed(**settings: float) -> torch.Tensor:
    torch.manual_seed(0)
    images = Augment(**settings)(LINE.clone())
    assert images.shape == LINE.shape and images.min() >= 0 and images.max() <= 1 + 1e-6
    return images[:, 0]


def test_augmentation_that_is_off_draws_no_random_number() -> None:
    """So that the bits of runs that do without it stay what they were."""
    Augment(shift=1, rotate=5)(LINE)
    torch.manual_seed(0), Augment(shift=1, rotate=5)(LINE)
    after = torch.rand(3)
    torch.manual_seed(0), torch.rand(4, len(LINE))
    assert torch.equal(after, torch.rand(3))


def test_augmentation_as_pens_paper_and_cameras_do() -> None:
    columns = torch.arange(28.0)
    slanted = changed(shear=0.3)
    top, bottom = ((slanted[:, row] * columns).sum(1) / slanted[:, row].sum(1) for row in (6, 21))
    assert ((top - bottom).abs() <= 15 * 0.3 + 0.1).all() and (top - bottom).std() > 2
    assert (slanted.sum((1, 2)) - 60).abs().max() < 1
    bent = changed(elastic=2)
    places = (bent[:, 6:22] * columns).sum(2) / bent[:, 6:22].sum(2)
    assert 0.3 < places.std(1).mean() < 2 and (places - 13).abs().max() < 2.5
    ink = changed(thickness=0.5).sum((1, 2))
    assert ink.min() < 45 and ink.max() > 75 and abs(ink.mean() - 60) < 5
    broken = changed(gaps=2)
    whole = (broken - LINE[:, 0]).abs().amax((1, 2)) < 1e-4
    assert 0.4 < whole.double().mean() < 0.7 and (broken[~whole, 5:23, 13].amin(1) < 0.1).double().mean() > 0.2
    assert (changed(blur=1)[:, 10, 11] > 0).all() and (changed(blur=1)[:, 10, 13] > 0.9).all()
    faint = changed(contrast=0.4).amax((1, 2))
    assert 0.6 <= faint.min() < 0.65 and faint.max() > 0.95
    torch.manual_seed(0)
    gray = Augment(gamma=1)(LINE / 2).amax((1, 2, 3))
    assert 0.25 <= gray.min() < 0.3 and 0.65 < gray.max() <= 0.5**0.5 + 1e-6
    paper = changed(background=0.3)[:, :, :4]
    assert 0.4 < (paper == 0).all(2).all(1).double().mean() < 0.6 and 0.2 < paper.max() <= 0.3


def test_a_run_says_what_is_added(train_here: Train, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    words = ["data=digits", "data.nondigits=30", "data.drawn_digits=20", "model=refusing_cnn", "model.channels=[2,4]"]
    with caplog.at_level("INFO"):
        train_here(*words, "callbacks=minimal", "logger=csv", "trainer.max_epochs=1")
    assert "1,297 and 50 synthetic training, 200 validation" in " ".join(caplog.text.split())
    model, _ = load_model(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert type(model) is RefusingCNN
