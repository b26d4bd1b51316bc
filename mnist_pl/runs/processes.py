"""The processes of one run, where it has several (DDP): each does all that train.py does, and they end together.

The first one alone writes and speaks, whoever has started them: Lightning, torchrun or srun.
"""

import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig

from mnist_pl import signals
from mnist_pl.runs.consent import again
from mnist_pl.storage import short_path
from mnist_pl.world import from_first, is_first, is_to_tell, meet, world

if TYPE_CHECKING:
    from lightning import Trainer

HOW = re.compile("_(fork|spawn|notebook)(?=_|$)")  # in a strategy's name: how Lightning starts processes
LOST = re.compile("gloo|nccl|Connection (closed|reset)|process group", re.IGNORECASE)
PATIENCE = 2.0  # seconds
WITHOUT_GPU = 2  # processes

_told: Any = None  # shared by all of them, where the process that has started them does nothing else but wait


def processes(accelerator: str) -> int:
    """How many there are on each machine with trainer=ddp."""
    here = world()
    if here is not None:
        return here.on_each_node or here.size
    import torch

    return (accelerator != "cpu" and torch.cuda.device_count()) or WITHOUT_GPU


def nodes() -> int:
    here = world()
    return 1 if here is None else here.nodes


def check_same_data(dataset: str) -> None:
    """Raises ValueError where the fallback was taken here alone, or in the first process alone."""
    first = from_first(dataset)
    if first != dataset:
        raise ValueError(f"data.dataset: is {dataset} on {socket.gethostname()}, but {first} in the first process")


def check_no_sweep(arguments: list[str]) -> None:
    """Raises ValueError where each of the processes that torchrun or srun has started would run a whole sweep."""
    here = world()
    if here is not None and here.size > 1 and {"-m", "--multirun"} & set(arguments):
        raise ValueError(
            f"-m: {here.starter} has started {here.size} processes, and each would run the sweep; start one"
        )


class FirstProcess(logging.Filter):
    """For the log, in the terminal and in the run's folder: it has what the first process says."""

    def filter(self, record: logging.LogRecord) -> bool:
        return is_first()


def strategy_here(strategy: Any) -> Any:
    """In a process that was started by another, plain DDP, which starts none."""
    is_started = "LOCAL_RANK" in os.environ or world() is not None
    return HOW.sub("", strategy) if isinstance(strategy, str) and is_started else strategy


def environment_here() -> Any:
    """How Lightning shall tell who starts processes, where it would take part of SLURM for srun, or miss it."""
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

    here = world()
    if here is not None and here.starter == "srun":
        meet()
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment() if here is None and "SLURM_NTASKS" in os.environ else None


def check_processes(trainer: "Trainer") -> None:
    """Raises ValueError where processes would be waited for in vain, or not wait for each other, or a sweep recur."""
    from lightning.fabric.plugins.environments import LightningEnvironment

    here, said = world(), f"trainer.devices={trainer.num_devices}"
    if here is not None and here.on_each_node is None:
        raise ValueError(f"{here.starter} has started {here.size} processes, but not as many on each of the nodes")
    if here is not None and (trainer.num_devices, trainer.num_nodes) != (here.on_each_node, here.nodes):
        started = f"trainer.devices={here.on_each_node} trainer.num_nodes={here.nodes}"
        raise ValueError(
            f"{said}, trainer.num_nodes={trainer.num_nodes}: {here.starter} has started {here.size} processes; say "
            f"{started if here.size == 1 else f'trainer=ddp, which takes them all, or {started}'}"
        )
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ:
        raise ValueError(
            f"trainer.num_nodes={trainer.num_nodes}: neither SLURM nor torchrun has started this process, and "
            "MASTER_ADDR does not say where the others are; say trainer.num_nodes=1"
        )
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    if trainer.world_size > 1 and hydra is not None and hydra.mode == RunMode.MULTIRUN:
        if here is not None and here.starter == "srun" and "Slurm" in str(hydra.launcher._target_):
            return  # whose tasks each do one job of the sweep together
        raise ValueError(
            f"{said}: in a sweep (-m) each process would start the sweep again; use one device a job, run the jobs one "
            f"by one, or on SLURM say hydra/launcher=slurm hydra.launcher.tasks_per_node={trainer.num_devices}"
        )


def has_to_launch(cfg: DictConfig) -> bool:
    """Whether this process only starts those that work: then these do all, so that no result stays in them."""
    strategy = cfg.trainer.get("strategy")
    return isinstance(strategy, str) and strategy_here(strategy) == strategy and HOW.search(strategy) is not None


