"""A study: trials that are ordinary runs, in a storage that several processes share and that outlives each of them.

Optuna proposes and remembers; what it does not do is here:
- A trial's process holds a lock in its folder, which the system releases when it dies: a trial whose lock is free was
  interrupted. It is marked as failed, and what it tried is tried again, as another trial. (Heartbeats would leave it
  for minutes; they are for a database that machines share, where there are no locks to look at.)
- What is proposed depends on the seed and on the trials before alone: not on who asks, nor on interruptions.
"""

import gc
import logging
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from optuna import Study, Trial, TrialPruned, create_study
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mnist_pl.reading import checkpoint
from mnist_pl.runs import loggers, summary
from mnist_pl.runs.build import build
from mnist_pl.runs.config import Train, Tune
from mnist_pl.runs.errors import UNWRITABLE, explain, is_users
from mnist_pl.runs.folders import label
from mnist_pl.runs.resume import fit, remember
from mnist_pl.runs.space import Space, suggest_params, words_of
from mnist_pl.runs.words import key_of
from mnist_pl.signals import end_on_signals
from mnist_pl.storage import short_path

log = logging.getLogger(__name__)

OWN = tuple(Tune.__dataclass_fields__.keys() - Train.__dataclass_fields__.keys())  # the study's own settings
SCORE = "val/acc"
IN_FOLDER = ("journal", "sqlite")  # storages that are a file in the study's folder
HEARTBEAT, SILENT = 60, 180  # seconds between two, and after how many a trial on another machine is taken for dead
WAIT_FOR_SQLITE = 60  # seconds, for other processes to have written
FEWEST = 5  # trials that have come as far, before one is given up
RETRY = "tries_again"  # in a trial: the number of the interrupted one
LOCK = ".lock"
SAMPLERS = {"tpe": TPESampler, "random": RandomSampler}


