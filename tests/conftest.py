"""The programs are run for real, each in a process of its own, forked from one that has imported torch already."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
MNIST_ROOT = os.environ.get("MNIST_ROOT", str(ROOT / "data"))
HAS_MNIST = (Path(MNIST_ROOT) / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").exists()

needs_mnist = pytest.mark.skipif(not HAS_MNIST, reason="MNIST is neither in data/ nor under MNIST_ROOT")

if "PYTEST_XDIST_WORKER" in os.environ:  # side by side, threads would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"

PROCESSES = multiprocessing.get_context("forkserver")
LATER = ["sklearn.datasets", "matplotlib.figure", "matplotlib.backends.backend_agg", "torch.utils.tensorboard"]
PROCESSES.set_forkserver_preload(["lightning", "torchvision", "mnist_pl.config", "mnist_pl.callbacks", *LATER])


@pytest.fixture(scope="session", autouse=True)
def mnist_is_only_where_it_is_asked_for() -> None:
    os.environ.pop("MNIST_ROOT", None)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


def _child(words: list[str], folder: Path, variables: dict[str, str]) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f".{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ.pop("MNIST_ROOT", None)
    os.environ.update(variables)
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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished run: the default network on the embedded digits."""
    folder = tmp_path_factory.mktemp("trained")
    ended = execute(folder, "train.py", "data=digits", "hydra.run.dir=outputs/run")
    assert ended.code == 0, ended.err
    (folder / "log").write_text(ended.out)
    yield folder / "outputs" / "run"


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
