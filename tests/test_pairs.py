"""Two digits that touch: how they are made of a batch, learnt, and read together."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from lightning import Trainer

from mnist_pl.data import MNISTDataModule, to_float
from mnist_pl.models import CNN, DigitClassifier, Ensemble, ReadingCNN, RefusingCNN
from mnist_pl.models.pairs import beside, make_pairs
from mnist_pl.reading.ink import as_pair
from mnist_pl.reading.numbers import read

Digits = tuple[torch.Tensor, torch.Tensor]  # images (N, 1, 28, 28), labels (N,)
QUIET: dict[str, Any] = dict.fromkeys(["logger", "enable_progress_bar", "enable_checkpointing"], False)
SMALL: dict[str, Any] = {
    "channels": [12, 24],
    "batch_norm": True,
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.004},
}


def fit(model: DigitClassifier, epochs: int = 1, **settings: Any) -> DigitClassifier:
    torch.manual_seed(0)
    data = MNISTDataModule("digits", val_size=200, batch_size=64, nondigits=300, **settings)
    Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **QUIET).fit(model, data)
    return model.eval()


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = MNISTDataModule("digits", val_size=200)
    data.setup("fit")
    images, labels = data.splits["val"]
    return to_float(images), labels


def test_digits_beside_each_other_touch_or_nearly_so(digits: Digits) -> None:
    images, _ = digits
    torch.manual_seed(0)
    left, right = images[:100, 0], images[100:, 0]
    wide = beside(left, right)
    assert wide.shape == (100, 28, 48) and wide.min() >= 0 and wide.max() <= 1
    lost = (left.sum((1, 2)) + right.sum((1, 2)) - wide.sum((1, 2))) / wide.sum((1, 2))
    assert (lost > -1e-5).all() and lost.median() < 0.05 and lost.max() < 0.25  # where both have ink
    parts = [cv2.connectedComponents((image > 0.35).astype(np.uint8))[0] - 1 for image in wide.numpy()]
    assert 40 < parts.count(1) < 95
    columns, rows = wide.amax(1) > 0.35, wide.amax(2) > 0.35
    for inked in (columns, rows):
        before, after = inked.int().argmax(1), inked.flip(1).int().argmax(1)
        assert (before - after).abs().max() <= 1  # in the middle
    assert torch.allclose(beside(left, torch.zeros_like(left)).sum((1, 2)), left.sum((1, 2)))  # nothing to the right


def test_what_is_to_be_said_of_pairs_and_of_others(digits: Digits) -> None:
    images, labels = digits[0][:60], digits[1][:60].clone()
    labels[7] = -1
    wide, targets = make_pairs(images, labels, 20)
    assert (
        wide.shape == (20, 1, 28, 48)
        and targets.shape == (20, 2, 10)
        and torch.allclose(targets.sum(2), torch.ones(20, 2))
    )
    sure = targets.amax(2) == 1
    single, triple = set(range(0, 20, 6)), set(range(1, 20, 6))
    for i in range(20):
        if i in single | triple:
            assert not sure[i].any()
        else:
            assert sure[i].tolist() == [i != 7, True]
            assert targets[i, 1].argmax() == labels[20 + i] and (i == 7 or targets[i, 0].argmax() == labels[i])
    assert make_pairs(images[:5], labels[:5], 20)[0].shape == (5, 1, 28, 48)  # an epoch's last batch
    assert make_pairs(images[:1], labels[:1], 20)[0].shape == (1, 1, 28, 48)


def test_the_network_of_single_digits_learns_what_it_would_without() -> None:
    """To the last bit, batch norm's means among it."""
    torch.manual_seed(1)
    reading = ReadingCNN(**SMALL)
    torch.manual_seed(1)
    refusing = RefusingCNN(**SMALL)
    learnt = fit(refusing).state_dict()
    with_pairs = fit(reading).state_dict()
    assert {name for name in with_pairs if not name.startswith("pair_head")} == learnt.keys()
    assert all(torch.equal(with_pairs[name], value) for name, value in learnt.items())


@pytest.mark.long
def test_pairs_are_learnt_and_what_is_none_is_refused(digits: Digits) -> None:
    """In few steps, so hardly; experiment=robust takes five thousand."""
    torch.manual_seed(0)
    model = ReadingCNN(pairs=64, **SMALL)
    fit(model, epochs=10)
    images, labels = digits
    both = torch.stack([labels[:100], labels[100:]], 1)
    pairs, singles = beside(images[:100, 0], images[100:, 0]), beside(images[:100, 0], torch.zeros(100, 28, 28))
    with torch.inference_mode():
        said, none = (model.read_pairs(wide[:, None]).exp() for wide in (pairs, singles))
    assert said.shape == (100, 2, 10) and torch.allclose(said.sum(2), torch.ones(100, 2), atol=1e-4)
    assert (said.argmax(2) == both).double().mean() > 0.25
    assert (none.amax(2).amin(1) < 0.5).double().mean() > 0.9
    assert torch.allclose(Ensemble.of([model, model]).read_pairs(pairs[:, None]), said.log(), atol=1e-3)
    assert not Ensemble.of([model, CNN(**SMALL)]).reads_pairs


class Knowing(DigitClassifier):
    """Sees a 47 where there is ink of some width, and no digit in anything narrower."""

    reads_pairs = True

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images), 10)

    def read_pairs(self, images: torch.Tensor) -> torch.Tensor:
        said = torch.full((len(images), 2, 10), 0.1)
        wide = (images[:, 0].amax(1) > 0.3).sum(1) > 20
        said[wide] = 0.01
        said[wide, 0, 4] = said[wide, 1, 7] = 0.91
        return said.log()


def test_two_digits_that_no_cut_parts_are_read_together() -> None:
    gray = np.full((200, 300), 230, np.uint8)
    for x in (100, 176):
        cv2.ellipse(gray, (x, 100), (34, 50), 0, 0, 360, 30, 12)
    knowing = Knowing()
    answer = read(knowing, gray)
    assert answer.text == "47" and answer.note in ("", "unsure")
    left, right = (digit.box for digit in answer.digits)
    assert left[0] < 64 and right[2] > 208 and 120 < left[2] < 156 and 120 < right[0] < 156
    lone = read(knowing, cv2.resize(gray, (220, 200)))  # as narrow as an M
    assert lone.text == "47" and lone.confidence < 0.5
    knowing.reads_pairs = False
    assert read(knowing, gray).text == ""


@pytest.mark.parametrize("ink", [np.ones((40, 12)), np.ones((12, 200)), np.eye(90), np.ones((1, 1))])
def test_ink_of_any_shape_makes_an_image_of_a_pair(ink: np.ndarray) -> None:
    image = as_pair(ink.astype(np.float32))
    assert image.shape == (28, 48) and image.dtype == np.uint8 and image.max() == 255
    columns = np.flatnonzero(image.max(0))
    assert len(columns) <= 44 and abs(columns[0] + columns[-1] - 47) <= 1
