"""Searches: the space, the study that outlives its processes, and the preset that it ends with."""

import csv
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import hydra
import pytest
from conftest import ROOT, Ended, Run, one_line, start
from omegaconf import OmegaConf

pytest.importorskip("optuna")

from mnist_pl.runs import search  # noqa: E402
from mnist_pl.runs.space import Space, as_hydra, check_ends, read_space, suggest_params, words_of  # noqa: E402
from mnist_pl.tune import check, check_can_be_searched  # noqa: E402

SMALL = """# @package _global_
defaults: [override /model: mlp]
data: {dataset: digits, batch_size: 64, val_size: 200}
trainer: {max_epochs: 2, limit_train_batches: 8}
space:
  optimizer: [sgd, adam]
  optimizer.lr: {low: 1.0e-4, high: 0.3, log: true}
  optimizer.momentum: {low: 0.0, high: 0.9}
  scheduler: [none, onecycle]
  model.hidden: [[8], [16, 8]]
"""
KILLS = int(os.environ.get("KILLS", 30))
WORDS = ["--config-dir=conf", "tune=small", "study=study"]


@pytest.fixture
def tune(run: Run, tmp_path: Path) -> Callable[..., Ended]:
    """Runs the command; its space is SMALL."""
    small = tmp_path / "conf" / "tune" / "small.yaml"
    small.parent.mkdir(parents=True)
    small.write_text(SMALL)
    return lambda *words, **more: run("mnist_pl/tune.py", *words, **more)


def rows(study: Path) -> list[dict[str, str]]:
    """Of trials.csv, in the order of the trials."""
    with open(study / "trials.csv", newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["trial"]))


def tried(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if "." in name or name in ("optimizer", "scheduler")}


def outcomes(study: Path) -> list[tuple[Any, ...]]:
    """What a study found, without the times, and without what was interrupted."""
    kept = [row for row in rows(study) if not row["state"].startswith("interrupted")]
    return [(sorted(tried(row).items()), row["val/acc"], row["state"]) for row in kept]


@pytest.mark.promise("a search ends with a preset that gives the score it claims", "to the last bit, by train.py")
def test_a_study_ends_with_its_answer(tune: Callable[..., Ended], run: Run, tmp_path: Path) -> None:
    ended = tune(*WORDS, "trials=10")
    assert ended.code == 0 and not ended.err, ended.err
    found = rows(tmp_path / "study")
    states = {row["state"] for row in found}
    assert len(found) == 10 and states == {"finished", "given up after 1"}, "some are given up, at the earliest moment"
    assert all((row["optimizer.momentum"] == "") == (row["optimizer"] == "adam") for row in found)
    best = max((row for row in found if row["state"] == "finished"), key=lambda row: float(row["val/acc"]))
    assert f"{float(best['val/acc']):.2%} val/acc, trial {best['trial']}" in ended.out
    summary = json.loads((tmp_path / "study" / best["trial"] / "summary.json").read_text())
    assert summary["test/acc"] is None and summary["val/acc"] == pytest.approx(float(best["val/acc"]), abs=1e-6)
    assert {"results.md", "history.png", "importance.png"} <= {path.name for path in (tmp_path / "study").iterdir()}
    (command,) = (line for line in ended.out.splitlines() if line.startswith("run it"))
    script, *words = command.removeprefix("run it").split()[1:]
    again = run(script, *words, "hydra.run.dir=again", "callbacks=minimal", "logger=csv")
    assert again.code == 0, again.err
    assert exact_score(tmp_path / "again") == float(best["val/acc"]) == exact_score(tmp_path / "study" / best["trial"])


def exact_score(folder: Path) -> float:
    from mnist_pl.reading import checkpoint

    return checkpoint.read(folder / "checkpoints" / "best.ckpt")["metrics"]["val/acc"]


