"""What a sweep is made of: the command that it was started with, and the words of each job, kept in its folder."""

import json
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from mnist_pl.runs.words import key_of
from mnist_pl.storage import as_word, in_shell, write

PLAN = "sweep.json"
COMPOSED = "multirun.yaml"  # Hydra's own record; it is written anew when a sweep is resumed, and may be half of it
SUBDIR = "${hydra.job.num}"  # the name of a job's folder, unless another is asked for

CONTINUES = "hydra.callbacks.claim.resumes=true"  # an override: the folder is to be that of an earlier process
OF_RESUME = ("hydra.mode", "hydra.sweep.dir", key_of(CONTINUES))  # overrides that resume= adds itself
HARMLESS = r"launcher=(basic|joblib|slurm)$|launcher\.(?!setup)\w+=[\w.,:-]*$|sweep\.subdir=|callbacks\.report\.epochs="
MAY_BE_CODE = re.compile(rf"_target_|^\W*hydra[./](?!{HARMLESS})")  # words that name classes, and what Hydra starts


@dataclass(frozen=True)
class Plan:
    """`jobs` is empty where a sweeper of another kind decides what they are."""

    task: list[str]
    hydra: list[str]
    config_name: str
    config_dirs: list[str]
    subdir: str
    jobs: list[list[str]]

    @property
    def words(self) -> list[str]:
        """The overrides of the command."""
        return [word for word in (*self.task, *self.hydra) if key_of(word) not in OF_RESUME]

    @property
    def to_be_said(self) -> list[str]:
        """What may call code, and comes from a folder that may be a stranger's: whoever resumes the sweep says it."""
        words = [word for word in self.words if MAY_BE_CODE.search(word)]
        return words + [f"--config-dir={path}" for path in self.config_dirs]


def again(folder: Path) -> str:
    """The words that resume the sweep in `folder`."""
    return " ".join([as_word("resume", folder), *map(in_shell, read(folder).to_be_said)])


def is_sweep(folder: Path) -> bool:
    return (folder / PLAN).is_file() or (folder / COMPOSED).is_file()


def keep(config: DictConfig) -> None:
    """Writes the plan into the folder of a sweep that begins; one that is resumed has it."""
    path = Path(config.hydra.sweep.dir, PLAN)
    if not path.exists():
        plan = _plan(config.hydra, GlobalHydra.instance().config_loader())
        write(path, (json.dumps(asdict(plan), indent=1) + "\n").encode())


@lru_cache
def read(folder: Path) -> Plan:
    """The plan of a sweep; of one that an earlier version of this project made, from Hydra's record."""
    if (folder / PLAN).is_file():
        return Plan(**json.loads((folder / PLAN).read_text(encoding="utf-8")))
    return _plan(OmegaConf.load(folder / COMPOSED).hydra)


def _plan(hydra: Any, loader: ConfigLoader | None = None) -> Plan:
    settings: Any = OmegaConf.to_container(hydra, resolve=False)
    task, sweeper = settings["overrides"]["task"], settings["sweeper"]
    words = [*(f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()), *task]
    jobs: list[list[str]] = []
    if sweeper["_target_"].endswith(".BasicSweeper"):
        try:
            (jobs,) = BasicSweeper.split_arguments(OverridesParser.create(loader).parse_overrides(words), None)
        except AssertionError:  # glob(*), without a loader that knows the options
            jobs = []
    sources = [source for source in settings["runtime"]["config_sources"] if source["provider"] == "command-line"]
    dirs = [str(source["path"]) for source in sources]
    name, subdir = settings["job"]["config_name"], settings["sweep"]["subdir"]
    return Plan(task, settings["overrides"]["hydra"], name, dirs, subdir, jobs)
