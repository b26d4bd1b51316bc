"""Compose, build, fit, test the best checkpoint, return the validation accuracy. `python train.py --help`."""

import logging
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mnist_pl.config import build, go_on, label, one_line_errors, remember

if TYPE_CHECKING:
    from lightning import Trainer

    from mnist_pl.data import MNISTDataModule
    from mnist_pl.models import DigitClassifier

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    with one_line_errors():
        data, model, trainer = build(cfg)
        start = find_start(model, trainer, cfg.fit, cfg.ckpt_path)
        remember(cfg)
        facts = {
            "run": label(cfg),
            "experiment": HydraConfig.get().runtime.choices.get("experiment"),
            "claim": cfg.claim,
            "seed": cfg.seed,
        }
        return run(data, model, trainer, cfg.fit, start, facts, OmegaConf.to_container(cfg, resolve=True))


def find_start(model: "DigitClassifier", trainer: "Trainer", fit: bool, ckpt_path: str | None) -> Path | None:
    """The checkpoint to go on from, or to test.

    Raises:
        ValueError: there is none, it does not fit, or another run would be written over.
    """
    from mnist_pl import checkpoint
    from mnist_pl.plots import near

    folder = Path(trainer.default_root_dir)
    start = None if ckpt_path is None else checkpoint.find(ckpt_path, *(checkpoint.NEWEST if fit else ("best.ckpt",)))
    held = checkpoint.held(folder)
    if held is not None and (start is None or not held.samefile(start)):
        raise ValueError(
            f"hydra.run.dir={folder}: holds a run already; choose another folder, or go on with resume={near(folder)}"
        )
    if start is None:
        if not fit:
            raise ValueError("fit=false only tests, and needs ckpt_path: a checkpoint or a run folder")
        return None
    trained = checkpoint.check_fits(start, model)
    if fit:
        checkpoint.check_continues(start, trained, model)
        untested = held is not None and not (folder / "summary.json").exists()  # killed after its last epoch
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trained["epochs"] and not untested:
            raise ValueError(
                f"ckpt_path={ckpt_path}: has trained {trained['epochs']} epochs and trainer.max_epochs is "
                f"{trainer.max_epochs}; raise it to go on, or say fit=false to only test"
            )
    return start


def run(
    data: "MNISTDataModule",
    model: "DigitClassifier",
    trainer: "Trainer",
    fit: bool,
    start: Path | None,
    facts: dict[str, Any],
    settings: Any,
) -> float | None:
    """Fits (or not), tests the best checkpoint, writes summary.json; returns the validation accuracy of the best.

    `facts` are what the caller wants to see in the summary too; `settings` are for the record.
    """
    from mnist_pl import checkpoint, loggers, summary

    asked = data.dataset
    data.prepare_data()
    data.setup("fit")
    facts["run"] = facts["run"].replace(asked, data.dataset, 1)  # after a fallback
    facts = summary.describe(trainer, model, data) | facts
    if trainer.is_global_zero:
        log.info("%s", summary.header(trainer, data, facts))
    before = {"global_step": -1, "train_seconds": 0.0}
    trained: dict[str, Any] = before if start is None else checkpoint.read(start)
    loggers.begin(trainer, trained["global_step"] if fit else -1, facts, settings)
    best = start
    facts |= {"train_seconds": 0.0, "images_per_second": None}
    if fit:
        if start is not None and checkpoint.held(Path(trainer.default_root_dir)) is not None:
            trainer.num_sanity_val_steps = 0  # its score is in this folder's record already
        model.started = perf_counter() - trained["train_seconds"]
        trainer.ckpt_path = start
        try:
            trainer.fit(model, datamodule=data, weights_only=True)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if start is None or trainer.global_step not in (0, trained["global_step"]):
                raise
            raise ValueError(f"ckpt_path={start}: cannot be continued ({type(error).__name__}: {error})") from error
        trainer.ckpt_path = None
        seconds = perf_counter() - model.started
        facts |= {"train_seconds": round(seconds, 3), "images_per_second": round(model.images_seen / seconds, 1)}
        paths = [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, checkpoint.Best)]
        best = next((Path(path) for path in paths if path), None)
    best_scores = checkpoint.read(best).get("metrics", {}) if best else {}
    loggers.log_best(trainer, best_scores)
    trainer.test(model, datamodule=data, ckpt_path=best, verbose=False, weights_only=True)
    result = summary.conclude(trainer, model, facts, best, best_scores)
    if trainer.is_global_zero:
        summary.write(trainer.default_root_dir, result)
        log.info("%s", summary.table(result, trainer))
    return result["val/acc"]


if __name__ == "__main__":
    with one_line_errors():
        sys.argv[1:] = go_on(sys.argv[1:])
        main()