@pytest.mark.long
@pytest.mark.promise("a killed search goes on as if it had not been", "SIGKILL within a trial")
def test_a_killed_study_goes_on(tune: Callable[..., Ended], tmp_path: Path) -> None:
    assert tune(*WORDS, "trials=5", "study=whole").code == 0
    kill_at(tmp_path, "study", 2, 0.0)
    ended = tune("--config-dir=conf", "study=study", "trials=5")
    assert ended.code == 0 and not ended.err, ended.err
    states = [row["state"] for row in rows(tmp_path / "study")]
    assert states[2] == "interrupted, again as 3" and len(states) == 6
    assert outcomes(tmp_path / "study") == outcomes(tmp_path / "whole")
    (tmp_path / "study" / "trials.csv").unlink()
    ended = tune("--config-dir=conf", "study=study", "trials=0")
    assert ended.code == 0 and len(rows(tmp_path / "study")) == 6, "the report alone"
    for word, said in {"trainer.max_epochs=3": "max_epochs: 3 ", "optimizer=sgd": "_target_: torch.optim.SGD "}.items():
        ended = tune("--config-dir=conf", "study=study", "trials=9", word)
        assert f"study=study: was begun with other settings ({said}" in one_line(ended)


def kill_at(folder: Path, study: str, trial: int, seconds: float) -> None:
    """Starts a process on the study; kills it some time after the trial has begun."""
    process = start(folder, "mnist_pl/tune.py", *WORDS[:2], f"study={study}", "trials=5")
    while not (folder / study / str(trial) / search.LOCK).exists() and process.is_alive():
        time.sleep(0.002)
    process.join(seconds)
    process.kill()
    process.join()


