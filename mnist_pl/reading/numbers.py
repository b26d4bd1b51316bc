"""A picture -> the numbers on it: which digits, where, and how sure."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mnist_pl.reading.pictures import prepare

if TYPE_CHECKING:
    from mnist_pl.models import DigitClassifier

Gray = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, right, bottom: pixels of the picture; right and bottom are not in it


@dataclass(frozen=True)
class Digit:
    line: int  # from 0, top to bottom
    place: int  # from 0, left to right
    box: Box
    image: Gray  # (28, 28), light on 0: what the network saw
    probabilities: NDArray[np.float32]  # (10,)

    @property
    def digit(self) -> int:
        return int(self.probabilities.argmax())

    @property
    def confidence(self) -> float:
        return float(self.probabilities.max())


@dataclass(frozen=True)
class Answer:
    """`text` is "7", "1357", or lines as "12345/67890"; empty where there is no digit. `confidence` is in [0, 1]."""

    text: str
    confidence: float
    note: str  # "", "blank", "not a digit", "unsure"
    digits: tuple[Digit, ...]


def read(model: "DigitClassifier", gray: Gray) -> Answer:  # (H, W)
    import torch

    from mnist_pl.data import to_float

    try:
        image = prepare(gray)
    except ValueError:
        return Answer("", 1.0, "blank", ())
    with torch.inference_mode():
        probabilities = model(to_float(torch.from_numpy(image[None]))).softmax(dim=1)[0].numpy()
    digit = Digit(0, 0, (0, 0, gray.shape[1], gray.shape[0]), image, probabilities)
    if digit.confidence < 0.5:
        return Answer("", 1 - digit.confidence, "not a digit", (digit,))
    return Answer(str(digit.digit), digit.confidence, "unsure" if digit.confidence < 0.8 else "", (digit,))
