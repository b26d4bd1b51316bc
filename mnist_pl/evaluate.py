"""`python -m mnist_pl.evaluate`: how well labelled pictures are read, and how well plain resizing reads them. `--help`.

The digit error rate is the edits (Levenshtein) that turn the answers into the truth, over the digits there are; where
there are several lines, a break between two is a symbol too, so that a lost or an invented one is an edit.
"""

from mnist_pl.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports, which take their time

import csv
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mnist_pl.runs.config import CONF
from mnist_pl.runs.errors import one_line_errors, set_up_process
from mnist_pl.runs.folders import find_all, names
from mnist_pl.storage import as_typed, markdown, one_line, printable, short_path, write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mnist_pl.models import DigitClassifier

KINDS = ("single", "several", "none")
WAYS = ("this project", "plain resizing", "plain, right polarity")
SURE = 0.5  # an answer that is less confident counts as none
SHOWN = 100  # failures in the picture
FEWEST = 10  # pictures with a difficulty, for a row of the table

Said = tuple[str, float]  # an answer, and its confidence


@dataclass
class Picture:
    path: Path
    kind: str  # one of KINDS
    truth: str  # digits; '/' between lines; '' for none
    words: list[str] = field(default_factory=list)  # what makes it hard, where a pictures.csv says so
    said: list[Said] = field(default_factory=list)  # of each of WAYS
    note: str = ""
    seconds: float = 0.0

    def is_right(self, way: int) -> bool:
        text, confidence = self.said[way]
        return is_refused(self.said[way]) if self.kind == "none" else text == self.truth


def is_refused(said: Said) -> bool:
    return said[0] == "" or said[1] < SURE


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        paths = find_all(cfg.ckpt_path, "best.ckpt")
        found = [] if cfg.pictures is None else find_labelled(as_typed(cfg.pictures), cfg.pictures)
        from mnist_pl.reading.checkpoint import load, own_class

        model, _ = load(paths, own_class(cfg.model._target_))
        folder = Path(HydraConfig.get().runtime.output_dir)
        digits = test_digits(cfg.data_dir, cfg.pictures is None)
        if cfg.pictures is None:
            assert digits is not None
            found = find_labelled(simulated(as_typed(cfg.simulated), *digits), cfg.simulated)
        read_all(model, found)
        clean = None if digits is None else read_clean(model, *digits)
        scores = score(found, clean)
        origin = short_path(paths[0]) if len(paths) == 1 else names(paths)
        lines = [f"{type(model).__name__} from {origin}, {len(found):,} pictures", "", *table(scores)]
        if digits is None:
            lines += ["", "MNIST is not here: its test digits were not looked at; python -m mnist_pl.data fetches it"]
        lines += by_difficulty(found)
        print("\n".join(lines))
        write(folder / "scores.md", "\n".join([*lines, ""]).encode())
        write(folder / "scores.json", (json.dumps(scores, indent=2) + "\n").encode())
        write_answers(found, folder / "answers.csv")
        failed = [picture for picture in found if not picture.is_right(0)]
        print(f"\nanswers in {short_path(folder / 'answers.csv')}", end="")
        print(f", what was read wrongly in {short_path(draw_failures(failed, folder))}" if failed else "")


def find_labelled(folder: Path, typed: str) -> list[Picture]:
    """The pictures of `single/`, `several/` and `none/`, whose names begin with what they hold. Raises ValueError where
    there are none, or a name does not say it."""
    from mnist_pl.reading.pictures import SUFFIXES

    words: dict[str, list[str]] = {}
    if (folder / "pictures.csv").is_file():
        with open(folder / "pictures.csv", newline="", encoding="utf-8") as file:
            words = {row["file"]: list(filter(None, row.get("marks", "").split("; "))) for row in csv.DictReader(file)}
    found = []
    for kind in KINDS:
        for path in sorted(folder.glob(f"{kind}/*")):
            if not path.name.lower().endswith(SUFFIXES):
                continue
            name = path.stem.rpartition("_")[0]
            expected = {"single": r"\d", "several": r"\d+(-\d+)*", "none": "none"}[kind]
            if not re.fullmatch(expected, name, re.ASCII):
                example = {"single": "7_1", "several": "12345-67890_1", "none": "none_1"}[kind]
                raise ValueError(
                    f"pictures={printable(typed)}: {kind}/{printable(path.name)} does not begin with what it holds; "
                    f"name it as {kind}/{example}{path.suffix}"
                )
            truth = "" if kind == "none" else name.replace("-", "/")
            found.append(Picture(path, kind, truth, words.get(f"{kind}/{path.name}", [])))
    if not found:
        there = "holds no pictures in single/, several/ or none/" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"pictures={printable(typed)}: {there}")
    return found