@pytest.mark.long
@pytest.mark.promise("a killed search goes on as if it had not been", "SIGKILL at random moments")
def test_a_study_killed_at_random_moments(
    tune: Callable[..., Ended], tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    assert tune(*WORDS, "trials=5", "study=whole").code == 0
    kills = 0
    for number in range(min(10, -(-KILLS // 3))):
        random = Random(number)
        study = f"study{number}"
        for _ in range(3):
            kill_at(tmp_path, study, random.randrange(6), random.uniform(0, 1))
            kills += 1
        ended = tune(*WORDS[:2], f"study={study}", "trials=5")
        assert ended.code == 0 and not ended.err, f"{number}: {ended.err}"
        assert outcomes(tmp_path / study) == outcomes(tmp_path / "whole"), number
    record_property("tried", kills)


@pytest.mark.long
@pytest.mark.promise("several processes work on one search, and none of its trials is lost or run twice", "three")
@pytest.mark.parametrize(
    "storage",
    ["journal", pytest.param("sqlite", marks=pytest.mark.long), pytest.param("URL", marks=pytest.mark.long)],
)
def test_several_processes_work_on_one_study(tune: Callable[..., Ended], tmp_path: Path, storage: str) -> None:
    processes = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        where = [f"--config-dir={tmp_path}/conf", "tune=small", f"study={tmp_path}/study"]
        where += [f"storage={storage.replace('URL', f'sqlite:///{tmp_path}/shared.db')}"]
        processes.append(start(tmp_path / str(number), "mnist_pl/tune.py", *where, "trials=9"))
    for process in processes:
        process.join(120)
    errors = [(tmp_path / str(number) / ".err").read_text() for number in range(3)]
    assert [process.exitcode for process in processes] == [0, 0, 0] and not any(errors), errors
    found = rows(tmp_path / "study")
    assert len(found) == 9 and not [row for row in found if row["state"].startswith(("failed", "interrupted"))]
    assert len({row["optimizer.lr"] for row in found}) == 9, "each proposes something else"
    took_part = [number for number in range(3) if "/9 " in (tmp_path / str(number) / ".out").read_text()]
    assert len(took_part) > 1


def test_a_trial_that_has_just_finished_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process's, which was under way when the trials were listed and ends before its lock is looked at."""
    import optuna

    study = optuna.create_study()
    trial = study.ask()
    lock = tmp_path / "0" / search.LOCK
    lock.parent.mkdir()
    lock.touch()
    real = search.FileLock

    def ends_meanwhile(*args: Any, **kwargs: Any) -> Any:
        study.tell(trial, 1.0)
        return real(*args, **kwargs)

    monkeypatch.setattr(search, "FileLock", ends_meanwhile)
    search._give_up_the_dead(study, tmp_path, shared=False)
    (only,) = study.get_trials()
    assert only.value == 1.0


@pytest.mark.long
def test_a_signal_ends_a_study_with_a_report(tune: Callable[..., Ended], tmp_path: Path) -> None:
    process = start(tmp_path, "mnist_pl/tune.py", *WORDS, "trials=100")
    while not (tmp_path / "study" / "2" / "metrics.csv").exists() and process.is_alive():
        time.sleep(0.002)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(60)
    out, err = ((tmp_path / name).read_text() for name in (".out", ".err"))
    assert process.exitcode == 128 + signal.SIGTERM, err
    said = [line for line in (out + err).splitlines() if line.startswith("stopped by SIGTERM")]
    assert len(said) == 1 and said[0].endswith("continue with python -m mnist_pl.tune study=study")
    assert "| interrupted, again as" in out and (tmp_path / "study" / "history.png").exists()


@pytest.mark.long
def test_a_failed_trial_is_a_row(tune: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "conf/tune/small.yaml").write_text(
        SMALL.partition("space:")[0] + "space: {optimizer.lr: [1e30, 0.01]}\n"
    )
    ended = tune(*WORDS, "trials=6", "optimizer=sgd", "scheduler=none", "trainer.log_every_n_steps=1")
    assert ended.code == 0 and not ended.err, ended.err
    states = {row["optimizer.lr"]: row["state"] for row in rows(tmp_path / "study")}
    assert states["1e+30"].startswith("failed: ") and "NaN or infinite" in states["1e+30"]
    assert states["0.01"] == "finished"


Read = Callable[..., Space]


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Read]:
    """The space that a text in YAML stands for, with some words on the command line."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda text, *words: read_space(OmegaConf.to_container(OmegaConf.create(text)), list(words))[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimizer.lrr: [1, 2]", "space.optimizer.lrr: there is no such setting; did you mean lr?"),
        ("optimzer.lr: [1]", "space.optimzer.lr: there is no such group to search in; did you mean optimizer?"),
        ("optimizer: [sdg, adam]", "must be a list of options of optimizer; did you mean sgd?"),
        ("optimizer: {low: 1, high: 2}", "must be a list of options of optimizer"),
        ("optimizer.momentum: [0.5]", "space.optimizer.momentum: there is no such setting"),
        ("optimizer.lr: []", "space.optimizer.lr=[]: is empty"),
        ("optimizer.lr: {choices: []}", "is empty"),
        ("optimizer.lr: [0.1, 0.1]", "has 0.1 twice"),
        ("optimizer.lr: 0.1", "space.optimizer.lr=0.1: must be a list, or a range"),
        ("optimizer.lr: {low: 1, hihg: 2}", "must be a list, or a range"),
        ("optimizer.lr: {low: 2, high: 1}", "low must not be above high"),
        ("optimizer.lr: {low: 0, high: 1, log: true}", "low must be positive where log is true"),
        ("optimizer.lr: {low: a, high: 1}", "low must be a number, got 'a'"),
        ("optimizer.lr: {low: 0, high: .inf}", "high must be a number, got inf"),
        ("optimizer.lr: {low: 0, high: 1, step: 0}", "step must be positive"),
        ("optimizer.lr: {low: 1, high: 2, step: 0.1, log: true}", "step must be positive, and not together with log"),
        ("optimizer.lr: {low: 1, high: 2, log: 3}", "log must be true or false, got 3"),
        ("data.val_size: [100, 200]", "space.data.val_size: must be the same for all trials"),
        ("seed: [1, 2]", "space.seed: there is no such group to search in"),
        ("model._target_: [a, b]", "there is no such setting"),
        ("{}", "space must name settings"),
    ],
)
def test_a_bad_space_is_named(read: Read, text: str, said: str) -> None:
    with pytest.raises(ValueError) as error:
        read(text)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_the_command_line_sets_is_not_searched(read: Read) -> None:
    text = (
        "{optimizer: [sgd, adam], optimizer.lr: [0.1], optimizer.momentum: {low: 0, high: 0.9}, model.dropout: [0.1]}"
    )
    assert list(read(text)) == ["optimizer", "optimizer.lr", "optimizer.momentum", "model.dropout"]
    assert list(read(text, "optimizer=adam", "model.dropout=0.3")) == ["optimizer.lr"]
    assert list(read(text, "optimizer=sgd")) == ["optimizer.lr", "optimizer.momentum", "model.dropout"]
    with pytest.raises(ValueError, match="the command line fixes all of it"):
        read("{optimizer.lr: [0.1]}", "optimizer.lr=1")


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(path.stem, marks=[] if path.stem == "mlp" else pytest.mark.long)
        for path in sorted((ROOT / "conf" / "tune").glob("*.yaml"))
    ],
)
def test_each_space_of_ours_can_be_tried(option: str, read: Read, tmp_path: Path, unchanged_process: None) -> None:
    from optuna import create_study
    from optuna.samplers import RandomSampler

    from mnist_pl.runs.build import build

    words = [f"tune={option}", "study=x"]
    ours = read(OmegaConf.to_yaml(hydra.compose("tune", words).space), *words)

    def make(more: list[str]) -> None:
        with search.as_a_run(words, more, tmp_path) as cfg:
            build(cfg)

    check_ends(ours, make)
    study = create_study(sampler=RandomSampler(seed=1))
    for _ in range(3):
        make(words_of(suggest_params(study.ask(), ours)))


def test_an_end_that_cannot_be_is_named(read: Read) -> None:
    def check(words: list[str]) -> None:
        values = dict(word.split("=") for word in words)
        if float(values.get("optimizer.momentum", 0)) > 1:
            assert values.get("optimizer", "sgd") == "sgd"
            raise ValueError("momentum")
        if values.get("optimizer") == "adam" and values.get("data.batch_size") == "8":
            raise RuntimeError("only together")

    together = "{optimizer: [adam, sgd], data.batch_size: [8, 16], optimizer.momentum: {low: 0, high: %s}}"
    check_ends(read(together % 0.9), check)
    with pytest.raises(ValueError, match="momentum"):
        check_ends(read(together % 1.5), check)


@pytest.mark.parametrize(
    "value", [0.1, 1e-30, 1 / 3, 5, True, None, "adam", "a=b, ${c}'", [1, [2.5, "x y"]], {"shift": 2, "by": [1]}, "1"]
)
def test_a_value_is_written_as_hydra_reads_it(value: Any) -> None:
    from mnist_pl.storage import read_value

    assert read_value(as_hydra(value)) == value


def test_half_a_line_of_the_journal_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    for before, after in ((b"", b""), (b"{}\n", b"{}\n"), (b'{}\n{"a": ', b"{}\n"), (b"{", b"")):
        path.write_bytes(before)
        lock = search.JournalLock(str(path))
        lock.acquire()
        lock.release()
        assert path.read_bytes() == after


def test_without_optuna_one_line_says_how(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r'not installed; pip install -e "\.\[tune\]"'):
        check(hydra.compose("tune"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trials=null"], "trials=null minutes=null: would never end"),
        (["trials=-1"], "trials must not be negative, got -1"),
        (["minutes=-1"], "minutes must not be negative, got -1"),
        (["sampler=tep"], "sampler=tep: must be one of tpe, random"),
        (["pruner=x"], "pruner=x: must be median or null"),
        (["storage=x"], "storage=x: must be journal, sqlite, or a database's URL"),
        (["storage=sqlite:///missing/secret.db"], "storage=sqlite: cannot be opened"),
        (["storage=nosuch://me:secret@host/name"], "storage=nosuch: cannot be opened"),
        (["ckpt_path=x"], "ckpt_path=x: trials start afresh"),
        (["fit=false"], "fit=false: a search has to train"),
        (["data.validate_on_test=true"], "nothing may be chosen by the test images"),
        (["data.val_size=0"], "data.val_size=0: a search chooses by validation images"),
        (["trainer.limit_val_batches=0"], "trainer.limit_val_batches=0: a search chooses by validation images"),
        (["trainer.max_epochs=a"], "trainer.max_epochs must be a whole number"),
    ],
)
def test_a_bad_setting_is_named(
    read: Read, tmp_path: Path, words: list[str], said: str, unchanged_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnist_pl.runs.build import build

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        cfg = hydra.compose("tune", words)
        check(cfg)
        with search.as_a_run(words, [], tmp_path) as usual:
            data, _, trainer = build(usual)
            check_can_be_searched(data, trainer)
        search.open_study(cfg, tmp_path, "settings")
    assert said in str(error.value) and "secret" not in str(error.value)


def test_a_bad_command_is_one_line(tune: Callable[..., Ended], tmp_path: Path) -> None:
    assert "-m: tune is a search by itself" in one_line(tune(*WORDS, "-m"))
    assert "study='': must be a folder" in one_line(tune("study=''"))
    assert "trails: there is no such setting; did you mean trials?" in one_line(tune(*WORDS, "trails=1"))
    assert not list(tmp_path.glob("study/[0-9]*")), "before any trial"
