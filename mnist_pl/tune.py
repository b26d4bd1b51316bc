"""`python -m mnist_pl.tune`: searches for settings, on Optuna; each trial is a run as train.py does it. `--help`."""

from mnist_pl.signals import advise, end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports, which take their time

import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mnist_pl.runs.config import CONF
from mnist_pl.runs.errors import one_line_errors, set_up_process
from mnist_pl.runs.words import key_of, spell_out_none, split
from mnist_pl.storage import as_typed, as_word, read_value, short_path, write

if TYPE_CHECKING:
    from lightning import Trainer
    from optuna.trial import FrozenTrial

    from mnist_pl.data import MNISTDataModule

log = logging.getLogger(__name__)

OF_A_PROCESS = ("study", "trials", "minutes")  # what a study is continued with is not said again by these
REMEMBERED = Path(".hydra", "overrides.yaml")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="tune")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        check(cfg)
        import optuna

        from mnist_pl.runs.build import build
        from mnist_pl.runs.found import report
        from mnist_pl.runs.search import IN_FOLDER, Search, as_a_run, count, open_study, study_lock
        from mnist_pl.runs.space import check_ends, read_space

        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        words: list[str] = list(HydraConfig.get().overrides.task)
        folder = Path(HydraConfig.get().runtime.output_dir)
        space, fixed = read_space(OmegaConf.to_container(cfg.space), words)
        command = f"python -m mnist_pl.tune {as_word('study', folder)}"
        with as_a_run(words, [], folder) as usual:
            settings = OmegaConf.to_yaml(usual)
            data, _, trainer = build(usual)
            check_can_be_searched(data, trainer)
            data.prepare_data()
        settings += OmegaConf.to_yaml(OmegaConf.create({"space": cfg.space, "searched": list(space)}))

        def make(tried: list[str]) -> None:
            with as_a_run(words, tried, folder) as one:
                build(one)

        with study_lock(folder):
            if not (folder / REMEMBERED).exists():
                check_ends(space, make)
            study = open_study(cfg, folder, settings)
            said = [word for word in words if key_of(word) not in OF_A_PROCESS]
            write(folder / REMEMBERED, OmegaConf.to_yaml(OmegaConf.create(said)).encode())
        advise(f"continue with {command}")
        log.info("%s", header(cfg, list(space), fixed, count(study.get_trials(deepcopy=False))[0], folder))

        def tell(trial: "FrozenTrial") -> None:
            log.info("%s", line(trial, study.get_trials(deepcopy=False), cfg.trials))

        search = Search(study, space, words, folder, cfg.storage not in IN_FOLDER)
        try:
            search.run(cfg.trials, cfg.minutes, tell)
        except SystemExit:  # a signal, which has been told
            log.info("%s", report(study, words, folder, command))
            raise
        log.info("%s", report(study, words, folder, command))


def check(cfg: DictConfig) -> None:
    """Raises ValueError where one of the study's own settings is out of range, or Optuna is not there."""
    if find_spec("optuna") is None:
        raise ValueError('tune needs Optuna, which is not installed; pip install -e ".[tune]"')
    for name in ("resume", "ckpt_path"):
        if cfg[name] is not None:
            raise ValueError(f"{name}={cfg[name]}: trials start afresh; study=FOLDER continues a study")
    if not cfg.fit:
        raise ValueError("fit=false: a search has to train; trials=0 only makes the report again")
    if cfg.trials is None and cfg.minutes is None:
        raise ValueError("trials=null minutes=null: would never end; give one of them")
    for name in ("trials", "minutes"):
        if cfg[name] is not None and not 0 <= cfg[name] < float("inf"):
            raise ValueError(f"{name} must not be negative, got {cfg[name]}")


def check_can_be_searched(data: "MNISTDataModule", trainer: "Trainer") -> None:
    """Raises ValueError where there would be no score to choose by, or several processes a trial."""
    if data.hparams["validate_on_test"]:
        raise ValueError(
            "data.validate_on_test=true: nothing may be chosen by the test images; say data.validate_on_test=false "
            "data.val_size=5000"
        )
    if not data.selects or trainer.limit_val_batches == 0:
        name = "trainer.limit_val_batches" if data.selects else "data.val_size"
        raise ValueError(f"{name}=0: a search chooses by validation images; hold some out, as data.val_size=5000")
    if trainer.world_size > 1:
        raise ValueError(
            f"trainer.devices={trainer.num_devices}: a trial is one process on one device; start several such commands"
        )


def header(cfg: DictConfig, searched: list[str], fixed: list[str], finished: int, folder: Path) -> str:
    limits = {"trials": cfg.trials, "minutes": cfg.minutes and f"{cfg.minutes:g}"}
    length = ", ".join(f"{value} {name}" for name, value in limits.items() if value is not None)
    pruner = "giving up on those below the median" if cfg.pruner == "median" else "giving up on none"
    lines = {
        "search": ", ".join(searched) + (f"; not {', '.join(fixed)}" if fixed else ""),
        "with": f"{cfg.sampler}, {pruner}, seed {cfg.seed}; {cfg.trainer.max_epochs} epochs a trial",
        "for": length + (f", of which {finished} are finished" if finished else ""),
        "in": short_path(folder),
    }
    return "\n".join(f"{name:10}{text}" for name, text in lines.items()) + "\n"


def line(trial: "FrozenTrial", trials: "list[FrozenTrial]", wanted: int | None) -> str:
    """What is printed when a trial ends."""
    from mnist_pl.runs.found import best, in_words, score, seconds, state
    from mnist_pl.runs.search import count, interrupted

    accuracy, winner, retries = score(trial), best(trials), interrupted(trials)
    finished, _ = count(trials)
    place = f"{finished}" if wanted is None else f"{finished}/{wanted}"
    shown = "" if accuracy is None else f"{accuracy:.2%}"
    record = " *" if winner is not None and winner.number == trial.number else "  "
    said = in_words(trial) if trial.state.name == "COMPLETE" else f"{state(trial, retries)}; {in_words(trial)}"
    return f"{place:>9}{shown:>9}{record}{seconds(trial) or 0:6.1f} s  {said}"


def expand_study(arguments: list[str]) -> list[str]:
    """A command line's arguments, in which `study=FOLDER` stands for the words that the study was begun with.

    Flags come first; the other words come on top. Raises ValueError where it asks for a sweep.
    """
    flags, words = split(arguments)
    if {"-m", "--multirun"} & set(flags):
        raise ValueError("-m: tune is a search by itself; say trials=50, or what to try in a file of conf/tune")
    typed = [word.partition("=")[2] for word in words if key_of(word) == "study"]
    folder = read_value(typed[-1]) if typed else None
    if typed and (not isinstance(folder, str) or not folder):
        raise ValueError(f"study={typed[-1]}: must be a folder, as studies/mine")
    before = as_typed(str(folder)) / REMEMBERED
    earlier = [str(word) for word in OmegaConf.load(before)] if typed and before.is_file() else []
    return [*flags, *{key_of(word): word for word in [*earlier, *words]}.values()]


if __name__ == "__main__":
    set_up_process()
    sys.path.append(os.getcwd())  # for parts of one's own
    with one_line_errors():
        sys.argv[1:] = expand_study(spell_out_none(sys.argv[1:], CONF))
        main()