class JournalLock:
    """Optuna's own is a file, which a killed process leaves behind; and half a line of the journal breaks the rest."""

    def __init__(self, path: str) -> None:
        self.path, self.lock = path, FileLock(path + LOCK)

    def acquire(self) -> bool:
        self.lock.acquire()
        with open(self.path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if size and file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self.lock.release()


def open_storage(storage: str, folder: Path) -> BaseStorage:
    """`journal` and `sqlite`, files in `folder`; or a database by its URL.

    Raises ValueError where it cannot be opened, without repeating the URL, which may hold a password.
    """
    if storage == "journal":
        path = str(folder / "journal.log")
        lock: Any = JournalLock(path)
        return JournalStorage(JournalFileBackend(path, lock_obj=lock))
    url = f"sqlite:///{folder / 'study.db'}" if storage == "sqlite" else storage
    if "://" not in url:
        raise ValueError(f"storage={storage}: must be journal, sqlite, or a database's URL, as sqlite:///study.db")
    engine = {"connect_args": {"timeout": WAIT_FOR_SQLITE}} if url.startswith("sqlite") else {}
    beats: dict[str, Any] = {"heartbeat_interval": HEARTBEAT, "grace_period": SILENT}
    beats |= {"heartbeat_stale_trial_callback": _try_again}
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        try:
            return RDBStorage(url, engine_kwargs=engine, **({} if storage in IN_FOLDER else beats))
        except Exception as error:  # of a driver, of the network, of Alembic
            kind = storage.partition(":")[0]
            reason = str(error).splitlines()[0].replace(url, kind)
            raise ValueError(f"storage={kind}: cannot be opened ({type(error).__name__}: {reason})") from error


def study_lock(folder: Path) -> FileLock:
    """Whoever holds it opens the study, proposes a trial, or looks for dead ones; nobody else does, on this machine."""
    return FileLock(folder / LOCK)


def make_sampler(name: str, seed: int) -> BaseSampler:
    """One that begins anew with each trial, from the seed and its place among the trials that were not interrupted."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler={name}: must be one of {', '.join(SAMPLERS)}")
    kind: Any = SAMPLERS[name]

    class Anew(kind):
        def before_trial(self, study: Study, trial: FrozenTrial) -> None:
            earlier = [one for one in study.get_trials(deepcopy=False) if one.number <= trial.number]
            place = trial.number - sum(RETRY in one.user_attrs for one in earlier)
            super().__init__(seed=int(np.random.SeedSequence([seed, place]).generate_state(1)[0]))
            super().before_trial(study, trial)

    return Anew()


def make_pruner(name: str | None) -> Any:
    if name not in ("median", "none", None):
        raise ValueError(f"pruner={name}: must be median or null")
    return MedianPruner(n_startup_trials=FEWEST, n_min_trials=FEWEST) if name == "median" else NopPruner()


def open_study(cfg: DictConfig, folder: Path, settings: str) -> Study:
    """The study that is in `folder` or in the database, or a new one. `settings` are what all its trials share.

    Raises ValueError where it was begun with others, which its trials could not be compared with.
    """
    study = create_study(
        sampler=make_sampler(cfg.sampler, cfg.seed),
        pruner=make_pruner(cfg.pruner),
        storage=open_storage(cfg.storage, folder),
        study_name="study" if cfg.storage in IN_FOLDER else short_path(folder),
        direction="maximize",
        load_if_exists=True,
    )
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", settings)
    elif before != settings:
        old, new = before.splitlines(), settings.splitlines()
        differing = [line for line in new if line not in old] or [line for line in old if line not in new]
        raise ValueError(
            f"study={cfg.study}: was begun with other settings ({differing[0].strip()} is not one of them), and trials "
            "would not compare; leave them as they were, or begin another study"
        )
    return study


def interrupted(trials: list[FrozenTrial]) -> dict[int, int]:
    """The trials whose processes died or were stopped, and those that try the same again."""
    return {one.user_attrs[RETRY]: one.number for one in trials if RETRY in one.user_attrs}


def count(trials: list[FrozenTrial]) -> tuple[int, int]:
    """Those that are finished, and those under way."""
    lost = interrupted(trials)
    finished = sum(one.state.is_finished() and one.number not in lost for one in trials)
    return finished, sum(one.state == TrialState.RUNNING for one in trials)


def _try_again(study: Study, trial: FrozenTrial) -> None:
    study.enqueue_trial(trial.params, user_attrs={RETRY: trial.number})


def _give_up_the_dead(study: Study, folder: Path, shared: bool) -> None:
    """Marks the interrupted trials as failed; each is tried again. With the study's lock held.

    A trial without a lock file died before it had one, unless the storage is `shared`: then it is another machine's.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        path = folder / str(trial.number) / LOCK
        if path.exists():
            with suppress(Timeout), FileLock(path, blocking=False):
                # Looked at again: a trial that has just finished had its lock until now, too.
                if study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
                    _end_and_try_again(study, trial)
        elif not shared:
            _end_and_try_again(study, trial)


def _end_and_try_again(study: Study, trial: FrozenTrial) -> None:
    study.tell(trial.number, state=TrialState.FAIL)
    _try_again(study, trial)


class Search:
    """What one process does of a study."""

    def __init__(self, study: Study, space: Space, words: list[str], folder: Path, shared: bool) -> None:
        """`words` are the command line's; the storage may be `shared` by machines, which do not see this `folder`."""
        self.study, self.space, self.words, self.folder, self.shared = study, space, words, folder, shared
        self.alone = study_lock(folder)
        self.of_trial: FileLock | None = None
        self.number = -1  # of the trial under way

    def run(self, trials: int | None, minutes: float | None, tell: Callable[[FrozenTrial], None]) -> None:
        """Does trials until enough are done or time is up; calls `tell` after each. Raises OSError on a full disk."""
        began = time.monotonic()
        while minutes is None or time.monotonic() - began < minutes * 60:
            try:
                self.alone.acquire()
                _give_up_the_dead(self.study, self.folder, self.shared)
                if trials is not None and sum(count(self.study.get_trials(deepcopy=False))) >= trials:
                    return
                # Optuna's own loop, for the heartbeats. Once the trial has a lock, others need not wait any longer.
                self.study.optimize(self._try, n_trials=1, catch=(Exception,))
            finally:
                for lock in (self.of_trial, self.alone):
                    if lock is not None:
                        lock.release(force=True)
                end_on_signals()  # instead of what a training that failed has left
            gc.collect()
            done = self.study.get_trials(deepcopy=False)[self.number]
            tell(done)
            if done.user_attrs.get("no_room"):
                raise OSError(done.user_attrs["error"])

    def _try(self, trial: Trial) -> float:
        self.number = trial.number
        words = words_of(suggest_params(trial, self.space))
        folder = self.folder / str(trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        self.of_trial = FileLock(folder / LOCK)
        self.of_trial.acquire()
        self.alone.release(force=True)
        try:
            with as_a_run(self.words, words, folder) as cfg:
                return train(cfg, trial)
        except TrialPruned:
            raise
        except Exception as error:
            trial.set_user_attr("error", explain(error))
            trial.set_user_attr("no_room", getattr(error, "errno", None) in UNWRITABLE)
            if not is_users(error):  # a fault of ours
                traceback.print_exception(error)
            raise
        except BaseException:  # a signal
            _end_and_try_again(self.study, self.study.get_trials(deepcopy=False)[trial.number])
            raise


@contextmanager
def as_a_run(words: list[str], more: list[str], folder: Path) -> Iterator[DictConfig]:
    """The configuration of a trial, as train.py would compose it; `more` are the trial's own words.

    For as long as it lasts, Hydra takes this for the run that is under way.
    """
    study = HydraConfig.instance().cfg
    cfg = compose("tune", [*words, *more], return_hydra_config=True)
    with open_dict(cfg):
        for name in OWN:
            del cfg[name]
        cfg.hydra.runtime.output_dir = str(folder)
        cfg.hydra.run.dir = str(folder)
        cfg.hydra.job.config_name = "train"
        cfg.hydra.job.name = "train"
        cfg.hydra.overrides.task = [*(word for word in words if key_of(word) not in (*OWN, "tune")), *more]
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    try:
        yield cfg
    finally:
        HydraConfig.instance().cfg = study


class Watch(Callback):
    """Tells Optuna of each validation; a trial that it finds hopeless ends before it trains any further."""

    hooks_every_n_steps = None

    def __init__(self, trial: Trial) -> None:
        self.trial, self.scores = trial, list[float]()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.scores.append(float(trainer.callback_metrics[SCORE]))
            self.trial.report(self.scores[-1], len(self.scores) - 1)
            if not trainer.is_last_batch:
                self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.scores and self.trial.should_prune():
            raise TrialPruned


def train(cfg: DictConfig, trial: Trial) -> float:
    """An ordinary run without its test; returns its best validation accuracy, or raises TrialPruned."""
    data, model, trainer = build(cfg)
    data.setup("fit")
    cfg.threads = torch.get_num_threads()
    remember(cfg)
    watch = Watch(trial)
    trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]
    chosen = {"run": label(cfg), "experiment": None, "claim": None, "seed": cfg.seed}
    facts = summary.describe(trainer, model, data, chosen)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    loggers.start_loggers(trainer, -1, facts, settings, {})
    fit(trainer, model, data, None, -1)
    best = summary.best_checkpoint(trainer)
    scores = checkpoint.read(best).get("metrics", {}) if best else {}
    result = summary.results(trainer, facts | summary.course(trainer), best, scores)
    summary.write_json(trainer.default_root_dir, result)
    if not watch.scores:
        raise ValueError("there was no validation in it (trainer.check_val_every_n_epoch, trainer.val_check_interval)")
    return max(watch.scores)
