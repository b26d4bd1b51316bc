"""predict.py as a user runs it."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Run, one_line
from PIL import Image
from test_pictures import STRANGERS, Record, hostile

from mnist_pl import data, pictures


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Twenty embedded test digits as a person would hand them in: large, dark on white, off-centre."""
    folder = tmp_path / "my digits"
    (folder / "more").mkdir(parents=True)
    _, (images, labels) = data.embedded_digits()
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
    assert "digits: 29" in ended.out or "digits: 300" in ended.out or "digits: 28" in ended.out
    assert (tmp_path / "out" / "test_images.png").exists()
    assert run("predict.py", "seed=1").out.splitlines()[:-1] == ended.out.splitlines()[:-1]


def test_a_folder_of_pictures_is_answered(run: Run, trained: Path, drawn: Path, tmp_path: Path) -> None:
    ended = run("predict.py", f"ckpt_path={trained}", f"input='{drawn}'", "hydra.run.dir=out")
    assert ended.code == 0, ended.err
    with open(tmp_path / "out" / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and all(0 < float(row["confidence"]) <= 1 for row in rows)
    right = sum(Path(row["file"]).stem.split("_")[1] == row["digit"] for row in rows)
    assert right >= 18
    assert (tmp_path / "out" / "seen.png").exists()


def test_a_picture_alone_is_answered(run: Run, trained: Path, drawn: Path) -> None:
    picture = next(drawn.glob("*.PNG"))
    ended = run("predict.py", f"ckpt_path={trained / 'checkpoints' / 'best.ckpt'}", f"input='{picture}'")
    assert ended.code == 0 and f"{picture}  " in ended.out


@pytest.mark.promise(STRANGERS, "the same to predict.py")
def test_a_strangers_folder_is_answered(trained: Path, tmp_path: Path, record_property: Record) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    said = hostile(folder)
    answered = {str(folder / name) for name, reason in said.items() if not reason}
    words = [sys.executable, ROOT / "predict.py", f"ckpt_path={trained}", f"input='{folder}'", "hydra.run.dir=out"]
    ascii_alone = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(words, capture_output=True, cwd=tmp_path, env=ascii_alone, timeout=120)
    assert ended.returncode == 1
    assert all(32 <= byte < 127 for byte in (ended.stdout + ended.stderr).replace(b"\n", b""))
    lines = ended.stderr.decode().splitlines()
    assert len(lines) == len(said) - len(answered) and all(line.startswith(f"error: {folder}/") for line in lines)
    assert len(ended.stdout.splitlines()) == len(answered) + 3
    with open(tmp_path / "out" / "predictions.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert {row["file"] for row in csv.DictReader(file)} == answered
    with Image.open(tmp_path / "out" / "seen.png") as sheet:
        assert sheet.width == 600 and sheet.height > 300  # three rows
    record_property("tried", len(said))


@pytest.mark.promise(STRANGERS, "the same to predict.py")
@pytest.mark.parametrize("name", ["fifo.png", "zero.png", "bad\nerror: name\x1b[2J.png", "absent\x1b[2J.png"])
def test_a_strangers_picture_is_refused(run: Run, trained: Path, tmp_path: Path, name: str) -> None:
    hostile(tmp_path)
    line = one_line(run("predict.py", f"ckpt_path={trained}", f"input='{tmp_path / name}'"))
    assert pictures.printable(name) in line and line.isprintable()


def test_bad_input(run: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    assert "run train.py first" in one_line(run("predict.py"))
    assert "input=empty: the folder holds no picture" in one_line(
        run("predict.py", f"ckpt_path={trained}", "input=empty")
    )
    assert "input=none.png" in one_line(run("predict.py", f"ckpt_path={trained}", "input=none.png"))
    assert "ckpt_path=empty: the folder holds no" in one_line(run("predict.py", "ckpt_path=empty"))
    assert "text.ckpt: not a checkpoint that can be read" in one_line(run("predict.py", "ckpt_path=text.ckpt"))
    assert "other.ckpt: not a checkpoint of this project" in one_line(run("predict.py", "ckpt_path=other.ckpt"))
    assert "inptu" in one_line(run("predict.py", "inptu=x"))


def test_training_refuses_a_checkpoint_of_another_network(run: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("hello")
    line = one_line(run("train.py", "data=digits", "model=mlp", f"ckpt_path={trained}"))
    assert "holds the network CNN" in line and "model=cnn" in line
    line = one_line(run("train.py", "data=digits", "model.hidden=[7]", f"ckpt_path={trained}"))
    assert "shape" in line and "model.*" in line
    assert "text.ckpt" in one_line(run("train.py", "data=digits", "ckpt_path=text.ckpt"))


def test_a_run_folder_is_not_written_over(run: Run, trained: Path) -> None:
    before = (trained / "checkpoints" / "last.ckpt").read_bytes()
    assert "holds a run already" in one_line(run("train.py", "data=digits", f"hydra.run.dir={trained}"))
    assert (trained / "checkpoints" / "last.ckpt").read_bytes() == before
