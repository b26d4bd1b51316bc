"""`python -m mnist_pl.demo`: a page to draw on, in the browser, and the network answers. `--help`."""

from mnist_pl.signals import advise, end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports, which take their time

import json
import sys
import time
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, ListConfig

from mnist_pl.runs.config import CONF
from mnist_pl.runs.errors import one_line_errors, set_up_process
from mnist_pl.runs.folders import RUNS, find, name
from mnist_pl.runs.words import split
from mnist_pl.storage import as_typed, printable, short_path

if TYPE_CHECKING:
    from mnist_pl.reading.demo import Network

LISTED = 50  # runs that can be chosen, the newest
LONGEST = 3600  # seconds


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="demo")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        check(cfg)
        named = cfg.ckpt_path if isinstance(cfg.ckpt_path, ListConfig) else [cfg.ckpt_path]
        chosen = [find(path, "best.ckpt", "last.ckpt") for path in named]
        from mnist_pl.reading.demo import PORT, serve

        with TemporaryDirectory(prefix="mnist_pl-") as folder:
            limits = cfg.seconds, cfg.megabytes
            url = serve(lambda: networks(chosen), len(chosen), Path(folder), cfg.host, cfg.port, *limits)
            others = len(networks(chosen)) - 1
            taken = "" if cfg.port is not None or f":{PORT}/" in url else f" ({PORT} is taken)"
            print(f"network   {networks(chosen)[0].label}" + (f"; {others} more to choose from" if others else ""))
            print(f"page      {url}{taken}, until Ctrl-C", flush=True)
            advise("the page is closed")
            while True:  # a signal is handled by this thread, which may sleep on where another was sent it
                time.sleep(1)


def check(cfg: DictConfig) -> None:
    """Raises ValueError where a setting is out of range, or Gradio is not there."""
    if find_spec("gradio") is None:
        raise ValueError('demo needs Gradio, which is not installed; pip install -e ".[demo]"')
    paths = cfg.ckpt_path if isinstance(cfg.ckpt_path, ListConfig) else [cfg.ckpt_path]
    if not paths or not all(path is None or isinstance(path, str) for path in paths):
        raise ValueError(f"ckpt_path={cfg.ckpt_path}: must be a run or a checkpoint, or several: ckpt_path=[A,B]")
    if cfg.port is not None and not 0 < cfg.port < 65536:
        raise ValueError(f"port={cfg.port}: must be from 1 to 65535")
    if not 0 < cfg.seconds <= LONGEST:
        raise ValueError(f"seconds={cfg.seconds:g}: must be more than 0, and at most {LONGEST}")
    if not 0 < cfg.megabytes <= 100:
        raise ValueError(f"megabytes={cfg.megabytes:g}: must be more than 0, and at most 100, as for predict.py")


def networks(chosen: list[Path]) -> "list[Network]":
    """Those named, in that order; then the best of the newest runs."""
    from mnist_pl.reading.demo import Network

    times: dict[Path, float] = {}
    for path in [path for runs in RUNS for path in as_typed(runs).glob("**/checkpoints/best.ckpt")]:
        with suppress(OSError):  # it has just been moved
            times[path] = path.stat().st_mtime
    found = sorted(times, key=lambda path: times[path], reverse=True)[:LISTED]
    names = dict.fromkeys(path.absolute() for path in [*chosen, *found])
    return [Network(name(path), label(path), path) for path in names]


def label(checkpoint: Path) -> str:
    """The run's label, its accuracy on validation images (on the test images where it held none out), and when."""
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    summary: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    parts = [str(summary.get("run") or short_path(checkpoint))]
    scores = {stage: summary.get(f"{stage}/acc") for stage in ("val", "test")}
    parts += [f"{stage} {score:.2%}" for stage, score in scores.items() if isinstance(score, float)][:1]
    with suppress(OSError):
        written = datetime.fromtimestamp(checkpoint.stat().st_mtime)
        parts.append(f"{written.day} {written:%b %H:%M}")
    return printable(", ".join(parts))


if __name__ == "__main__":
    set_up_process()
    with one_line_errors():
        if {"-m", "--multirun"} & set(split(sys.argv[1:])[0]):
            raise ValueError("-m: there is one page; it takes several networks, as ckpt_path=[A,B]")
        main()
