"""What is asked for is shown, as it can be pasted; what is not, stays away; nobody has to read it."""

import logging
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Run, Train
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from mnist_pl.storage import as_word, in_shell, one_line, quoted, read_value

QUICK = ["data=digits", "callbacks=minimal", "logger=csv", "model=mlp", "model.hidden=[8]", "trainer.max_epochs=1"]
QUICK += ["trainer.limit_train_batches=6", "trainer.limit_val_batches=2", "trainer.limit_test_batches=2"]
CHATTER = re.compile("GPU available|TPU available|stopped:|Restor|💡|litlogger|`Trainer|Loaded model|Seed set")
NASTY = ["a b  c", "it's", 'q"uote', "$HOME${x}", "a=b,c", "[1]{2}(3)", "ünï 😀", "-lead", "~", "last", "null", "1e3"]
NASTY += [
    "back\\slash",
    "back\\'s",
    "trail\\",
    " lead ",
    "new\nline\t",
    "a;b&c|d>e",
    "`x`!#*?",
    "\\\\${oc.env:HOME}",
    "\udcff",
]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a program's terminal and log file would get, as from Hydra's handlers."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(logging.root, "handlers", [handler])
    monkeypatch.setattr(logging.root, "level", logging.INFO)
    return lines


class Says(Callback):
    """A person's own."""

    def on_fit_start(self, *_: Any) -> None:
        rank_zero_info("said by one's own callback")


def target(name: str, **more: Any) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in {"_target_": name, **more}.items()) + "}"


LIGHTNINGS = "lightning.pytorch.callbacks."
STOPPING = target(f"{LIGHTNINGS}EarlyStopping", monitor="val/acc", mode="max", verbose="true")
SAVING = target(f"{LIGHTNINGS}ModelCheckpoint", monitor="val/loss", verbose="true")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([], []),
        ([f"+callbacks.stopping={STOPPING}"], ["Metric val/acc improved. New best score"]),
        pytest.param([f"+callbacks.saving={SAVING}"], ["'val/loss' reached"], marks=pytest.mark.long),
        pytest.param(
            [f"+callbacks.summary={target(f'{LIGHTNINGS}ModelSummary', max_depth=2)}"],
            ["Trainable params", "net.0"],
            marks=pytest.mark.long,
        ),
        ([f"+callbacks.says={target('test_shown.Says')}"], ["said by one's own callback"]),
        (["trainer.profiler=simple"], ["FIT Profiler Report", "TEST Profiler Report", "run_training_epoch"]),
    ],
    ids=["nothing", "EarlyStopping", "ModelCheckpoint", "ModelSummary", "own", "profiler"],
)
def test_what_was_asked_for_is_shown_and_nothing_else(
    train_here: Train, log: list[str], words: list[str], shown: list[str]
) -> None:
    train_here(*QUICK, *words)
    text = "\n".join(log)
    assert all(line in text for line in shown), text
    assert not CHATTER.search(text), text
    head = next(index for index, line in enumerate(log) if line.startswith("  epoch"))
    assert log[head + 1].startswith("    0/1"), "nothing comes between the table's head and its first row"


@pytest.mark.parametrize(
    "profiler",
    [
        "simple",
        pytest.param(target("lightning.pytorch.profilers.SimpleProfiler", extended="false"), marks=pytest.mark.long),
        pytest.param("advanced", marks=pytest.mark.long),
        pytest.param("pytorch", marks=[pytest.mark.long, pytest.mark.filterwarnings("ignore:.*Profiler")]),
    ],
)
def test_a_profilers_report_is_in_the_runs_folder(
    train_here: Train, log: list[str], profiler: str, tmp_path: Path
) -> None:
    train_here(*QUICK, f"trainer.profiler={profiler}")
    for stage in ("fit", "test"):
        report = (tmp_path / "run" / f"{stage}-profile.txt").read_text().strip()
        assert report and any(report in line for line in log)


def test_a_profilers_own_folder_is_used(train_here: Train, tmp_path: Path) -> None:
    node = target("lightning.pytorch.profilers.SimpleProfiler", dirpath=tmp_path / "mine", filename="times")
    train_here(*QUICK, f"trainer.profiler={node}")
    assert (tmp_path / "mine" / "fit-times.txt").exists() and not (tmp_path / "run" / "fit-profile.txt").exists()