def test_digits(data_dir: str | None, needed: bool) -> "tuple[NDArray[np.uint8], NDArray[np.int64]] | None":
    """MNIST's 10,000 test images and their labels, downloaded where they are `needed`; None where they are not here.
    Raises OSError where they are not to be had, or damaged."""
    from mnist_pl.data.files import fetch, locate, read

    folder, problem = locate("mnist", data_dir)
    if isinstance(problem, FileNotFoundError) and not needed:
        return None
    _, (images, labels) = read("mnist", fetch("mnist", data_dir) if problem else folder)
    return images.numpy(), labels.numpy()


def simulated(folder: Path, images: "NDArray[np.uint8]", labels: "NDArray[np.int64]") -> Path:
    """The folder of the simulated set, which is made where it is not there."""
    from mnist_pl.data import simulator

    if not simulator.is_built(folder):
        count = sum(simulator.COUNTS.values())
        print(f"making {count:,} pictures in {short_path(folder)}, a minute or two", flush=True)
        simulator.build(folder, images, labels)
    return folder


def read_all(model: "DigitClassifier", pictures: Sequence[Picture]) -> None:
    """Fills in what is said of each picture, in each of WAYS."""
    from tqdm import tqdm

    from mnist_pl.reading.numbers import read
    from mnist_pl.reading.pictures import load

    for picture in tqdm(pictures, "reading", unit="picture", disable=None, leave=False):
        start = perf_counter()
        try:
            gray = load(picture.path)
            answer = read(model, gray)
        except ValueError as error:
            print(printable(f"error: {picture.path}: {error}"), file=sys.stderr)
            picture.said, picture.note = [("", 0.0)] * len(WAYS), one_line(error)
            continue
        picture.seconds = perf_counter() - start
        picture.said, picture.note = [(answer.text, answer.confidence), *read_plainly(model, [gray])[0]], answer.note


def read_plainly(model: "DigitClassifier", pictures: "Sequence[NDArray[np.uint8]]") -> list[tuple[Said, Said]]:
    """The yardstick: the whole picture at 28x28, as it is; and inverted where most of it is light."""
    import numpy as np
    from PIL import Image

    from mnist_pl.reading.numbers import classify

    small = np.stack([np.asarray(Image.fromarray(gray).resize((28, 28))) for gray in pictures])
    light = np.array([np.median(gray) > 127 for gray in pictures])
    both = [
        [(str(digit) if digit < 10 else "", float(row[digit])) for row in rows for digit in [int(row.argmax())]]
        for rows in (classify(model, small), classify(model, np.where(light[:, None, None], 255 - small, small)))
    ]
    return list(zip(*both, strict=True))


def read_clean(
    model: "DigitClassifier", images: "NDArray[np.uint8]", labels: "NDArray[np.int64]"
) -> "list[tuple[str, list[Said]]]":
    """What is said of MNIST's own test digits, as PNG files of 28x28: the truth of each, and the answers."""
    from PIL import Image

    from mnist_pl.reading.numbers import read_files

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number:05}.png") for number in range(len(labels))]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(path, compress_level=1)
        answers = [answer for _, answer in read_files(model, paths)]
        ours = [("", 0.0) if isinstance(answer, ValueError) else (answer.text, answer.confidence) for answer in answers]
    plain = read_plainly(model, list(images))
    return [(str(label), [own, *both]) for label, own, both in zip(labels.tolist(), ours, plain, strict=True)]


def edits(answer: str, truth: str) -> int:
    """Symbols to put in, take out or replace, to turn the one into the other (Levenshtein 1966)."""
    row = list(range(len(truth) + 1))
    for i, said in enumerate(answer, 1):
        before, row[0] = row[0], i
        for j, meant in enumerate(truth, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (said != meant))
    return row[-1]


def score(pictures: Sequence[Picture], clean: "list[tuple[str, list[Said]]] | None") -> dict[str, Any]:
    """Counts, and for each of WAYS how many of them; what there is none of is left out."""
    ways = range(len(WAYS))
    of = {kind: [picture for picture in pictures if picture.kind == kind] for kind in KINDS}
    scores: dict[str, Any] = {}
    for kind, name in zip(KINDS, ("single_right", "several_right", "none_refused"), strict=True):
        if of[kind]:
            right = [sum(picture.is_right(way) for picture in of[kind]) for way in ways]
            scores[name] = {"of": len(of[kind]), "counts": right}
    if of["several"]:
        wrong = [sum(edits(picture.said[way][0], picture.truth) for picture in of["several"]) for way in ways]
        digits = sum(len(picture.truth.replace("/", "")) for picture in of["several"])
        scores["several_edits"] = {"of": digits, "counts": wrong}
    if clean:
        right = [sum(said[way][0] == truth for truth, said in clean) for way in ways]
        none = [sum(not said[way][0] for _, said in clean) for way in ways]
        refused = [sum(is_refused(said[way]) for _, said in clean) for way in ways]
        for name, counts in {"right": right, "none": none, "refused": refused}.items():
            scores[f"clean_{name}"] = {"of": len(clean), "counts": counts}
    times = sorted(1000 * picture.seconds for picture in pictures if picture.seconds)
    if times:
        scores["ms"] = {"median": median(times), "slowest_5_percent": times[int(0.95 * len(times))]}
    return scores


