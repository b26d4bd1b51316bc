"""predict.py as a user runs it."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Run, Train, one_line
from PIL import Image
from test_pictures import STRANGERS, Record, hostile

from mnist_pl.data.digits import embedded_digits
from mnist_pl.reading.checkpoint import load_model
from mnist_pl.reading.pictures import find_pictures
from mnist_pl.runs.folders import find
from mnist_pl.runs.words import BETWEEN, expand_input
from mnist_pl.storage import printable, quoted, read_value


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Twenty embedded test digits as a person would hand them in: large, dark on white, off-centre."""
    folder = tmp_path / "my digits"
    (folder / "more").mkdir(parents=True)
    _, (images, labels) = embedded_digits()
    for index, (image, label) in enumerate(zip(images[:20].numpy(), labels[:20].tolist(), strict=True)):
        page = Image.new("L", (400, 300), 250)
        page.paste(Image.fromarray(255 - image).resize((140, 140)), (200, 40 + index))
        suffix, parent = ("jpg", folder / "more") if index % 2 else ("PNG", folder)
        page.save(parent / f"{index}_{label}.{suffix}")
    return folder


def test_the_newest_run_scores_the_test_images(run: Run, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "outputs" / "run")
    ended = run("predict.py", "seed=1", "hydra.run.dir=out")
    assert ended.code == 0, ended.err
    accuracy = json.loads((trained / "summary.json").read_text())["test/acc"]
    assert f"digits: {round(300 * accuracy)} of 300 test images right, {accuracy:.2%}" in ended.out
    assert len(re.findall(r"^ +\d+ +\d +\d +[\d.]+%$", ended.out, re.MULTILINE)) == 20
    assert (tmp_path / "out" / "test_images.png").exists()
    again, other = (run("predict.py", *words, "hydra.run.dir=out").out for words in (["seed=1"], []))
    assert again == ended.out and other != ended.out


