"""The command that scores a folder of labelled pictures."""

import csv
import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, one_line
from PIL import Image

from mnist_pl import evaluate
from mnist_pl.data.digits import embedded_digits
from mnist_pl.evaluate import Picture, edits, fault, find_labelled, score, table
from mnist_pl.reading.checkpoint import load_model
from mnist_pl.reading.numbers import read
from mnist_pl.runs.folders import find


@pytest.mark.parametrize(
    ("answer", "truth", "count"),
    [("", "", 0), ("7", "7", 0), ("", "123", 3), ("1", "7", 1), ("1357", "157", 1), ("12345/67", "1234567", 1)]
    + [("21", "12", 2), ("1/2", "1/2", 0), ("9", "12/34", 5), ("kitten", "sitting", 3)],
)
def test_edits(answer: str, truth: str, count: int) -> None:
    assert edits(answer, truth) == edits(truth, answer) == count


def test_scores_of_known_answers() -> None:
    def picture(kind: str, truth: str, *said: tuple[str, float]) -> Picture:
        return Picture(Path("x.png"), kind, truth, said=list(said), seconds=0.002)

    pictures = [
        picture("single", "7", ("7", 0.9), ("1", 0.9), ("7", 0.4)),
        picture("single", "3", ("33", 0.9), ("3", 0.9), ("", 1.0)),
        picture("several", "12/34", ("12/34", 0.3), ("1", 0.9), ("12", 0.9)),
        picture("several", "56", ("5/6", 0.9), ("5", 0.9), ("65", 0.9)),
        picture("none", "", ("", 1.0), ("8", 0.49), ("8", 0.5)),
    ]
    clean = [("1", [("1", 0.9), ("1", 0.2), ("7", 0.9)]), ("2", [("", 0.9), ("2", 0.9), ("2", 0.9)])]
    scores = score(pictures, clean)
    assert scores == {
        "single_right": {"of": 2, "counts": [1, 1, 1]},
        "several_right": {"of": 2, "counts": [1, 0, 0]},
        "none_refused": {"of": 1, "counts": [1, 1, 0]},
        "several_edits": {"of": 6, "counts": [1, 5, 5]},
        "clean_right": {"of": 2, "counts": [1, 2, 1]},
        "clean_none": {"of": 2, "counts": [1, 0, 0]},
        "clean_refused": {"of": 2, "counts": [1, 1, 0]},
        "ms": {"median": 2.0, "slowest_5_percent": 2.0},
    }
    lines = table(scores)
    assert len({len(line) for line in lines}) == 1 and len(lines) == 10
    assert [cell.strip() for cell in lines[4].split("|")[2:-1]] == ["6", "16.7 %", "83.3 %", "83.3 %"]
    assert score(pictures[:1], None).keys() == {"single_right", "ms"}
    wrong = [
        pictures[1],
        pictures[3],
        pictures[4],
        picture("several", "12", ("13", 0.9)),
        picture("single", "1", ("", 1)),
    ]
    assert [fault(one) for one in wrong] == ["too many", "lines", "not refused", "wrong digit", "refused"]


@pytest.fixture
def labelled(trained: Path, tmp_path: Path) -> Path:
    """Six pictures of one digit, of which one has a wrong label; two numbers, one of them with a digit too many in its
    label; a blank page. Of digits that the network reads, so that the scores are known."""
    folder = tmp_path / "my pictures"
    for kind in evaluate.KINDS:
        (folder / kind).mkdir(parents=True)
    model, _ = load_model(find(trained, "best.ckpt"))
    _, (images, labels) = embedded_digits()

    def page(*digits: int) -> np.ndarray:
        page = np.full((200, 60 + 140 * len(digits)), 250, np.uint8)
        for number, index in enumerate(digits):
            large = Image.fromarray(255 - images[index].numpy()).resize((140, 140))
            page[30:170, 30 + 140 * number : 170 + 140 * number] = np.minimum(np.asarray(large), 250)
        return page

    pages = ((page(i), str(int(labels[i]))) for i in range(30))
    good = list(islice(((gray, label) for gray, label in pages if read(model, gray).text == label), 6))
    assert len(good) == 6
    for number, (gray, label) in enumerate(good):
        label = str((int(label) + 1) % 10) if number == 0 else label
        Image.fromarray(gray).save(folder / "single" / f"{label}_{number}.png")
    pairs = ((page(i, i + 1), f"{int(labels[i])}{int(labels[i + 1])}") for i in range(30))
    (one, label), (two, other) = islice((pair for pair in pairs if read(model, pair[0]).text == pair[1]), 2)
    Image.fromarray(one).save(folder / "several" / f"{label}_0.png")
    Image.fromarray(two).save(folder / "several" / f"{other}-5_1.jpg", quality=95)
    Image.new("L", (90, 60), 240).save(folder / "none" / "none_0.png")
    return folder


