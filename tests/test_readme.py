"""Every command in the README is run, as written or with words added that only make it shorter."""

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

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line.partition(" #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """Where a reader is after the first command: one finished run, and pictures of their own."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(trained, folder / "outputs" / "DATE" / "TIME")
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
    if words == ["mnist_pl/data.py"]:  # there is no network: tests/test_data.py downloads from a server of its own
        assert "not downloaded" in execute(folder, *words).err
        return
    if words == ["mnist_pl/benchmark.py"]:  # it takes six minutes
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
    known = ("python ", "make ", "tensorboard ", ". .venv/bin/activate")
    assert [command for command in COMMANDS if not command.startswith(known)] == []


def test_the_map_names_every_file() -> None:
    for path in [*ROOT.glob("*.py"), *ROOT.glob("mnist_pl/*.py")]:
        if path.name != "__init__.py":
            assert str(path.relative_to(ROOT)) in TEXT, path
