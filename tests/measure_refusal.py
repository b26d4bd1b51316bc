"""What a network's confidence is worth: on validation images, and on images that show no digit.

    python tests/measure_refusal.py RUN [RUN ...]

The non-digits are made with another seed than those of the training, of pieces of validation images; `unseen` are of
kinds and fonts that no training image is of. An answer counts as refused where its probability is under a half. The
calibration error is the expected one over 15 bins of confidence (Guo et al. 2017). With non-digits, as many as digits,
no answer to one is right, and the best that the highest of ten probabilities can say is 0.1: `rescaled` counts from
there, (10 p - 1) / 9. The test images are scored with `--test` alone.
"""

import argparse
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
        both = torch.cat([digits, others[::2], strangers[::2]]).amax(1)  # as many of each
        all_right = torch.cat([right, torch.zeros(len(both) - len(right), dtype=torch.bool)])
        figures = {
            "right": share(right),
            "digits refused": share(digits.amax(1) < 0.5),
            "digits under 0.2": share(digits.amax(1) < 0.2),
            "non-digits refused": share(others.amax(1) < 0.5),
            "unseen refused": share(strangers.amax(1) < 0.5),
            "calibration error": calibration_error(digits.amax(1), right),
            "with non-digits": calibration_error(both, all_right),
            "rescaled": calibration_error((10 * both - 1) / 9, all_right),
        }
        print(run, *(f"{name} {value:.2%}" for name, value in figures.items()), sep="\n    ")


def probabilities(model: DigitClassifier, images: Tensor) -> Tensor:  # (N, 28, 28) uint8 -> (N, 10)
    with torch.inference_mode():
        return torch.cat([model(to_float(batch)) for batch in images.split(250)]).softmax(1)


def share(where: Tensor) -> float:
    return float(where.double().mean())


def calibration_error(confidence: Tensor, right: Tensor) -> float:  # (N,), (N,)
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, place, confidence.double() - right.double())
    return float(gaps.abs().sum() / len(right))


if __name__ == "__main__":
    main()