def test_a_folder_of_pictures_is_answered(run: Run, trained: Path, drawn: Path, tmp_path: Path) -> None:
    ended = run("predict.py", f"ckpt_path={trained}", f"input='{drawn}'", "hydra.run.dir=out")
    assert ended.code == 0, ended.err
    with open(tmp_path / "out" / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and all(0 < float(row["confidence"]) <= 1 for row in rows)
    right = sum(Path(row["file"]).stem.split("_")[1] == row["answer"] for row in rows)
    assert right >= 18
    assert (tmp_path / "out" / "seen.png").exists()


def test_a_picture_alone_is_answered(run: Run, trained: Path, drawn: Path) -> None:
    picture = next(drawn.glob("*.PNG"))
    ended = run("predict.py", f"ckpt_path={trained / 'checkpoints' / 'best.ckpt'}", f"input='{picture}'")
    assert ended.code == 0 and f"{picture}  " in ended.out


# predict.py where the terminal has no letters but ASCII's.
IN_ASCII = """
import runpy, sys
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(encoding="ascii")
runpy.run_path({!r}, run_name="__main__")
"""


@pytest.mark.promise(STRANGERS, "the same to predict.py")
@pytest.mark.parametrize("own_python", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_strangers_folder_is_answered(
    run: Run, trained: Path, tmp_path: Path, record_property: Record, own_python: bool
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    reasons = hostile(folder)
    answered = {str(folder / name) for name, reason in reasons.items() if not reason}
    words = [f"ckpt_path={trained}", f"input='{folder}'", "hydra.run.dir=out"]
    if own_python:
        command = [sys.executable, ROOT / "predict.py", *words]
        ascii_alone = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
        ended = subprocess.run(command, capture_output=True, cwd=tmp_path, env=ascii_alone, timeout=120)
        code, out, err = ended.returncode, ended.stdout, ended.stderr
    else:
        (tmp_path / "in_ascii.py").write_text(IN_ASCII.format(str(ROOT / "predict.py")))
        code, *texts = run(str(tmp_path / "in_ascii.py"), *words)
        out, err = (text.encode() for text in texts)
    assert code == 1
    assert all(32 <= byte < 127 for byte in (out + err).replace(b"\n", b""))
    lines = err.decode().splitlines()
    assert len(lines) == len(reasons) - len(answered) and all(line.startswith(f"error: {folder}/") for line in lines)
    assert len(out.splitlines()) == len(answered) + 3
    with open(tmp_path / "out" / "predictions.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert {row["file"] for row in csv.DictReader(file)} == answered
    with Image.open(tmp_path / "out" / "seen.png") as sheet:
        assert sheet.width == 600 and sheet.height > 250  # two rows: blank pages are on none
    record_property("tried", len(reasons))


@pytest.mark.promise(STRANGERS, "the same to predict.py")
@pytest.mark.parametrize(
    "name",
    [
        "bad\nerror: name\x1b[2J.png",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("fifo.png", "zero.png", "absent\x1b[2J.png")),
    ],
)
def test_a_strangers_picture_is_refused(run: Run, trained: Path, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "bad\nerror: name\x1b[2J.png").touch()
    line = one_line(run("predict.py", f"ckpt_path={trained}", f"input='{tmp_path / name}'"))
    assert printable(name) in line and line.isprintable()


def test_bad_input(run: Run, tmp_path: Path) -> None:
    assert "run train.py first" in one_line(run("predict.py"))
    assert "inptu" in one_line(run("predict.py", "inptu=x"))
    empty, text, other = tmp_path / "empty", tmp_path / "text.ckpt", tmp_path / "other.ckpt"
    empty.mkdir()
    text.write_text("hello")
    torch.save({"weights": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="input=.*empty: the folder holds no picture"):
        find_pictures(empty)
    with pytest.raises(ValueError, match="ckpt_path=.*empty: the folder holds no"):
        find(empty, "best.ckpt")
    with pytest.raises(ValueError, match="text.ckpt: not a checkpoint that can be read"):
        load_model(text)
    with pytest.raises(ValueError, match="other.ckpt: not a checkpoint of this project"):
        load_model(other)


@pytest.mark.parametrize(
    ("words", "checkpoint", "reason"),
    [
        (["model=mlp"], None, "holds the network CNN and model is MLP; choose the model="),
        (["model.hidden=[7]"], None, r"has the shape \(.*\) in it and \(7.*; give the model.* settings"),
        ([], "text.ckpt", "ckpt_path=text.ckpt: not a checkpoint that can be read"),
    ],
    ids=["other network", "other shape", "no checkpoint"],
)
def test_training_refuses_a_checkpoint_that_does_not_fit(
    train_here: Train, trained: Path, tmp_path: Path, words: list[str], checkpoint: str | None, reason: str
) -> None:
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(SystemExit, match=f"^error: .*{reason}") as caught:
        train_here("data=digits", *words, f"ckpt_path={checkpoint or trained}")
    assert "\n" not in str(caught.value)


@pytest.mark.long
def test_a_run_folder_is_not_written_over(run: Run, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "run"
    shutil.copytree(trained, folder)
    before = {path: path.read_bytes() for path in folder.glob("**/*") if path.is_file()}
    for words in (["model=mlp"], ["fit=false", "ckpt_path=outputs/run"], ["optimizer.lr=-1"]):
        assert run("train.py", "data=digits", *words, "hydra.run.dir=outputs/run").code == 1
    line = one_line(run("train.py", "data=digits", "model=mlp", "hydra.run.dir=outputs/run"))
    assert "holds an existing run" in line and "resume=outputs/run" in line
    for words in (["optimizer=sgd", "trainer.max_epochs=9"], ["logger=csv"], ["trainer.max_epoch=9"]):
        assert run("train.py", "resume=outputs/run", *words).code == 1
    sweep = ["hydra.sweep.dir=outputs", "hydra.sweep.subdir=run", "seed=2"]
    assert "outputs/0 (seed=2) failed" in run("train.py", "-m", "data=digits", "model=mlp", *sweep).err
    assert {path: path.read_bytes() for path in folder.glob("**/*") if path.is_file()} == before


def test_every_picture_that_is_named_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a shell or Hydra name it; what is not there is left to be refused by name."""
    names = ["1.png", "2.png", "a b.png", "a,b.png", "a[1].png", "it's.png", "${x}.png", "-x.png", "seed=3.png"]
    names += ["new\nline.png", "\udcff.png", "~", "null", "*.png", "back\\.png"]
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def named(*words: str) -> list[str]:
        return read_value(expand_input(["-m", "seed=1", *words])[-1].partition("=")[2]).split(BETWEEN)

    assert named(*names) == named(*(f"input={name}" for name in names)) == named("--", *names) == names
    assert named(*(f"input={quoted(name)}" for name in names if name != "*.png")) == [n for n in names if n != "*.png"]
    for words in (["1.png,2.png"], ["input=1.png,2.png"], ["input=[1.png,'2.png']"], ["input=1.png", "2.png"]):
        assert named(*words) == ["1.png", "2.png"]
    assert named("input=[12].png") == ["1.png", "2.png"]
    assert named("input=~/1.png", "~/nix.png", "1.png") == [f"{tmp_path}/1.png", f"{tmp_path}/nix.png", "1.png"]
    assert named("--config-dir", "conf", "nix.png") == ["nix.png"]
    (tmp_path / "null").unlink()
    assert expand_input(["seed=1", "input=null"]) == ["seed=1"]
    for words in (["input="], ["input=''"], ["1.png", ""]):
        with pytest.raises(ValueError, match="input= is empty"):
            expand_input(words)
    with pytest.raises(ValueError, match="input=-: pictures are read from files"):
        find_pictures("-")


def test_what_is_refused_keeps_nothing_else_back(run: Run, trained: Path, drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    picture = str(next(drawn.glob("*.PNG")).relative_to(tmp_path))
    words = [f"ckpt_path={trained}", "nix.png", picture, "empty", "hydra.job.chdir=true"]
    ended = run("predict.py", *words)
    assert ended.code == 1 and f"{picture}  " in ended.out
    refused = [line.split(": ")[1] for line in ended.err.splitlines()]
    assert refused == ["input=nix.png", "input=empty"]
    run("predict.py", "-m", f"ckpt_path={trained},{trained}", "nix.png", picture)
    assert len(list(tmp_path.glob("predictions/*/*/?/predictions.csv"))) == 2
    assert not (tmp_path / "multirun").exists()


def test_lightnings_words_mean_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for age, run_folder in enumerate(("outputs/old", "multirun/new/0")):
        for name in ("last.ckpt", "best.ckpt"):
            path = tmp_path / run_folder / "checkpoints" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (age, age))
    for word in ("last", "best"):
        assert find(word, "best.ckpt") == Path("multirun/new/0/checkpoints", f"{word}.ckpt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~/outputs/old", "best.ckpt") == tmp_path / "outputs/old/checkpoints/best.ckpt"
