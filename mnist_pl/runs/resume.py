"""`resume=` and `ckpt_path=`: how a run continues from a checkpoint, from the command line to Lightning's `fit`.

1. `expand_resume` turns `resume=RUN` into the overrides that the run was started with, before Hydra reads them.
2. `find_start` finds the checkpoint, and refuses one that does not fit, before anything is done.
3. `remember` writes the overrides that were added into the run's folder, once all was checked.
The rest is Lightning's, with `engine/resume.py` for the exact bits.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mnist_pl.runs.folders import NEWEST, existing_checkpoint, find
from mnist_pl.storage import short_path, write

if TYPE_CHECKING:
    from lightning import Trainer

    from mnist_pl.models import DigitClassifier


def expand_resume(arguments: list[str]) -> list[str]:
    """A command line's arguments in which `resume=RUN` stands for all overrides that the run was started with.

    The other arguments win over the run's own. Ends the program where there is nothing left to do.

    Raises:
        ValueError: there is no such run, or it is a sweep that is asked for.
    """
    more = [argument for argument in arguments if not argument.startswith("resume=")]
    runs = [argument.partition("=")[2].strip("'\"") for argument in arguments if argument.startswith("resume=")]
    if not runs or runs[-1] in ("", "null"):
        return arguments
    if {"-m", "--multirun"} & set(arguments):
        raise ValueError(f"resume={runs[-1]}: continues one run; leave out -m")
    folder = Path(runs[-1])
    if runs[-1] == "last":
        folder = find(None, "last.ckpt").parent.parent
    path = folder / ".hydra" / "overrides.yaml"
    if not path.is_file() or not path.stat().st_size:
        raise ValueError(
            f"resume={runs[-1]}: {path} tells how a run was started, and is "
            f"{'empty' if path.is_file() else 'not there'}; name a run folder, or say resume=last for the newest"
        )
    if (folder / "summary.json").exists() and not more:
        print(f"{folder} is finished; to train it further, add for instance trainer.max_epochs=10")
        sys.exit()
    overrides = {_key(override): override for override in map(str, OmegaConf.load(path)) if _key(override) != "sweep"}
    overrides |= {_key(override): override for override in more}
    checkpoint = existing_checkpoint(folder)
    if checkpoint is not None:  # else it was killed before its first checkpoint, and starts again
        overrides["ckpt_path"] = f"ckpt_path={_quote(checkpoint)}"
    return [*overrides.values(), f"hydra.run.dir={_quote(folder)}", "hydra.output_subdir=null"]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _quote(path: Path) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def find_start(model: "DigitClassifier", trainer: "Trainer", fit: bool, ckpt_path: str | None) -> Path | None:
    """The checkpoint to resume from, or to test.

    Raises:
        ValueError: there is none, it does not fit, or another run would be written over.
    """
    from mnist_pl.reading.checkpoint import check_continues, check_fits

    folder = Path(trainer.default_root_dir)
    start = None if ckpt_path is None else find(ckpt_path, *(NEWEST if fit else ("best.ckpt",)))
    existing = existing_checkpoint(folder)
    if existing is not None and (start is None or not existing.samefile(start)):
        raise ValueError(
            f"hydra.run.dir={folder}: holds an existing run; choose another folder, or resume it with "
            f"resume={short_path(folder)}"
        )
    if start is None:
        if not fit:
            raise ValueError("fit=false only tests, and needs ckpt_path: a checkpoint or a run folder")
        return None
    trained = check_fits(start, model)
    if fit:
        check_continues(start, trained, model)
        untested = existing is not None and not (folder / "summary.json").exists()  # killed after its last epoch
        epochs = trained.get("epochs", trained.get("epoch", 0))
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs and not untested:
            raise ValueError(
                f"ckpt_path={ckpt_path}: has trained {epochs} epochs and trainer.max_epochs is "
                f"{trainer.max_epochs}; raise it to train further, or say fit=false to only test"
            )
    return start


def remember(cfg: DictConfig) -> None:
    """Brings .hydra up to date in a folder whose run is resumed, where Hydra itself would risk what is there."""
    folder = Path(HydraConfig.get().runtime.output_dir, ".hydra")
    if HydraConfig.get().output_subdir is None and folder.exists():
        overrides = OmegaConf.to_yaml(HydraConfig.get().overrides.task)
        for name, text in (("config.yaml", OmegaConf.to_yaml(cfg)), ("overrides.yaml", overrides)):
            write(folder / name, text.encode())


def fit(trainer: "Trainer", model: "DigitClassifier", data: Any, start: Path | None, step: int) -> None:
    """`trainer.fit`, from the checkpoint `start`, of optimiser step `step`, where there is one.

    Raises:
        ValueError: the checkpoint cannot be continued.
    """
    from mnist_pl.engine.checkpoints import Best

    if start is not None:
        if existing_checkpoint(Path(trainer.default_root_dir)) is not None:
            trainer.num_sanity_val_steps = 0  # its score is in this folder's record already
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Best):
                callback.continued = start
    try:
        trainer.fit(model, datamodule=data, ckpt_path=start, weights_only=True)
    except Exception as error:  # whatever a broken checkpoint leads to
        if start is None or trainer.global_step not in (0, step):
            raise
        raise ValueError(f"ckpt_path={start}: cannot be continued ({type(error).__name__}: {error})") from error
