"""The schema of the two commands. Imports nothing heavy: --help is quick."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING, OmegaConf

from mnist_pl.runs.folders import label

PRESETS = ("experiment", "sweep")  # groups of which there may be none


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
    fit: bool = True
    ckpt_path: str | None = None
    resume: str | None = None
    claim: float | None = None


@dataclass
class Named:
    _target_: str | None = None


@dataclass
class Predict:
    ckpt_path: str | None = None
    input: str | None = None
    data_dir: str | None = None
    seed: int | None = None
    model: Named = field(default_factory=Named)


ConfigStore.instance().store("train_schema", Train)
ConfigStore.instance().store("predict_schema", Predict)


OmegaConf.register_new_resolver("label", lambda *, _root_: label(_root_), replace=True)


def spell_out_none(arguments: list[str], conf: Path) -> list[str]:
    """`scheduler=null`, `logger=false` and `~callbacks`, which Hydra has for single settings alone, as `none`.

    `conf` is the folder of the groups.

    Raises:
        ValueError: the group has no option `none`.
    """
    spelt = []
    for word in arguments:
        group = word.partition("=")[0].removeprefix("~")
        if not word.startswith("-") and "/" not in group and group and (conf / group).is_dir():
            override = OverridesParser.create().parse_override(word)
            value, options = override.value(), sorted(path.stem for path in (conf / group).glob("*.yaml"))
            if override.is_delete() or value is None or value is False:
                if "none" not in options and group not in PRESETS:
                    raise ValueError(f"{word}: {group} must be one of {', '.join(options)}")
                word = f"{group}=none" if "none" in options else ""
            elif isinstance(value, bool | int | float | dict):
                raise ValueError(f"{word}: {group} must be one of {', '.join(options)}")
        spelt += [word] if word else []
    return spelt
