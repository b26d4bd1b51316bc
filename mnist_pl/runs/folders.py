"""Run folders: what they are called, and the checkpoints in them."""

import os
import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from mnist_pl.runs import plan
from mnist_pl.runs.words import key_of
from mnist_pl.storage import as_typed, printable, short_path

RESUMED = "resumed"  # the name of the primary configuration with resume=
OURS = ("resume", "ckpt_path")  # settings that resume= adds itself
RUNS = ("outputs", "multirun")  # where Hydra puts run folders, below the current one
LIGHTNINGS = ("last", "best")  # words for the checkpoints of the newest run
NEWEST = ("last.ckpt", "best.ckpt")  # a run that is killed as it writes its first ones has the best alone
LABELLED = ("data", "model", "optimizer", "scheduler", "trainer")  # groups whose settings tell runs apart; not these:
UNLABELLED = ("lr", "dataset", "data_dir", "mirrors", "fallback", "accelerator", "devices", "log_every_n_steps")


def said(resumed: str | None) -> tuple[dict[str, Any], list[str]]:
    """Which option of each group was chosen, and what was overridden; first when `resumed` was started, then now."""
    hydra = HydraConfig.get()
    choices, overrides = dict(hydra.runtime.choices), list(hydra.overrides.task)
    if resumed is not None and hydra.job.config_name == RESUMED:
        before = as_typed(resumed) / ".hydra"
        hydra_before = before / "hydra.yaml"
        if hydra_before.exists():
            earlier = OmegaConf.load(hydra_before).hydra.runtime.choices
            choices = {**earlier, **{group: option for group, option in choices.items() if option is not None}}
        words = [*OmegaConf.load(before / "overrides.yaml"), *overrides]
        overrides = list({key_of(word): word for word in words if key_of(word) not in OURS}.values())
    return choices, overrides


def label(cfg: Any) -> str:
    """The run in a few words, for lists of runs: what was chosen, and what else the command line overrides."""
    choices, overrides = said(cfg.get("resume"))
    data = cfg.data.get("dataset") or cfg.data._target_.rpartition(".")[2]
    if members := cfg.model.get("members"):
        return f"{data}-ensemble-of-{len(members)}"
    parts = [data, choices.get("experiment") or f"{choices['model']}-{choices['optimizer']}"]
    parts.append(f"lr{cfg.optimizer.lr:g}")
    for override in overrides:
        key, _, value = override.partition("=")
        group, _, setting = key.lstrip("+~").partition(".")
        if group == "scheduler" and not setting:
            parts.append(value)
        elif setting and group in LABELLED and setting not in UNLABELLED:
            parts.append(setting.rpartition(".")[2] + value)
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts))[:80] + f"-seed{cfg.seed}"  # it becomes a folder


def find(path: str | os.PathLike[str] | None, *names: str) -> Path:
    """A checkpoint file, from its path or its run folder; the first of `names` that is there.

    Or that of the newest run: None, and Lightning's words `last` and `best`. Raises ValueError where there is none.
    """
    start = None if path is None else as_typed(path)
    if start is None or (path in LIGHTNINGS and not start.exists()):
        name = names[0] if path is None else f"{path}.ckpt"
        found = [file for runs in RUNS for file in as_typed(runs).glob(f"**/checkpoints/{name}")]
        hydra = HydraConfig.get() if HydraConfig.initialized() else None
        if hydra is not None and hydra.mode == RunMode.MULTIRUN:  # whose jobs would start from one another
            found = [file for file in found if not file.is_relative_to(as_typed(hydra.sweep.dir))]
        if not found:
            word = "ckpt_path" if path is None else f"ckpt_path={path}"
            raise ValueError(f"{word}: no run below {' or '.join(RUNS)} has a checkpoint yet; run train.py first")
        return max(found, key=lambda file: file.stat().st_mtime)
    places = [Path(start, folder, name) for name in names for folder in ("checkpoints", "")]
    for candidate in (start, *places):
        if candidate.is_file():
            return candidate
    missing = f"the folder holds no checkpoints/{names[0]}" if start.is_dir() else "there is no such file or folder"
    raise ValueError(f"ckpt_path={printable(path)}: {missing}")


def find_all(ckpt_path: Any, *names: str) -> list[Path]:
    """What `find` finds of `ckpt_path`, or of each of several: networks that answer together. Of a sweep, its jobs.

    Raises ValueError where one of them is not there, or is named twice.
    """
    several = isinstance(ckpt_path, ListConfig | list)
    paths = list(ckpt_path) if several else [ckpt_path]
    said = f"ckpt_path={printable(ckpt_path)}"
    if not paths:
        raise ValueError(f"{said}: is empty; name runs or checkpoints, as ckpt_path=[A,B]")
    found: list[Path] = []
    for path in paths:
        if isinstance(path, bool | dict | list | DictConfig | ListConfig) or (several and path is None):
            raise ValueError(f"{said}: must be a run or a checkpoint, or several: ckpt_path=[A,B]")
        path = None if path is None else str(path)
        folder = None if path is None else as_typed(path)
        jobs = folder.glob(f"**/checkpoints/{names[0]}") if folder is not None and plan.is_sweep(folder) else ()
        found += sorted(jobs, key=lambda file: (len(str(file)), file)) or [find(path, *names)]
    twice = [file for number, file in enumerate(found) if file.resolve() in map(Path.resolve, found[:number])]
    if twice:
        raise ValueError(f"{said}: names {printable(twice[0])} twice; name each once")
    return found


def name(checkpoint: Path) -> str:
    """As it can be typed: the run, where it is its best."""
    is_best = checkpoint.parts[-2:] == ("checkpoints", "best.ckpt")
    return short_path(checkpoint.parent.parent if is_best else checkpoint)


def names(checkpoints: list[Path]) -> str:
    """For people."""
    return printable(", ".join(map(name, checkpoints)) if len(checkpoints) > 1 else checkpoints[0])


def newest_run() -> Path:
    """The run that was at work last, whether it has a checkpoint yet or not. Raises ValueError where there is none."""
    found = {}
    for settings in [path for runs in RUNS for path in Path(runs).glob("**/.hydra/config.yaml")]:
        if "\nfit: false\n" not in "\n" + settings.read_text(encoding="utf-8"):  # which only tested another
            last = settings.parent.parent / "checkpoints" / "last.ckpt"
            found[settings.parent.parent] = (last if last.exists() else settings).stat().st_mtime
    if not found:
        raise ValueError(f"resume=last: there is no run below {' or '.join(RUNS)}; run train.py first")
    return max(found, key=lambda run: found[run])


def existing_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a run in this folder would be resumed from."""
    files = (folder / "checkpoints" / name for name in NEWEST)
    return next((file for file in files if file.is_file()), None)
