"""No two processes share a folder: each run, sweep and prediction claims its own, and holds it while it lives."""

import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from mnist_pl.runs.folders import existing_checkpoint
from mnist_pl.runs.plan import is_sweep
from mnist_pl.runs.processes import from_first, is_first
from mnist_pl.runs.slurm import note
from mnist_pl.storage import FolderLock, as_typed, as_word, is_locked, quoted, short_path

HELD = "MNIST_PL_HELD"  # environment variable: the folder that this process, or one that has started it, holds
CLOCK = "${now:"  # in a folder's name as it is written: nobody has chosen it

_claimed: dict[Path, FolderLock] = {}
taken: list[str] = []  # folders that this process would have claimed, were they not another's; the one meant first


class Claim(Callback):
    """Before a run or a sweep begins: its folder, or the next one that is free where another process has that name.

    `resumes`: the folder is that of an earlier process, which this one continues.
    """

    def __init__(self, resumes: bool = False) -> None:
        self.resumes = resumes

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = self._claim(config.hydra.run) if is_first() else config.hydra.run.dir
        with open_dict(config.hydra.run):
            config.hydra.run.dir = from_first(str(folder))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = as_typed(config.hydra.sweep.dir)
        if is_sweep(folder) and not self.resumes and _is_chosen(config.hydra.sweep):
            sys.exit(
                f"error: hydra.sweep.dir={short_path(folder)}: holds an existing sweep; choose another folder, or "
                f"continue it with {as_word('resume', folder)}"
            )
        folder = self._claim(config.hydra.sweep)
        with open_dict(config.hydra):
            config.hydra.sweep.dir = str(folder)
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(folder)}")  # of which its jobs are composed
        if folder.absolute() in _claimed:
            _claimed[folder.absolute()].keep()
        note(folder)

    def _claim(self, place: DictConfig) -> Path:
        """The folder, locked, unless it holds an existing run, which will be refused."""
        name, fresh = Path(place.dir), not self.resumes
        for number in itertools.count(1):
            folder = name if number == 1 else name.with_name(f"{name.name}-{number}")
            try:
                if fresh and not _is_chosen(place):
                    folder.parent.mkdir(parents=True, exist_ok=True)
                    folder.mkdir()  # which only one process can do
                elif fresh and is_locked(folder):
                    raise FileExistsError
                elif fresh and existing_checkpoint(folder) is not None:
                    return folder
                _claimed[folder.absolute()] = FolderLock(folder, _job())
                return folder
            except BlockingIOError as error:
                if not fresh:
                    sys.exit(f"error: resume={short_path(folder)}: {error}; wait until it has ended, or stop it")
            except FileExistsError:
                pass
            except OSError:  # it cannot be made, as the run will tell
                return folder
            taken.append(short_path(folder))
        raise AssertionError("there is always a next number")


def _is_chosen(place: DictConfig) -> bool:
    """Whether somebody has named the folder; else it is the clock's."""
    written: Any = OmegaConf.to_container(place, resolve=False)
    return CLOCK not in written["dir"]


def _job() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f", SLURM job {job}" if job else ""


@contextmanager
def holding(folder: str) -> Iterator[FolderLock | None]:
    """The lock of this run's folder; None in a further process of the run. Raises ValueError where another holds it."""
    path = Path(folder).absolute()
    if not is_first() or os.environ.get(HELD) == str(path):
        yield None
        return
    try:
        lock = _claimed.pop(path, None) or FolderLock(path, _job())
    except BlockingIOError as error:
        raise ValueError(f"{short_path(folder)}: {error}; wait until it has ended, or stop it") from None
    os.environ[HELD] = str(path)
    try:
        yield lock
    finally:
        del os.environ[HELD]
        lock.release()


def is_own(lock: FolderLock | None) -> bool:
    """Whether a folder with an existing run is that of the job of a sweep which is at work in it again."""
    resumed = HydraConfig.get().callbacks.get("claim", {}).get("resumes", False)
    return resumed or bool(lock and lock.before and _job() and lock.before.decode().strip().endswith(_job()))
