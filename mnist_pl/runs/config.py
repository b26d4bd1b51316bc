"""The schema of the commands. Imports nothing heavy: --help is quick."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from mnist_pl.runs.folders import label
from mnist_pl.runs.processes import nodes, processes

CONF = Path(__file__).parents[2] / "conf"


@dataclass
class Train:
    """Refuses a misspelt key at the root. Below it, the constructors know their arguments, defaults and ranges."""

    data: Any = MISSING
    model: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = None
    trainer: Any = MISSING
    callbacks: Any = None
    logger: Any = None
    seed: int = 1
    threads: int | None = None
    fit: bool = True
    ckpt_path: Any = None
    resume: str | None = None
    claim: float | None = None


@dataclass
class Tune(Train):
    space: Any = MISSING
    study: str = MISSING
    trials: int | None = None
    minutes: float | None = None
    sampler: str = "tpe"
    pruner: str | None = None
    storage: str = "journal"


@dataclass
class Named:
    _target_: str | None = None


@dataclass
class Predict:
    ckpt_path: Any = None
    input: str | None = None
    data_dir: str | None = None
    seed: int | None = None
    output: str = "table"
    model: Named = field(default_factory=Named)


@dataclass
class Export:
    ckpt_path: Any = None
    format: str = "onnx"
    output: str | None = None
    data_dir: str | None = None
    model: Named = field(default_factory=Named)


@dataclass
class Ensemble:
    ckpt_path: Any = None
    output: str = MISSING
    vote: str = "mean"
    shifts: int = 0
    model: Named = field(default_factory=Named)


@dataclass
class Evaluate:
    ckpt_path: Any = None
    pictures: str | None = None
    simulated: str = MISSING
    data_dir: str | None = None
    model: Named = field(default_factory=Named)


@dataclass
class Demo:
    ckpt_path: Any = None
    host: str = "127.0.0.1"
    port: int | None = None
    seconds: float = 10
    megabytes: float = 20


for schema in (Train, Tune, Predict, Export, Ensemble, Evaluate, Demo):
    ConfigStore.instance().store(f"{schema.__name__.lower()}_schema", schema)
OmegaConf.register_new_resolver("label", lambda *, _root_: label(_root_), replace=True)
OmegaConf.register_new_resolver("processes", processes, replace=True)
OmegaConf.register_new_resolver("nodes", nodes, replace=True)