def table(scores: dict[str, Any]) -> list[str]:
    """Rows of Markdown."""
    names = {
        "single_right": "single digits: right",
        "several_right": "several digits: read exactly",
        "several_edits": "the same: digit error rate (edits over digits)",
        "none_refused": "no digit: answered with none, or under 50 %",
        "clean_right": "MNIST's test digits as PNG: right",
        "clean_none": "the same: refused by mistake",
        "clean_refused": "the same: refused, or under 50 %",
    }
    rows = [["what", "of", *WAYS]]
    for key, name in names.items():
        if key in scores:
            total, counts = scores[key]["of"], scores[key]["counts"]
            places = 2 if key.startswith("clean") else 1
            rows.append([name, f"{total:,}", *(f"{count / total:.{places}%}".replace("%", " %") for count in counts)])
    if "ms" in scores:
        times = scores["ms"]
        ours = f"{times['median']:.0f}; {times['slowest_5_percent']:.0f}"
        rows.append(["ms a picture: median; the slowest 5 % take longer than", "", ours, "", ""])
    return markdown(rows)


def by_difficulty(pictures: Sequence[Picture]) -> list[str]:
    """How many of the pictures with each difficulty are read rightly, the hardest first; where there are some."""
    words = {word for picture in pictures for word in picture.words}
    rows = []
    for word in words:
        with_it = [picture for picture in pictures if word in picture.words]
        if len(with_it) >= FEWEST:
            rights = [sum(picture.is_right(0) for picture in with_it if picture.kind == kind) for kind in KINDS]
            counts = [sum(picture.kind == kind for picture in with_it) for kind in KINDS]
            cells = [f"{right} of {count}" if count else "" for right, count in zip(rights, counts, strict=True)]
            rows.append((sum(rights) / sum(counts), [word, *cells]))
    if not rows:
        return []
    return ["", *markdown([["right, with", *KINDS], *(row for _, row in sorted(rows))])]


def write_answers(pictures: Iterable[Picture], path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        plain = [f"{what}_{way}" for way in ("plain", "polarity") for what in ("answer", "confidence")]
        writer.writerow(["file", "truth", "answer", "confidence", "note", "right", "ms", *plain, "marks"])
        for picture in pictures:
            (text, confidence), *others = picture.said
            said = [f"{value:.4f}" if isinstance(value, float) else value for other in others for value in other]
            row = [picture.path, picture.truth, text, f"{confidence:.4f}", picture.note, int(picture.is_right(0))]
            writer.writerow([*row, f"{1000 * picture.seconds:.1f}", *said, "; ".join(picture.words)])


def fault(picture: Picture) -> str:
    """In a word or two, what went wrong with it."""
    text = picture.said[0][0]
    if picture.kind == "none":
        return "not refused"
    if not text:
        return picture.note or "refused"
    digits, truth = text.replace("/", ""), picture.truth.replace("/", "")
    if digits == truth:
        return "lines"
    if len(digits) != len(truth):
        return "too few" if len(digits) < len(truth) else "too many"
    return "wrong digit"


def draw_failures(failed: Sequence[Picture], folder: Path) -> Path:
    """`failures.png`: the truth, the answer, and a word for the kind, over each; of each kind of picture its share."""
    from PIL import Image

    from mnist_pl.figures import plots
    from mnist_pl.reading.pictures import load

    step = max(1.0, len(failed) / SHOWN)
    shown = [failed[int(number * step)] for number in range(min(len(failed), SHOWN))]
    pictures, titles = [], []
    for picture in shown:
        try:
            pictures.append(Image.fromarray(load(picture.path)))
        except ValueError:
            pictures.append(Image.new("L", (28, 28)))
        text, confidence = picture.said[0]
        said = f"{picture.truth or 'none'} > {text or 'none'} {confidence:.0%}"
        titles.append(f"{said[:24]}\n{'; '.join([fault(picture), *picture.words])[:25]}")
    return plots.save(plots.sheet(pictures, titles), folder / "failures.png")


if __name__ == "__main__":
    set_up_process()
    with one_line_errors():
        main()
