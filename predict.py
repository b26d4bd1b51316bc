"""A checkpoint and pictures (or the test images) in, answers out. `python predict.py --help`."""

from mnist_pl.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports, which take their time

import csv
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mnist_pl.runs import config  # noqa: F401  # registers the schema
from mnist_pl.runs.claim import taken
from mnist_pl.runs.errors import one_line_errors, set_up_process
from mnist_pl.runs.folders import find
from mnist_pl.runs.words import BETWEEN, expand_input
from mnist_pl.storage import short_path

if TYPE_CHECKING:
    from torch import Tensor

    from mnist_pl.models import DigitClassifier

DRAWN = 20  # test images in the grid
SHEET = 100  # pictures on the contact sheet
TOGETHER = 500  # pictures read before the network gets them
AT_ONCE = 250  # images for the network; small enough for the activations to stay in a processor's cache


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        from mnist_pl.reading.checkpoint import load_model, own_class

        hydra = HydraConfig.get()
        os.chdir(hydra.runtime.cwd)  # where the names of the pictures were typed, whatever hydra.job.chdir says
        path = find(cfg.ckpt_path, "best.ckpt")
        model, described = load_model(path, own_class(cfg.model._target_))
        folder = Path(hydra.runtime.output_dir)
        for name in taken()[:1]:
            print(f"{name} is taken; the answers go to {short_path(folder)}")
        print(f"{type(model).__name__} from {path}")
        if cfg.input is None:
            score_test_images(model, described.get("datamodule_hyper_parameters", {}), cfg.data_dir, cfg.seed, folder)
        elif not read_pictures(model, cfg.input.split(BETWEEN), folder):
            if hydra.mode == RunMode.MULTIRUN:  # the jobs after this one go on
                raise ValueError("input: not every picture could be answered")
            sys.exit(1)


def score_test_images(
    model: "DigitClassifier", trained_on: dict, data_dir: str | None, seed: int | None, folder: Path
) -> None:
    """Prints the accuracy on the test images of the data set that was trained on; draws a few at random."""
    import torch

    from mnist_pl.data import MNISTDataModule
    from mnist_pl.figures import plots

    data = MNISTDataModule(trained_on.get("dataset", "mnist"), data_dir, val_size=0)
    data.prepare_data()
    data.setup("test")
    images, labels = data.splits["test"]
    confidences, guesses = answers(model, images)
    right = guesses == labels
    print(
        f"{data.dataset}: {int(right.sum()):,} of {len(labels):,} test images right, {float(right.double().mean()):.2%}"
    )
    generator = torch.Generator()
    generator.manual_seed(seed) if seed is not None else generator.seed()
    drawn = torch.randperm(len(labels), generator=generator)[:DRAWN]
    print(f"{'image':>8}{'truth':>8}{'answer':>8}{'confidence':>12}")
    for index in drawn.tolist():
        print(f"{index:>8}{int(labels[index]):>8}{int(guesses[index]):>8}{float(confidences[index]):>12.1%}")
    titles = [str(int(guesses[i])) if right[i] else f"{int(guesses[i])}, not {int(labels[i])}" for i in drawn.tolist()]
    figure = plots.grid(images[drawn].numpy(), titles, (~right[drawn]).tolist())
    print(f"drawn in {short_path(plots.save(figure, folder / 'test_images.png'))}")


def read_pictures(model: "DigitClassifier", sources: list[str], folder: Path) -> bool:
    """Answers every picture that can be read; returns whether that was all of them."""
    import numpy as np
    import torch

    from mnist_pl.figures import plots
    from mnist_pl.reading import pictures
    from mnist_pl.storage import printable

    paths: list[Path] = []
    names: list[str] = []
    parts: list[np.ndarray] = []
    answered: list[Future[tuple[Tensor, Tensor]]] = []
    failed = 0
    for source in sources:
        try:
            paths += pictures.find_pictures(source)
        except ValueError as reason:
            failed += 1
            print(f"error: {reason}", file=sys.stderr)
    with ThreadPoolExecutor(1) as network:  # it answers while the next pictures are decoded
        for start in range(0, len(paths), TOGETHER):
            images, readable, errors = pictures.read_pictures(paths[start : start + TOGETHER])
            failed += len(errors)
            for error in errors:
                print(f"error: {error}", file=sys.stderr)
            if readable:
                names += readable
                parts.append(images)
                answered.append(network.submit(answers, model, torch.from_numpy(images)))
    if not names:
        return False
    confidences: list[float] = []
    guesses: list[int] = []
    for part in answered:
        values, digits = part.result()
        confidences += values.tolist()
        guesses += digits.tolist()
    shown = [printable(name) for name in names]
    width = max(map(len, shown))
    lines = [f"{n:{width}}  {g:>5}  {c:>10.1%}" for n, g, c in zip(shown, guesses, confidences, strict=True)]
    print("\n".join([f"{'file':{width}}  digit  confidence", *lines]))
    with open(folder / "predictions.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "digit", "confidence"])
        writer.writerows(zip(names, guesses, (f"{c:.6f}" for c in confidences), strict=True))
    rows = zip(names[:SHEET], guesses, confidences, strict=False)
    titles = [f"{printable(Path(name).name)[:14]}\n{guess}  {confidence:.0%}" for name, guess, confidence in rows]
    sheet = plots.save(plots.grid(np.concatenate(parts)[:SHEET], titles), folder / "seen.png")
    print(f"answers in {short_path(folder / 'predictions.csv')}, what the network saw in {short_path(sheet)}")
    return not failed


def answers(model: "DigitClassifier", images: "Tensor") -> "tuple[Tensor, Tensor]":
    """Images (N, 28, 28) uint8 -> the confidence of each answer (N,) in [0, 1], and the digit (N,)."""
    import torch

    from mnist_pl.data import to_float

    with torch.inference_mode():
        logits = torch.cat([model(to_float(batch)) for batch in images.split(AT_ONCE)])
        confidences, digits = logits.softmax(dim=1).max(dim=1)
    return confidences, digits


if __name__ == "__main__":
    set_up_process()
    with one_line_errors():
        sys.argv[1:] = expand_input(sys.argv[1:])
        main()
