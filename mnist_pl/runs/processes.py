"""The processes of one run, where it has several (DDP): each does all that train.py does, and they end together."""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from omegaconf import DictConfig

from mnist_pl.signals import advise, end_on_signals, end_others, pass_on, share, tell, watch
from mnist_pl.storage import short_path
from mnist_pl.world import from_first, is_first

if TYPE_CHECKING:
    from lightning import Trainer

__all__ = ["ending_together", "from_first", "has_to_launch", "is_first", "launch", "strategy_here"]

HOW = re.compile("_(fork|spawn|notebook)(?=_|$)")  # in a strategy's name: how Lightning starts processes
LOST = re.compile("gloo|nccl|Connection (closed|reset)|process group", re.IGNORECASE)
PATIENCE = 2.0  # seconds


def strategy_here(strategy: Any) -> Any:
    """In a process that was started by another, plain DDP, which starts none."""
    return HOW.sub("", strategy) if isinstance(strategy, str) and "LOCAL_RANK" in os.environ else strategy


def has_to_launch(cfg: DictConfig) -> bool:
    """Whether this process only starts those that work: then these do all, so that no result stays in them."""
    strategy = cfg.trainer.get("strategy")
    return isinstance(strategy, str) and strategy_here(strategy) == strategy and HOW.search(strategy) is not None


def launch(trainer: "Trainer", main: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """`main(cfg)` in each of the trainer's processes; returns what the first one does."""
    from torch.multiprocessing import ProcessExitedException

    launcher: Any = trainer.strategy.launcher
    pass_on(launcher.kill)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # each one that it ends
    try:
        return launcher.launch(partial(_work, main, cfg, HydraConfig.instance().cfg))
    except ProcessExitedException as error:  # which has told why
        code = error.exit_code if error.exit_code > 0 else 128 - error.exit_code
        if code > 128 and launcher.procs[0].exitcode == 0:  # but not where the one that tells was done already
            advise(f"the run is finished, in {short_path(trainer.default_root_dir)}")
            tell(code - 128)
        sys.exit(code)


def _work(main: Callable[[DictConfig], Any], cfg: DictConfig, hydra: Any) -> Any:
    end_on_signals()
    watch()
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
    if trainer.strategy.launcher is not None and "LOCAL_RANK" not in os.environ:  # else it was started by another
        share(trainer.strategy.launcher.kill)
    try:
        yield
    except Exception as error:
        end_on_signals()  # instead of what the training did about them
        lost = isinstance(error, RuntimeError) and LOST.search(str(error)) is not None
        # The one that knows most tells, and ends the others.
        time.sleep(PATIENCE * (lost + (not trainer.is_global_zero)))
        end_others()
        if lost:
            sys.exit("error: another process of this run has failed")
        raise
