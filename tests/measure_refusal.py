"""What a network's confidence is worth: on validation images, and on images that show no digit.

    python tests/measure_refusal.py RUN [RUN ...]

The non-digits are made with another seed than those of the training, of pieces of validation images; `unseen` are of
kinds and fonts that no training image is of. An answer counts as refused where its probability is under a half. The
calibration error is the expected one over 15 bins of confidence (Guo et al. 2017); with non-digits among the images, no
answer to one is right. The test images are scored with `--test`.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from mnist_pl.data import MNISTDataModule, to_float
from mnist_pl.data.nondigits import nondigits
from mnist_pl.models import DigitClassifier
from mnist_pl.reading.checkpoint import load_model
from mnist_pl.runs.folders import find

BINS, SEED, MANY = 15, 2026, 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--test", action="store_true")
    words = parser.parse_args()
    data = MNISTDataModule(val_size=5_000)
    data.setup("validate")
    images, labels = data.splits["test" if words.test else "val"]
    seen, unseen = (nondigits(MANY, data.splits["val"], SEED, unseen) for unseen in (False, True))
    for run in words.runs:
        model, _ = load_model(Path(find(run, "best.ckpt")))
        digits, others, strangers = (probabilities(model, part) for part in (images, seen, unseen))
        right = digits.argmax(1) == labels
        wrong = torch.zeros(len(others) + len(strangers), dtype=torch.bool)
        figures = {
            "run": run,
            "right %": 100 * share(right),
            "digits refused %": 100 * share(digits.amax(1) < 0.5),
            "non-digits refused %": 100 * share(others.amax(1) < 0.5),
            "unseen refused %": 100 * share(strangers.amax(1) < 0.5),
            "calibration error %": 100 * calibration_error(digits, right),
            "... with non-digits %": 100
            * calibration_error(torch.cat([digits, others, strangers]), torch.cat([right, wrong])),
        }
        print(json.dumps({name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}))


def probabilities(model: DigitClassifier, images: Tensor) -> Tensor:  # (N, 28, 28) uint8 -> (N, 10)
    with torch.inference_mode():
        return torch.cat([model(to_float(batch)) for batch in images.split(250)]).softmax(1)


def share(where: Tensor) -> float:
    return float(where.double().mean())


def calibration_error(answers: Tensor, right: Tensor) -> float:
    confidence = answers.amax(1).double()
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, place, confidence - right.double())
    return float(gaps.abs().sum() / len(right))


if __name__ == "__main__":
    main()