def paste(line: str) -> list[str]:
    """The words that a shell makes of a line."""
    pasted = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return [os.fsdecode(word) for word in pasted.stdout.split(b"\0")[:-1]]


def test_a_hint_can_be_pasted_whatever_the_folder_is_called() -> None:
    hints = [as_word("resume", name) for name in NASTY]
    assert all(hint == one_line(hint) for hint in hints), "an error has one line, and no two spaces together"
    for name, word in zip(NASTY, paste(" ".join(hints)), strict=True):
        value = read_value(word.removeprefix("resume="))
        assert value == (os.path.abspath(name) if name in ("~", "last", "null") else name)
    assert as_word("ckpt_path", "outputs/2026-11-21/14-04-02") == "ckpt_path=outputs/2026-11-21/14-04-02"
    assert paste(" ".join(map(in_shell, NASTY))) == NASTY


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("\\'\"${}x:., =[]~#\n"), min_size=1, max_size=8))
def test_hydra_reads_what_was_quoted(text: str) -> None:
    assert read_value(quoted(text)) == text


@pytest.mark.long
@pytest.mark.parametrize("name", ["a b,[c]='d'", "."])
def test_what_a_hint_promises_happens(run: Run, train_here: Train, log: list[str], tmp_path: Path, name: str) -> None:
    train_here(*QUICK, "logger=tensorboard", folder=name)
    hints = dict(line.split(maxsplit=1) for line in log[-1].splitlines() if line.startswith(("look", "predict")))
    words = shlex.split(hints["predict"])[1:]
    assert run(*words, "hydra.run.dir=out").code == 0
    (folder,) = paste(hints["look"].removeprefix("tensorboard --logdir"))
    assert (tmp_path / folder).samefile(tmp_path / name)
    with pytest.raises(SystemExit) as refused:
        train_here(*QUICK, folder=name)
    (word,) = paste(str(refused.value).partition("resume it with ")[2])
    train_here(word, "trainer.max_epochs=2")
    assert (tmp_path / name / "metrics.csv").read_text().count("\n") > 4


def test_another_working_folder(run: Run, tmp_path: Path) -> None:
    """What is typed is meant from the folder where it is typed, and what is printed too."""
    chdir = ["hydra.job.chdir=true", "hydra.run.dir=outputs/more"]
    assert run("train.py", *QUICK, "logger=tensorboard", *chdir[:1], "hydra.run.dir=outputs/run").code == 0
    ended = run("train.py", *QUICK, "ckpt_path=last", *chdir, "trainer.max_epochs=2")
    assert "in        outputs/more\n" in ended.out and "predict.py ckpt_path=outputs/more\n" in ended.out, ended.err
    assert (
        f"ckpt_path: {tmp_path}/outputs/run/checkpoints/last.ckpt"
        in (tmp_path / "outputs/more/.hydra/config.yaml").read_text()
    )
    ended = run("train.py", "resume=outputs/more", *chdir[:1], "trainer.max_epochs=3")
    assert ended.code == 0 and "3/3" in ended.out, ended.err
    assert not (tmp_path / "outputs" / "more" / "outputs").exists()


# A program whose reader has gone, or whose terminal was closed.
UNREAD = """
import os, pty, runpy, sys
reading, writing = os.pipe() if sys.argv.pop(1) == "pipe" else pty.openpty()
os.close(reading)
os.dup2(writing, 1), os.dup2(writing, 2)
runpy.run_path({!r}, run_name="__main__")
"""


@pytest.mark.parametrize("stream", [pytest.param("pipe", marks=pytest.mark.long), "terminal"])
def test_a_reader_that_goes_away_ends_nothing(run: Run, stream: str, tmp_path: Path) -> None:
    (tmp_path / "unread.py").write_text(UNREAD.format(str(ROOT / "train.py")))
    assert run(str(tmp_path / "unread.py"), stream, *QUICK, "hydra.run.dir=run").code == 0
    assert (tmp_path / "run" / "summary.json").exists()
