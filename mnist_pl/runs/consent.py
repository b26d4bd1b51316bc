"""Whose code a run folder may call for: a stranger's folder is resumed without importing what is not known.

A class of one's own is imported when the command line names it: at the start of a run, and again with resume=.
"""

import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from mnist_pl.runs import plan
from mnist_pl.storage import as_word, short_path

KNOWN = ("mnist_pl", "lightning", "torch", "torchmetrics")  # packages whose classes any run folder may name


def check_consent(cfg: DictConfig, folder: str | None) -> None:
    """Raises ValueError where the settings of a run that is resumed name what is not known, and not named again.

    `folder` is that of the run; None, where none is resumed.
    """
    if folder is None:
        return
    words = " ".join(HydraConfig.get().overrides.task)
    for key, target in _foreign(OmegaConf.to_container(cfg)).items():
        if not re.search(rf"(?<![\w.]){re.escape(target)}(?![\w.])", words):
            raise ValueError(
                f"resume={short_path(folder)}: its {key} is {target}, which is not of this project, and may be a "
                f"stranger's code; if you know it, say so: {again(cfg, folder)}"
            )


def again(cfg: DictConfig, folder: str) -> str:
    """The words that resume the run in `folder`; or the sweep there, whose words name some classes already."""
    words = plan.again(Path(folder)) if plan.is_sweep(Path(folder)) else as_word("resume", folder)
    return " ".join([words, *(word for word in named(cfg) if word.partition("=")[2] not in words)])


def named(cfg: DictConfig) -> list[str]:
    """The words that a run is resumed with because it has parts of one's own."""
    return [f"{key}={target}" for key, target in _foreign(OmegaConf.to_container(cfg)).items()]


def _foreign(settings: Any, key: str = "") -> dict[str, str]:
    """The `_target_`s, by their keys, that are no classes of this project or of the libraries that it is built on."""
    if key.rpartition(".")[2] == "_target_" and isinstance(settings, str) and not _is_known(settings):
        return {key: settings}
    if isinstance(settings, list):
        settings = dict(enumerate(settings))
    found: dict[str, str] = {}
    for name in settings if isinstance(settings, dict) else ():
        found |= _foreign(settings[name], f"{key}.{name}".lstrip("."))
    return found


def _is_known(target: str) -> bool:
    """Also not `mnist_pl.benchmark.subprocess.Popen`, a stranger's class by another name."""
    if target.partition(".")[0] not in KNOWN:
        return False
    found = get_object(target)
    return isinstance(found, type) and found.__module__.partition(".")[0] in KNOWN
