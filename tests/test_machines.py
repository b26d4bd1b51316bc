"""Other machines, as far as a Linux machine can be made to look like them."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Compose, Ended, Train
from test_train import QUICK, summary

from mnist_pl.engine import resume
from mnist_pl.reading import checkpoint
from mnist_pl.runs.folders import label

# What Windows lacks, taken away before anything is imported.
BARE = """
import os, runpy, signal, sys
import filelock  # which has another way there
for name in ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM", "SIGHUP"):
    delattr(signal, name)
for name in ("fcntl", "termios", "pwd", "grp", "pty"):
    sys.modules[name] = None
open_file = os.open
def no_folders(path, *rest, **more):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return open_file(path, *rest, **more)
os.open = no_folders
sys.path.insert(0, {root!r})
sys.argv = {argv!r}
runpy.run_path({argv!r}[0], run_name="__main__")
"""


def on_windows(folder: Path, script: str, *words: str) -> Ended:
    code = BARE.format(root=str(ROOT), argv=[str(ROOT / script), *words])
    ended = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.long
def test_without_what_windows_lacks(tmp_path: Path) -> None:
    ended = on_windows(tmp_path, "train.py", *QUICK, "model.hidden=[8]", "hydra.run.dir=run")
    assert ended.code == 0 and not ended.err, ended.err


@pytest.mark.parametrize("names", [("SIGINT", "SIGTERM"), ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")])
def test_signals_are_those_that_there_are(names: tuple[str, ...]) -> None:
    missing = {"SIGUSR1", "SIGUSR2"} - set(names)
    code = f"import signal\nfor name in {missing}: delattr(signal, name)\n"
    code += "import mnist_pl.signals as s\ns.end_on_signals()\nprint(*(number.name for number in s.STOPPING))\n"
    code += "signal.raise_signal(signal.SIGTERM)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 143 and ended.stdout.split() == list(names)
    assert ended.stderr == "stopped by SIGTERM; run the same command again\n"


REFUSING = """
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
int fsync(int file) {
    struct stat about;
    fstat(file, &about);
    if (!S_ISDIR(about.st_mode) && !getenv("REFUSE_FILES")) return 0;
    errno = EINVAL;
    return -1;
}
"""


@pytest.mark.parametrize("files", [False, True], ids=["folders", "files too"])
def test_a_file_system_that_refuses_to_flush(tmp_path: Path, files: bool) -> None:
    """The program asks the C library for it, and gets this one."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    (tmp_path / "refusing.c").write_text(REFUSING)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "refusing.so", "refusing.c"], cwd=tmp_path, check=True)
    variables = {**os.environ, "LD_PRELOAD": str(tmp_path / "refusing.so"), **({"REFUSE_FILES": "1"} if files else {})}
    code = "import sys; from pathlib import Path; from mnist_pl.storage import write\n"
    code += "write(Path(sys.argv[1], 'a', 'b'), b'whole')"
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "a" / "b").read_bytes() == b"whole" and len(list((tmp_path / "a").iterdir())) == 1


ILLEGAL = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


def test_names_that_are_made_of_settings_are_legal_on_windows(
    compose: Compose, train_here: Train, tmp_path: Path
) -> None:
    words = ["data=digits", "model=mlp", "model.hidden=[8]", "data.augment={shift: 1, rotate: 2}", "scheduler=none"]
    words += ["model.mean=0.5", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.precision=32-true"]
    assert not ILLEGAL.search(label(compose(*words)))
    train_here(*words, "callbacks.projector=null")
    names = [path.relative_to(tmp_path).parts for path in tmp_path.glob("**/*")]
    assert not [part for parts in names for part in parts if ILLEGAL.search(part)]
    assert len({tuple(part.lower() for part in parts) for parts in names}) == len(names), "nor do they differ by case"


def test_text_files_have_an_encoding() -> None:
    """Elsewhere the default is not UTF-8."""
    for path in [*ROOT.glob("mnist_pl/**/*.py"), ROOT / "train.py", ROOT / "predict.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or path.name == "benchmark.py":
                continue
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            is_text = name in ("read_text", "write_text")
            if name == "open" and isinstance(node.func, ast.Name):
                is_text = "b" not in (node.args[1].value if len(node.args) > 1 else "r")  # type: ignore[attr-defined]
            assert not is_text or "encoding" in {word.arg for word in node.keywords}, f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "kept",
    [
        {"cuda": torch.zeros(16, dtype=torch.uint8)},
        pytest.param({"mps": torch.zeros(44, dtype=torch.uint8)}, marks=pytest.mark.long),
        pytest.param({"cpu": None}, marks=pytest.mark.long),
        None,
    ],
    ids=["cuda", "mps", "cpu", "0.1"],
)
def test_a_checkpoint_of_another_kind_of_device_is_resumed(train_here: Train, tmp_path: Path, kept: Any) -> None:
    train_here(*QUICK, "model.hidden=[8]")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    whole = checkpoint.read(path)
    whole["training"]["random_device"] = kept
    torch.save(whole, path)
    train_here("resume=run", "trainer.max_epochs=2")
    assert summary(tmp_path / "run")["epochs"] == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")
def test_the_random_state_of_a_gpu_is_put_back() -> None:
    device = torch.device("cuda", 0)
    state = resume._get_device_state(device)
    drawn = torch.rand(3, device=device)
    resume._set_device_state(device, state)
    assert torch.equal(drawn, torch.rand(3, device=device))