def launch(trainer: "Trainer", main: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """`main(cfg)` in each of the trainer's processes; returns what the first one does."""
    from torch.multiprocessing import ProcessExitedException

    launcher: Any = trainer.strategy.launcher
    signals.pass_on(launcher.kill)
    signals.advise(f"continue with {again(cfg, trainer.default_root_dir)}")
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # each one that it ends
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")  # about the ended
    told = multiprocessing.get_context("spawn" if "_spawn" in cfg.trainer.strategy else "fork").Value("i", 0)
    threading.Thread(target=_end_the_lost_without_a_word, args=(launcher, trainer.num_devices), daemon=True).start()
    try:
        return launcher.launch(partial(_work, main, cfg, HydraConfig.instance().cfg, told))
    except ProcessExitedException as error:
        if error.exit_code < 0:  # else it has told why
            sys.exit(_lost())
        first = launcher.procs[0].exitcode
        if first == 0:
            signals.advise(f"the run is finished, in {short_path(trainer.default_root_dir)}")
        if error.exit_code > 128 and first in (0, 1):  # it was done already, or lost the one that got the signal
            signals.tell(error.exit_code - 128)
        sys.exit(error.exit_code)


def _end_the_lost_without_a_word(launcher: Any, number: int) -> None:
    """Where one is killed, PyTorch ends the others by SIGTERM, which they would tell as if somebody had sent it."""
    while len(launcher.procs) < number:
        time.sleep(0.1)

    def terminate(process: Any) -> None:
        lost = any((other.exitcode or 0) < 0 for other in launcher.procs)
        process.kill() if lost else type(process).terminate(process)

    for process in launcher.procs:
        process.terminate = partial(terminate, process)


def _work(main: Callable[[DictConfig], Any], cfg: DictConfig, hydra: Any, told: Any) -> Any:
    global _told
    _told = told
    signals.end_on_signals()
    signals.watch()
    signals.end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    if not HydraConfig.initialized():  # it was spawned, not forked
        setup_globals()
        HydraConfig.instance().cfg = hydra
        configure_log(hydra.hydra.job_logging, hydra.hydra.verbose)
    return main(cfg)


@contextmanager
def ending_together(trainer: "Trainer") -> Iterator[None]:
    """Whatever ends one of several processes ends the others; what ends all of them is told once."""
    if trainer.world_size == 1:
        yield
        return
    launcher: Any = trainer.strategy.launcher
    if os.environ.get(signals.FIRST) == str(os.getppid()):  # Lightning has started this one
        signals.end_with_parent(_end_at_once)
    elif launcher is not None and "LOCAL_RANK" not in os.environ and world() is None:  # and will start others here
        signals.share(launcher.kill)
        threading.Thread(target=_look_after, args=(launcher, trainer.num_devices - 1), daemon=True).start()
    try:
        yield
    except Exception as error:
        lost = isinstance(error, RuntimeError) and LOST.search(str(error)) is not None
        # Instead of what the training did about them; who has started this one may have noticed the loss too.
        (signals.ignore_signals if lost else signals.end_on_signals)()
        # The one that knows most tells, and ends the others.
        time.sleep(PATIENCE * (lost + (not trainer.is_global_zero)))
        signals.end_others()
        if lost:
            line = _lost()
            sys.exit(line if _tells_loss(line) else 1)
        if _told is not None:
            with _told.get_lock():
                _told.value += 1
                if _told.value > 1:
                    sys.exit(1)
        raise


def _lost() -> str:
    return f"error: another process of this run has ended; {signals.advice('run the same command again')}"


def _tells_loss(line: str) -> bool:
    """Of those that Lightning has started the first that is left; but not where yet another process waits for all."""
    if world() is not None:
        return is_to_tell(line)
    return _told is None and os.environ.get("LOCAL_RANK", "0") in ("0", "1")


def _end_at_once() -> None:
    """Without the first process; NCCL would wait for it."""
    line = _lost()
    if _tells_loss(line):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))
    signals.end_others()
    os._exit(1)


def _look_after(launcher: Any, number: int) -> None:
    """Ends the run with the first of the further processes that is killed, before Lightning ends it without a word."""
    while len(launcher.procs) < number:
        time.sleep(0.1)

    def wait(process: Any) -> None:
        if process.wait() < 0 and not signals.ended_others:
            _end_at_once()

    for process in launcher.procs:
        threading.Thread(target=wait, args=(process,), daemon=True).start()
