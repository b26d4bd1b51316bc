"""Every command in the README is run, as written or with words added that only make it shorter."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, execute
from PIL import Image, ImageDraw

from mnist_pl import plots
from mnist_pl.data import MNISTDataModule

TEXT = (ROOT / "README.md").read_text()
USE, _, RECIPES = TEXT.partition("The recipes below")
BLOCKS = re.findall(r"```sh\n(.*?)```", USE, re.DOTALL)
COMMANDS = [
    line.partition(" #")[0].strip().removeprefix(".venv/bin/")
    for block in BLOCKS
    for line in block.splitlines()
    if line.strip()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """Where a reader is after the first command: one finished run, and pictures of their own."""
    folder = tmp_path_factory.mktemp("reader")
    for place in ("outputs/DATE/TIME", "multirun/presets/earlier"):
        shutil.copytree(trained, folder / place)
    (folder / "my_digits").mkdir()
    page = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(page).line([(60, 40), (140, 40), (90, 160)], fill=0, width=14)
    page.save(folder / "my_digits" / "seven.png")
    return folder


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python ")])
def test_a_command_runs(command: str, folder: Path) -> None:
    words = [word.replace('"', "") for word in re.findall(r'(?:"[^"]*"|\S)+', command)][1:]
    if words[0] == "-m":
        words = [words[1].replace(".", "/") + ".py", *words[2:]]
    if words == ["mnist_pl/data.py"]:  # there is no network: tests/test_files.py downloads from a server of its own
        assert "not downloaded" in execute(folder, *words).err
        return
    for name in ("mlflow", "wandb"):
        if f"logger={name}" in words:
            pytest.importorskip(name)
    if words == ["mnist_pl/benchmark.py"]:  # a quarter of an hour
        words += ["--only", "reading"]
    if words[0] == "train.py" and "resume=" not in command:
        shorter = ["trainer.log_every_n_steps=1"]
        shorter += [] if "ckpt_path" in command else ["trainer.limit_train_batches=5"]
        if "trainer.max_epochs" not in command:
            shorter.append("trainer.max_epochs=6" if "ckpt_path" in command else "trainer.max_epochs=1")
        if "experiment" in command or "presets" in command or "ckpt_path" in command:
            shorter.append("data=digits")  # presets do without a fallback
        if "presets" in command:
            shorter.append("seed=1")
        words += shorter
        time.sleep(1 - time.time() % 1)  # run folders are named by the second
    ended = execute(folder, *words)
    assert ended.code == 0, ended.err


def test_the_make_targets_exist() -> None:
    targets = [command.split()[1] for command in COMMANDS if command.startswith("make ")]
    assert {"train", "test", "check"} <= set(targets)
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_tensorboard_shows_the_runs(folder: Path) -> None:
    command = next(command for command in COMMANDS if command.startswith("tensorboard"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        sys.executable,
        "-m",
        "tensorboard.main",
        *command.split()[1:],
        "--port",
        str(port),
        "--reload_interval",
        "1",
    ]
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        answer, deadline = "", time.monotonic() + 60
        while "val/acc" not in answer and time.monotonic() < deadline:
            time.sleep(0.5)
            try:
                url = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"
                answer = urllib.request.urlopen(url, timeout=5).read().decode()
            except OSError:
                continue
        assert "DATE/TIME" in answer and "train/loss" in answer and "val/acc" in answer and "test/acc" in answer
    finally:
        process.kill()
        process.wait()


def test_no_command_is_left_out() -> None:
    known = ("python ", "make ", "tensorboard ", 'pip install -e ".[mlflow]"')
    assert [command for command in COMMANDS if not command.startswith(known)] == []


def test_the_map_names_every_file() -> None:
    for path in [*ROOT.glob("*.py"), *ROOT.glob("mnist_pl/*.py")]:
        if path.name != "__init__.py":
            assert str(path.relative_to(ROOT)) in TEXT, path


FILE = re.compile(r"```(?:python|yaml)\n# (at the end of )?(\S+)\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("recipe", RECIPES.split("\n**")[1:], ids=lambda recipe: recipe.partition("**")[0])
def test_a_recipe_works_as_it_stands(recipe: str, trained: Path, tmp_path: Path) -> None:
    for name in ("conf", "mnist_pl", "train.py", "predict.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    data = MNISTDataModule("digits", val_size=0)
    data.setup("fit")
    for number, (image, label) in enumerate(zip(*data.splits["test"], strict=True)):
        folder = tmp_path / "my_digits" / str(int(label))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - image.numpy()).resize((100, 100)).save(folder / f"{number}.png")
    lines = 0
    for added, name, text in FILE.findall(recipe):
        lines += text.count("\n")
        with open(tmp_path / name, "a" if added else "x") as file:
            file.write(f"\n\n{text}" if added else text)
    assert 0 < lines < 20
    (command,) = re.findall(r"```sh\npython (.*?)\n```", recipe)
    words = [word.replace('"', "") for word in re.findall(r'(?:"[^"]*"|\S)+', command)]
    words += [] if "data=" in command else ["data=digits"]
    words += ["trainer.max_epochs=2"]
    variables = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for more in (words, ["predict.py"]) if "conf/model" in recipe or "conf/data" in recipe else (words,):
        ended = subprocess.run(
            [sys.executable, *more], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=180
        )
        assert ended.returncode == 0, ended.stderr
    if "weight_norm" in command:
        record = next(tmp_path.glob("outputs/*/*/metrics.csv"))
        steps = [row["step"] for row in plots.rows(record) if "weight_norm" in row]
        assert steps == [40, 81], "Lightning counts from 0"
