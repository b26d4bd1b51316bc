"""Run folders: what they are called, and the checkpoints in them."""

import os
import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

RUNS = ("outputs", "multirun")  # where Hydra puts run folders, below the current one
NEWEST = ("last.ckpt", "best.ckpt")  # a run that is killed as it writes its first ones has the best alone
LABELLED = ("data", "model", "optimizer", "scheduler", "trainer")  # groups whose settings tell runs apart; not these:
UNLABELLED = ("lr", "dataset", "data_dir", "mirrors", "fallback", "accelerator", "devices", "log_every_n_steps")


def label(cfg: Any) -> str:
    """The run in a few words, for lists of runs: what was chosen, and what else the command line overrides."""
    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    parts = [cfg.data.dataset, choices.get("experiment") or f"{choices['model']}-{choices['optimizer']}"]
    parts.append(f"lr{cfg.optimizer.lr:g}")
    for override in hydra.overrides.task:
        key, _, value = override.partition("=")
        group, _, setting = key.lstrip("+~").partition(".")
        if group == "scheduler" and not setting:
            parts.append(value)
        elif setting and group in LABELLED and setting not in UNLABELLED:
            parts.append(setting.rpartition(".")[2] + value)
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts))[:80] + f"-seed{cfg.seed}"  # it becomes a folder


def find(path: str | os.PathLike[str] | None, *names: str) -> Path:
    """A checkpoint file, from its path, its run folder, or (None) the newest run; the first of `names` that is there.

    Raises:
        ValueError: there is none.
    """
    if path is None:
        found = [file for runs in RUNS for file in Path(runs).glob(f"**/checkpoints/{names[0]}")]
        if not found:
            raise ValueError(f"ckpt_path: no run below {' or '.join(RUNS)} has a checkpoint yet; run train.py first")
        return max(found, key=lambda file: file.stat().st_mtime)
    places = [Path(path, folder, name) for name in names for folder in ("checkpoints", "")]
    for candidate in (Path(path), *places):
        if candidate.is_file():
            return candidate
    is_folder = Path(path).is_dir()
    missing = f"the folder holds no checkpoints/{names[0]}" if is_folder else "there is no such file or folder"
    raise ValueError(f"ckpt_path={path}: {missing}")


def existing_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a run in this folder would be resumed from."""
    files = (folder / "checkpoints" / name for name in NEWEST)
    return next((file for file in files if file.is_file()), None)
