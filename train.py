"""Compose, build, fit, test the best checkpoint, return the validation accuracy. `python train.py --help`."""

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mnist_pl.config import build, one_line_errors

if TYPE_CHECKING:
    from lightning import Trainer

    from mnist_pl.data import MNISTDataModule
    from mnist_pl.models import DigitClassifier


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    with one_line_errors():
        data, model, trainer = build(cfg)
        facts = {
            "experiment": HydraConfig.get().runtime.choices.get("experiment"),
            "claim": cfg.claim,
            "seed": cfg.seed,
        }
        return run(data, model, trainer, cfg.fit, cfg.ckpt_path, facts)


def run(
    data: "MNISTDataModule",
    model: "DigitClassifier",
    trainer: "Trainer",
    fit: bool,
    ckpt_path: str | None,
    facts: dict[str, Any],
) -> float | None:
    """Fits (or not), tests the best checkpoint, writes summary.json; returns the validation accuracy of the best.

    `facts` are what the caller wants to see in the summary too.
    """
    from mnist_pl import callbacks, checkpoint

    best, start, seconds = None, None, 0.0
    if ckpt_path is not None:
        start = checkpoint.find(ckpt_path, "last.ckpt" if fit else "best.ckpt")
        trained = checkpoint.check_fits(start, model)
        model.images_seen = trained["images_seen"]
        epochs = trained["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        if fit and trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs:
            raise ValueError(
                f"ckpt_path={ckpt_path}: has trained {epochs} epochs and trainer.max_epochs is "
                f"{trainer.max_epochs}; raise it to go on, or say fit=false to only test"
            )
    elif not fit:
        raise ValueError("fit=false only tests, and needs ckpt_path: a checkpoint or a run folder")
    if Path(trainer.default_root_dir, "checkpoints").exists():
        raise ValueError(f"hydra.run.dir={trainer.default_root_dir}: holds a run already; choose another folder")
    seen_before = model.images_seen
    data.prepare_data()
    data.setup("fit")
    if trainer.is_global_zero:
        callbacks.log.info("%s", callbacks.header(trainer, model, data))
    if fit:
        started = perf_counter()
        trainer.ckpt_path = start
        trainer.fit(model, datamodule=data, weights_only=True)
        trainer.ckpt_path = None
        seconds = perf_counter() - started
        paths = [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, checkpoint.Best)]
        best = next((Path(path) for path in paths if path), None)
    else:
        best = start
    trainer.test(model, datamodule=data, ckpt_path=best, verbose=False, weights_only=True)
    facts["train_seconds"] = round(seconds, 3)
    facts["images_per_second"] = round((model.images_seen - seen_before) / seconds, 1) if fit else None
    summary = callbacks.summarise(trainer, model, data, best, facts)
    if trainer.is_global_zero:
        callbacks.write_summary(trainer.default_root_dir, summary)
        callbacks.log.info("%s", callbacks.table(summary, trainer.default_root_dir))
    return summary["val/acc"]


if __name__ == "__main__":
    with one_line_errors():
        main()
