"""Every command of the README and of RESULTS.md is run, as written or with words added that only make it shorter."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Ended, Run, Train, execute, one_line
from PIL import Image, ImageDraw

from mnist_pl.data import MNISTDataModule
from mnist_pl.figures import plots
from mnist_pl.runs.plan import PLAN, SUBDIR

TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition(" #")[0].strip().removeprefix(".venv/bin/")
    for block in re.findall(r"```sh\n(.*?)```", TEXT + (ROOT / "RESULTS.md").read_text(), re.DOTALL)
    for line in block.splitlines()
]
RECIPES = TEXT.partition("The recipes below")[2].split("\n**")[1:]
SHORT = ["callbacks=minimal", "logger=csv", "trainer.limit_train_batches=5", "trainer.max_epochs=1"]
SHORT += ["trainer.limit_val_batches=2", "trainer.limit_test_batches=2"]
TRIED = ["data=digits", "trainer.limit_train_batches=5", "trials=1"]
# Only in `make trust`; tests of these programs are in files of their own.
SLOW = ("joblib", "trainer=ddp", "sweep=", "seed=1,2", "resume=", "tune", "studies/", "presets", "onnx", "format=torch")


def shorten(words: list[str]) -> list[str]:
    """With all of SHORT that `words` say nothing of."""
    given = {name for word in words for name in (word.partition("=")[0], word.partition(".")[0])}
    return [*words, *(word for word in SHORT if word.partition("=")[0] not in given)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """Where a reader is after the first command: one finished run, and pictures of their own."""
    folder = tmp_path_factory.mktemp("reader")
    for place in ("outputs/DATE/TIME", "multirun/presets/earlier", "multirun/DATE/TIME/0"):
        shutil.copytree(trained, folder / place)
    words = ["data=digits", "seed=1"]
    jobs = {"task": words, "hydra": [], "config_name": "train", "config_dirs": [], "subdir": SUBDIR, "jobs": [words]}
    (folder / "multirun/DATE/TIME" / PLAN).write_text(json.dumps(jobs))
    page = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(page).line([(60, 40), (140, 40), (90, 160)], fill=0, width=14)
    for name in ("my_digits/seven.png", "my_pictures/single/7_1.png", "seven.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        page.save(folder / name)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=pytest.mark.long) if any(word in command for word in SLOW) else command
        for command in COMMANDS
        if command.startswith("python ")
    ],
)
def test_a_command_runs(command: str, folder: Path, train_here: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training by itself in this process, which saves its start."""
    words = shlex.split(command)[1:]
    if words[0] == "-m":
        module = words[1].replace(".", "/")
        words[:2] = [f"{module}.py" if (ROOT / f"{module}.py").exists() else f"{module}/__main__.py"]
    for name in ("mlflow", "wandb"):
        if f"logger={name}" in words:
            pytest.importorskip(name)
    if words[0] == "mnist_pl/demo.py":  # a server until Ctrl-C: tests/test_demo.py; here, that its words are understood
        words.append("--cfg=job")
    if words == ["mnist_pl/evaluate.py"]:  # some minutes, of MNIST: tests/test_evaluate.py
        words.append("--cfg=job")
    if "experiment=robust" in words:
        words += ["data.nondigits=100", "data.drawn_digits=100"]
    if words[0] == "mnist_pl/benchmark.py":  # a quarter of an hour; tests/test_benchmark.py measures something
        words += ["--only", "nothing"]
    if words[0] == "mnist_pl/tune.py":
        words += [word for word in TRIED if "study=" not in command or ("trials" in word and word[:7] not in command)]
    if "studies/mine" in command and not (folder / "studies/mine").exists():
        assert execute(folder, "mnist_pl/tune.py", "study=studies/mine", *TRIED).code == 0
    if words[0] == "train.py" and " resume=" not in command:
        words = [*words, *SHORT[:2]] if "ckpt_path" in command else shorten(words)  # whose epochs stay as long
        if re.search("experiment=(?!found)|presets|ckpt_path", command):  # presets do without a fallback
            words.append("data=digits")
        if "presets" in command:
            words.append("seed=1")
        elif "-m" in words:
            words.append(f"hydra.sweep.dir=multirun/{COMMANDS.index(command)}")
        else:
            words.append(f"hydra.run.dir=outputs/{COMMANDS.index(command)}")
    if "resume=outputs/DATE/TIME" in words:
        words += SHORT[:2]
    if "hydra/launcher=joblib" in words:  # whose workers are started by a program of its own
        command = [sys.executable, str(ROOT / words[0]), *words[1:]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        ended = Ended(done.returncode, done.stdout, done.stderr)
    elif words[0] == "train.py" and not re.search(" -m |resume=|--config-dir|trainer=ddp", command):
        monkeypatch.chdir(folder)
        try:
            train_here(*words[1:])
            ended = Ended(0, "", "")
        except SystemExit as refused:
            ended = Ended(1, "", str(refused.code))
    else:
        ended = execute(folder, *words)
    if words[0] == "mnist_pl/data/__main__.py":  # the internet is out of reach: tests/test_files.py has its own server
        assert "not downloaded" in one_line(ended)
    elif "hydra/launcher=slurm" in words and "SLURM_CONF" not in os.environ:  # tests/test_slurm.py has its own cluster
        assert "sbatch" in one_line(ended)
    elif "trainer.accelerator=gpu" in words and not torch.cuda.is_available() and not torch.mps.is_available():
        assert "finds no GPU" in one_line(ended)
    else:
        assert ended.code == 0, ended.err


def test_the_make_targets_exist() -> None:
    targets = {
        target for found in re.findall(r"`make (\w+)|^make (\w+)", TEXT, re.MULTILINE) for target in found if target
    }
    assert {"train", "test", "check", "trust"} <= targets
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.long
def test_tensorboard_shows_the_runs(folder: Path) -> None:
    command = next(command for command in COMMANDS if command.startswith("tensorboard"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*command.split()[1:], "--port", str(port), "--reload_interval", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        answer, deadline = "", time.monotonic() + 60
        while "test/acc" not in answer and time.monotonic() < deadline:
            time.sleep(0.5)
            try:
                url = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"
                answer = urllib.request.urlopen(url, timeout=5).read().decode()
            except OSError:
                continue
        for tag in ("DATE/TIME", "train/loss", "train/loss_step", "val/acc", "test/acc"):
            assert tag in answer
    finally:
        process.kill()
        process.wait()


def test_no_command_is_left_out() -> None:
    known = (
        "python ",
        "make ",
        "tensorboard ",
        'pip install -e ".[',
        "torchrun ",
        "srun ",
        "curl ",
    )  # test_ddp, test_slurm, test_demo
    assert [command for command in COMMANDS if not command.startswith(known)] == []


def test_what_there_is_to_install_is_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"pip install -e \"\.\[(\w+)\]\"", TEXT)) <= extras.keys()
    (requirements,) = re.findall(r"pip install --constraint (\S+) --editable \.`", TEXT)
    assert (ROOT / requirements).exists()


def test_the_page_from_python_runs(run: Run, tmp_path: Path) -> None:
    section = TEXT.partition("## From Python")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (plugged_in,) = re.findall(r"`(Trainer\(strategy=.*?\))`", section.replace("\n", " "))
    more = f"""
from mnist_pl.callbacks import ExactResume, StopOnNaN
from mnist_pl.engine.strategy import FastSingleDevice

trainer = {plugged_in[:-1]}, max_epochs=1)
trainer.fit(model, data)
print("trained", trainer.global_step)
"""
    (tmp_path / "notebook.py").write_text(block + more)
    ended = run(str(tmp_path / "notebook.py"))
    assert ended.code == 0, ended.err
    answers, labels = re.findall(r"(?:answers|labels) tensor\(\[(.*?)\]\)", ended.out, re.DOTALL)
    right = [a == b for a, b in zip(answers.split(","), labels.split(","), strict=True)]
    assert sum(right) > 0.6 * len(right) and f"trained {-(-1372 // 64)}" in ended.out


def test_the_map_names_every_room() -> None:
    (page,) = re.findall(r"```text\n(train.py .*?)```", TEXT, re.DOTALL)
    rooms = [path for path in ROOT.glob("mnist_pl/*") if not path.name.startswith("_")]
    for path in [*ROOT.glob("*.py"), *rooms, ROOT / "conf", ROOT / "tests"]:
        name = path.name if path.suffix else f"{path.name}/"
        assert re.search(rf"(^|/|, ){name}\s*(,|\s)", page, re.MULTILINE), path


IN_A_COPY = """
import runpy, sys
for name in [name for name in sys.modules if name.partition(".")[0] == "mnist_pl"]:
    del sys.modules[name]
sys.path.insert(0, ".")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "recipe",
    [RECIPES[0], *(pytest.param(recipe, marks=pytest.mark.long) for recipe in RECIPES[1:])],
    ids=lambda recipe: recipe.partition("**")[0],
)
def test_a_recipe_works_as_it_stands(recipe: str, run: Run, tmp_path: Path) -> None:
    for name in ("conf", "mnist_pl"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "predict.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "in_a_copy.py").write_text(IN_A_COPY)
    if "my_digits" in recipe:
        data = MNISTDataModule("digits", val_size=0)
        data.setup("fit")
        images, labels = (part[:100] for part in data.splits["test"])
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = tmp_path / "my_digits" / str(int(label))
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 - image.numpy()).resize((100, 100)).save(folder / f"{number}.png")
    lines = 0
    for added, name, text in re.findall(r"```(?:python|yaml)\n# (at the end of )?(\S+)\n(.*?)```", recipe, re.DOTALL):
        lines += text.count("\n")
        with open(tmp_path / name, "a" if added else "x") as file:
            file.write(f"\n\n{text}" if added else text)
    assert 0 < lines < 20
    (command,) = re.findall(r"^`python (.*)`$", recipe, re.MULTILINE)
    words = shorten(shlex.split(command)) + ([] if "data=" in command else ["data=digits"])
    ended = run(str(tmp_path / "in_a_copy.py"), *words)
    assert ended.code == 0, ended.err
    if re.search("conf/model|conf/data|training_step", recipe):
        ended = run(str(tmp_path / "in_a_copy.py"), "predict.py")
        assert ended.code == 0, ended.err
    if "weight_norm" in command:
        (record,) = tmp_path.glob("outputs/*/*/metrics.csv")
        assert [row["step"] for row in plots.rows(record) if "weight_norm" in row] == [5]
