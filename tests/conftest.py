"""The programs are run for real: in a process of their own, forked from one that has imported torch, or in this one."""

import copy
import gc
import logging
import multiprocessing
import os
import random
import runpy
import sys
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import md5
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from lightning import Trainer
    from omegaconf import DictConfig

    from mnist_pl.data import MNISTDataModule
    from mnist_pl.models import DigitClassifier

ROOT = Path(__file__).parent.parent
MNIST_ROOT = os.path.abspath(os.environ.get("MNIST_ROOT", ROOT / "data"))
HAS_MNIST = (Path(MNIST_ROOT) / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").exists()

needs_mnist = pytest.mark.skipif(not HAS_MNIST, reason="MNIST is neither in data/ nor under MNIST_ROOT")

if "PYTEST_XDIST_WORKER" in os.environ:  # side by side, threads would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"

PROCESSES = multiprocessing.get_context("forkserver")
OURS = ["callbacks", "loggers", *(f"runs.{name}" for name in ("build", "config", "resume", "summary", "sweep"))]
OURS += ["reading.checkpoint", "reading.numbers", "engine.strategy", "engine.joint"]
LATER = ["sklearn.datasets", "matplotlib.figure", "matplotlib.backends.backend_agg", "torch.utils.tensorboard"]
LATER += ["optuna", "sklearn.ensemble"]  # a search's; and those of this file and of others beside it:
LATER += ["pytest", "hypothesis", "tensorboard.backend.event_processing.event_accumulator"]
PROCESSES.set_forkserver_preload(["lightning", "torchvision", *(f"mnist_pl.{name}" for name in OURS), *LATER])
NO_INTERNET = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9") | {"no_proxy": "127.0.0.1,localhost"}


@pytest.fixture(scope="session", autouse=True)
def every_machine_is_alike() -> Iterator[None]:
    """MNIST is only where a test asks for it, and the internet out of reach."""
    os.environ.pop("MNIST_ROOT", None)
    os.environ.update(NO_INTERNET)
    gc.freeze()  # else all that was imported is looked through again and again, for half of a short test's time
    yield
    gc.unfreeze()


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


def _child(words: list[str], folder: Path, variables: dict[str, str]) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f".{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    run_script(words, folder, variables)


def run_script(words: list[str], folder: Path, variables: dict[str, str]) -> None:
    """As a program, in this process, which is a child's."""
    gc.freeze()  # as above: a fifth of a short run's time
    os.chdir(folder)
    os.environ.pop("MNIST_ROOT", None)
    os.environ.update(NO_INTERNET | variables)
    sys.path[0:0] = [str(ROOT), str(ROOT / "tests")]
    sys.argv = [str(ROOT / words[0]), *words[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


def start(folder: Path, *words: str, **variables: str) -> BaseProcess:
    """`words` is a script of the project and its arguments; it runs in `folder`."""
    process = PROCESSES.Process(target=_child, args=(list(words), folder, variables))
    process.start()
    return process


def execute(folder: Path, *words: str, limit: float = 120, **variables: str) -> Ended:
    process = start(folder, *words, **variables)
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail(f"{' '.join(words)} took over {limit} s")
    out, err = ((folder / f".{name}").read_text(errors="replace") for name in ("out", "err"))
    return Ended(process.exitcode or 0, out, err)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a script in a folder of the test's own."""
    return lambda *words, **more: execute(tmp_path, *words, **more)


Whole = Callable[..., Path]
FAST = ("experiment=fast", "callbacks=minimal", "logger=none")  # one epoch of MNIST


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The folder of an unbroken run with some words: trained for the test that asks first, and kept for all others."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def finished(*words: str, **variables: str) -> Path:
        folder = shared / md5(" ".join(words).encode()).hexdigest()
        folder.mkdir(exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / "log").exists():
                ended = execute(folder, "train.py", *words, "hydra.run.dir=outputs/run", **variables)
                assert ended.code == 0, ended.err
                (folder / "log").write_text(ended.out)
        return folder / "outputs" / "run"

    return finished


@pytest.fixture(scope="session")
def trained(whole: Whole) -> Path:
    """The folder of a finished run: the default network on the embedded digits."""
    return whole("data=digits")


@pytest.fixture
def unchanged_process() -> Iterator[None]:
    """Puts back what a run in this process changes for all of it."""
    import numpy as np
    import torch
    from hydra.core.hydra_config import HydraConfig

    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    said = [(logger, logger.level, logger.handlers.copy()) for logger in loggers]
    variables = dict(os.environ)
    debugging: Any = torch.utils.deterministic
    filled = debugging.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(drawn[0]), np.random.set_state(drawn[1]), torch.set_rng_state(drawn[2])
    torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
    debugging.fill_uninitialized_memory = filled
    os.environ.clear()
    os.environ.update(variables)
    for logger, level, handlers in said:
        logger.setLevel(level)
        logger.handlers[:] = handlers
    HydraConfig.instance().cfg = None


@cache
def _digits() -> Any:
    from mnist_pl.data.digits import embedded_digits

    return embedded_digits()


Compose = Callable[..., "DictConfig"]


@pytest.fixture
def compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchanged_process: None) -> Compose:
    """What train.py composes from the words of a command line, here and now, and with `tmp_path` as current folder.

    The run's folder, `run` below it, can be another. Warning filters are pytest's to put back.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from mnist_pl.data import EMBEDDED
    from mnist_pl.runs.resume import expand_resume  # registers the schema
    from mnist_pl.runs.words import spell_out_none

    monkeypatch.setitem(EMBEDDED, "digits", _digits)  # enlarged once
    monkeypatch.chdir(tmp_path)

    def composed(*words: str, folder: str = "run") -> "DictConfig":
        name, resumed = "train", expand_resume(spell_out_none(list(words), ROOT / "conf"), ROOT / "conf")
        for word in resumed:
            name = word.partition("--config-name=")[2] or name
            folder = word.partition("hydra.run.dir=")[2].strip("'") or folder
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            words_left = [word for word in resumed if not word.startswith("--")]
            cfg = hydra.compose(name, words_left, return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(tmp_path / folder)
            cfg.hydra.job.config_name = name
        HydraConfig.instance().set_config(cfg)
        cfg = copy.deepcopy(cfg)  # as Hydra does for the program
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    return composed


ComposeRun = Callable[[list[str]], "tuple[MNISTDataModule, DigitClassifier, Trainer]"]


@pytest.fixture
def compose_run(compose: Compose) -> ComposeRun:
    """The data, network and trainer of a command line's words, in this process."""
    from mnist_pl.runs.build import build

    return lambda words: build(compose(*words))


Train = Callable[..., "float | None"]


@pytest.fixture
def train_here(compose: Compose) -> Train:
    """All that train.py does with some words, in this process: a tenth of a second where `run` takes two seconds.

    Like `compose`, it leaves the run in `run` below `tmp_path`, unless another `folder` is given.
    """
    import train
    from mnist_pl.runs.errors import one_line_errors

    def trained(*words: str, folder: str = "run") -> float | None:
        with one_line_errors():
            return train.main(compose(*words, folder=folder))

    return trained


def one_line(ended: Ended) -> str:
    """The error of a program that was given bad input, once it is shown to be a single line."""
    assert ended.code != 0, ended.out
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("error: ")
    return lines[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers("promise"):
            item.user_properties.append(("promise", marker.args))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Which promises were tried, how, how often, and what failed. A test that tries many times records `tried`."""
    rows: dict[tuple[str, str], list[int]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            facts = dict(getattr(report, "user_properties", ()))
            if "promise" in facts:
                counts = rows.setdefault(tuple(facts["promise"]), [0, 0])
                counts[0] += facts.get("tried", 1)
                counts[1] += outcome != "passed"
    if rows:
        terminalreporter.section("promises")
        terminalreporter.write_line("| promise | how it is tried | times | failures |\n|---|---|---|---|")
        for (what, how), (times, failures) in sorted(rows.items()):
            terminalreporter.write_line(f"| {what} | {how} | {times:,} | {failures} |")