def test_a_folder_is_scored(run: Run, trained: Path, labelled: Path, tmp_path: Path) -> None:
    ended = run("mnist_pl/evaluate.py", f"ckpt_path={trained}", f"pictures='{labelled}'", "hydra.run.dir=out")
    assert ended.code == 0, ended.err
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["single_right"]["of"] == 6 and scores["single_right"]["counts"][0] == 5
    assert scores["several_right"]["of"] == 2 and scores["several_right"]["counts"] == [1, 0, 0]
    assert scores["several_edits"]["of"] == 5 and scores["several_edits"]["counts"][0] == 2
    assert scores["none_refused"]["counts"][0] == 1
    assert "clean_right" not in scores and "python -m mnist_pl.data fetches it" in ended.out
    assert (tmp_path / "out" / "scores.md").read_text() in ended.out
    assert "| single digits: right " in ended.out and " 83.3 % " in ended.out and " 40.0 % " in ended.out
    with open(tmp_path / "out" / "answers.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and sum(int(row["right"]) for row in rows) == 7
    assert all(float(row["ms"]) > 0 for row in rows)
    with Image.open(tmp_path / "out" / "failures.png") as sheet:
        assert sheet.width == 2 * 150


def test_a_picture_that_cannot_be_read_is_a_failure(run: Run, trained: Path, labelled: Path, tmp_path: Path) -> None:
    shutil.rmtree(labelled / "several")
    (labelled / "single" / "4_broken.png").write_bytes(b"hello")
    (labelled / "pictures.csv").write_text("file,marks\n" + f"single/4_broken.png,{'broken; '}\n")
    ended = run("mnist_pl/evaluate.py", f"ckpt_path={trained}", f"pictures='{labelled}'", "hydra.run.dir=out")
    assert ended.code == 0 and f"error: {labelled}/single/4_broken.png: not a PNG or JPEG picture" in ended.err
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["single_right"]["of"] == 7 and scores["single_right"]["counts"][0] == 5
    assert "several_right" not in scores


def test_bad_input(run: Run, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "single").mkdir(parents=True)
    with pytest.raises(ValueError, match="pictures=nix: there is no such folder"):
        find_labelled(tmp_path / "nix", "nix")
    with pytest.raises(ValueError, match="pictures=set: holds no pictures in single/, several/ or none/"):
        find_labelled(folder, "set")
    for name in ("seven.png", "12_1.png", "7.png"):
        Image.new("L", (9, 9)).save(folder / "single" / name)
        with pytest.raises(ValueError, match=f"single/{name} does not begin with .*; name it as single/7_1.png"):
            find_labelled(folder, "set")
        (folder / "single" / name).unlink()
    line = one_line(run("mnist_pl/evaluate.py", f"ckpt_path={trained}", "data_dir=nowhere"))
    assert "not downloaded" in line and "a training also takes data=digits" in line


def test_words_that_make_pictures_hard_have_rows(tmp_path: Path) -> None:
    pictures = []
    for number in range(30):
        words = ["faint"] if number % 2 else ["tiny", "moved"]
        pictures.append(Picture(tmp_path, "single", "1", words, [("1" if number < 14 else "7", 0.9)]))
    pictures[29].said = [("1", 0.9)]
    assert [line.split("|")[1].strip() for line in evaluate.by_difficulty(pictures)[3:]] == ["moved", "tiny", "faint"]
    assert "7 of 15" in evaluate.by_difficulty(pictures)[3] and "8 of 15" in evaluate.by_difficulty(pictures)[5]
    assert evaluate.by_difficulty(pictures[:8]) == []
