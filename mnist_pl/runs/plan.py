"""What a sweep is made of: the command that it was started with, and the words of each job, kept in its folder."""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from mnist_pl.storage import write

PLAN = "sweep.json"
COMPOSED = "multirun.yaml"  # Hydra's own record; it is written anew when a sweep is resumed, and may be half of it
SUBDIR = "${hydra.job.num}"  # the name of a job's folder, unless another is asked for


@dataclass(frozen=True)
class Plan:
    """`jobs` is empty where a sweeper of another kind decides what they are."""

    task: list[str]
    hydra: list[str]
    config_name: str
    config_dirs: list[str]
    subdir: str
    jobs: list[list[str]]


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
