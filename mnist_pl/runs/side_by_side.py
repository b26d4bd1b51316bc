"""Jobs of a sweep side by side (hydra/launcher=joblib): each in a process with its share of the cores, or its own GPU.

joblib shares out the cores. Without this file (and the lines that name it in sweep.py, build.py, slurm.py and
train.py), a sweep that was killed would leave jobs at work, and several GPUs would be one.
"""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from mnist_pl.signals import GRACE, end_on_signals, end_with_parent, leave_telling_to_another, wait_for
from mnist_pl.storage import FolderLock

SWEEPS = "MNIST_PL_SWEEPS"  # environment variable: the process that has started the jobs

_gpu: FolderLock | None = None


def _gpus() -> list[str]:
    """NVIDIA's, as CUDA_VISIBLE_DEVICES calls them; PyTorch would take two seconds to count them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def start(config: DictConfig) -> None:
    """Before the jobs of a sweep: at a time, as many as there are GPUs, where there are several, else cores."""
    os.environ[SWEEPS] = str(os.getpid())
    launcher, gpus = config.hydra.launcher, _gpus()
    if not launcher._target_.startswith("hydra_plugins.hydra_joblib_launcher."):
        return
    if launcher.n_jobs == -1 and len(gpus) > 1:
        launcher.n_jobs = len(gpus)
    trackers = ("multiprocessing.resource_tracker", "joblib.externals.loky.backend.resource_tracker")
    # Processes of their own, which tidy up after a sweep that was stopped, and should not say so.
    os.environ["PYTHONWARNINGS"] = ",".join(f"ignore::UserWarning:{name}" for name in trackers)
    wait_for(_stop_workers)


def _stop_workers(number: int) -> None:
    """Each writes its checkpoint first."""
    workers, deadline = multiprocessing.active_children(), time.monotonic() + GRACE
    for worker in workers:
        with suppress(OSError):
            os.kill(worker.pid or 0, number)
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))


def is_worker() -> bool:
    """Whether this process was started by that of the sweep."""
    return os.environ.get(SWEEPS, "") == str(os.getppid())


def set_up_worker(sweep: Path) -> None:
    """Before a job in a process that may have had others: it ends with the sweep, and has a GPU to itself."""
    global _gpu
    end_on_signals()
    leave_telling_to_another()
    quieten(logging.ERROR)  # what a job is stopped by, the sweep tells
    _end_with_sweep()
    gpus = _gpus()
    if _gpu is None and len(gpus) > 1:
        for gpu in gpus:
            try:
                _gpu = FolderLock(sweep / f".gpu{gpu}")
            except BlockingIOError:
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is asked for anything in this process
            return


def quieten(level: int) -> None:
    """From here on, the terminal gets what is as important as `level`."""
    for handler in logging.root.handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(level)


@contextmanager
def one_job() -> Iterator[None]:
    """A job that a signal has stopped takes its process with it, to which joblib would give the next job."""
    try:
        yield
    except SystemExit as stopped:
        if is_worker() and isinstance(stopped.code, int):
            logging.shutdown()
            os._exit(stopped.code)
        raise


@cache
def _end_with_sweep() -> None:
    """A sweep that was killed leaves no job at work, which would keep its folder from who resumes the sweep."""
    end_with_parent(lambda: os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM)))
