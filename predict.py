"""A checkpoint and pictures (or the test images) in, answers out. `python predict.py --help`."""

from mnist_pl.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports, which take their time

import csv
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mnist_pl.runs import config  # noqa: F401  # registers the schema
from mnist_pl.runs.claim import taken
from mnist_pl.runs.errors import one_line_errors, set_up_process
from mnist_pl.runs.folders import find_all, names
from mnist_pl.runs.words import BETWEEN, expand_input
from mnist_pl.storage import one_line, printable, short_path

if TYPE_CHECKING:
    from mnist_pl.models import DigitClassifier
    from mnist_pl.reading.numbers import Answer

OUTPUTS = ("table", "json")
DRAWN = 20  # test images in the grid
SHEET = 100  # digits on the contact sheet, and pictures that boxes are drawn on


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        from mnist_pl.reading.checkpoint import load, own_class, trained_on

        hydra = HydraConfig.get()
        os.chdir(hydra.runtime.cwd)  # where the names of the pictures were typed, whatever hydra.job.chdir says
        paths = find_all(cfg.ckpt_path, "best.ckpt")
        model, described = load(paths, own_class(cfg.model._target_))
        folder = Path(hydra.runtime.output_dir)
        if cfg.output not in OUTPUTS:
            raise ValueError(f"output={one_line(cfg.output)}: must be {' or '.join(OUTPUTS)}")
        if cfg.output == "table":
            for name in taken[:1]:
                print(f"{name} is taken; the answers go to {short_path(folder)}")
            print(f"{type(model).__name__} from {names(paths)}")
        if cfg.input is None:
            score_test_images(model, trained_on(described), cfg.data_dir, cfg.seed, folder)
        elif not read_pictures(model, cfg.input.split(BETWEEN), folder, cfg.output):
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
    from mnist_pl.reading.numbers import classify

    data = MNISTDataModule(trained_on.get("dataset", "mnist"), data_dir, val_size=0)
    data.prepare_data()
    data.setup("test")
    images, labels = data.splits["test"]
    confidences, guesses = torch.from_numpy(classify(model, images.numpy())).max(dim=1)
    right = guesses == labels
    print(f"{data.dataset}: {right.sum():,} of {len(labels):,} test images right, {right.double().mean():.2%}")
    generator = torch.Generator()
    generator.manual_seed(seed) if seed is not None else generator.seed()
    drawn = torch.randperm(len(labels), generator=generator)[:DRAWN]
    print(f"{'image':>8}{'truth':>8}{'answer':>8}{'confidence':>12}")
    for index in drawn.tolist():
        print(f"{index:>8}{int(labels[index]):>8}{int(guesses[index]):>8}{float(confidences[index]):>12.1%}")
    titles = [str(int(guesses[i])) if right[i] else f"{int(guesses[i])}, not {int(labels[i])}" for i in drawn.tolist()]
    figure = plots.grid(images[drawn].numpy(), titles, (~right[drawn]).tolist())
    print(f"drawn in {short_path(plots.save(figure, folder / 'test_images.png'))}")


def read_pictures(model: "DigitClassifier", sources: list[str], folder: Path, output: str = "table") -> bool:
    """Answers every picture that can be read, in their order; returns whether that was all of them."""
    from mnist_pl.reading.numbers import read_files
    from mnist_pl.reading.pictures import find_pictures

    paths: list[Path] = []
    failed = 0
    for source in sources:
        try:
            paths += find_pictures(source)
        except ValueError as reason:
            failed += 1
            print(f"error: {reason}", file=sys.stderr)
    answers: dict[str, Answer] = {}
    for name, answer in read_files(model, paths):
        if isinstance(answer, ValueError):
            failed += 1
            print(printable(f"error: {name}: {answer}"), file=sys.stderr)
        else:
            answers[name] = answer
            if output == "json":
                print(json.dumps({"file": name, **answer.as_dict()}))
    if not answers:
        return False
    if output == "table":
        shown = {printable(name): answer for name, answer in answers.items()}
        width = max(map(len, [*shown, "file"]))
        wide = max([len(answer.text) for answer in shown.values()] + [len("answer")])
        print(f"{'file':{width}}  {'answer':{wide}}  confidence  note")
        for name, answer in shown.items():
            print(f"{name:{width}}  {answer.text:{wide}}  {answer.confidence:>10.1%}  {answer.note}".rstrip())
    write_tables(answers, folder)
    sheet = draw_answers(answers, folder)
    if output == "table":
        seen = f", what the network saw in {short_path(sheet)}" if sheet else ""
        print(f"answers in {short_path(folder / 'predictions.csv')}{seen}")
    return not failed


def write_tables(answers: "dict[str, Answer]", folder: Path) -> None:
    """`predictions.csv`, a row a picture, and `boxes.csv`, a row a digit."""
    pictures: list[list[Any]] = [["file", "answer", "confidence", "note"]]
    boxes: list[list[Any]] = [["file", "line", "place", "digit", "confidence", "left", "top", "right", "bottom"]]
    for name, answer in answers.items():
        pictures.append([name, answer.text, f"{answer.confidence:.6f}", answer.note])
        for digit in answer.digits:
            boxes.append([name, digit.line, digit.place, digit.digit, f"{digit.confidence:.6f}", *digit.box])
    for file_name, rows in {"predictions.csv": pictures, "boxes.csv": boxes}.items():
        with open(folder / file_name, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows(rows)


def draw_answers(answers: "dict[str, Answer]", folder: Path) -> Path | None:
    """A sheet of what the network saw; and of each picture with several digits, `read_NAME.png`, with boxes over it."""
    import numpy as np

    from mnist_pl.figures import plots
    from mnist_pl.reading import pictures

    images: list[np.ndarray] = []
    titles: list[str] = []
    several = 0
    for name, answer in answers.items():
        short = printable(Path(name).name)
        if len(answer.digits) > 1 and several < SHEET:
            several += 1
            with suppress(ValueError):  # it has been taken away
                boxes = [(digit.box, str(digit.digit)) for digit in answer.digits]
                plots.save(plots.boxes(pictures.load(name), boxes), new_name(folder, f"read_{Path(short).stem}"))
        for digit in (*answer.digits, *answer.refused):
            if len(images) < SHEET:
                images.append(digit.image)
                said = str(digit.digit) if digit in answer.digits else f"none ({digit.digit}?)"
                titles.append(f"{short[:14]}\n{said}  {digit.confidence:.0%}")
    return plots.save(plots.grid(np.stack(images), titles), folder / "seen.png") if images else None


def new_name(folder: Path, stem: str) -> Path:
    """With a number, where pictures of several folders have the same name."""
    names = (f"{stem}.png", *(f"{stem}_{number}.png" for number in range(2, SHEET + 2)))
    return next(folder / name for name in names if not (folder / name).exists())


if __name__ == "__main__":
    set_up_process()
    with one_line_errors():
        sys.argv[1:] = expand_input(sys.argv[1:])
        main()
