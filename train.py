"""Compose, build, fit, test the best checkpoint, return the validation accuracy. `python train.py --help`."""

import os

from mnist_pl.signals import advise, end_on_signals

if __name__ == "__main__":
    end_on_signals(once_arranged="SLURM_JOB_ID" in os.environ)  # before the imports, which take their time

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from mnist_pl.runs.claim import holding, is_own
from mnist_pl.runs.config import CONF
from mnist_pl.runs.consent import again, check_consent, named
from mnist_pl.runs.errors import one_line_errors, set_up_process
from mnist_pl.runs.folders import label, name, said
from mnist_pl.runs.processes import check_no_sweep, check_same_data, ending_together, has_to_launch, launch
from mnist_pl.runs.resume import as_composed, changes, expand_resume, find_ensemble, find_start, fit, remember, result
from mnist_pl.runs.side_by_side import one_job
from mnist_pl.runs.slurm import go_on, note, set_up_job
from mnist_pl.runs.words import spell_out_none
from mnist_pl.storage import short_path

if TYPE_CHECKING:
    from lightning import Trainer

    from mnist_pl.data import MNISTDataModule
    from mnist_pl.models import DigitClassifier

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    folder = HydraConfig.get().runtime.output_dir
    with one_job(), one_line_errors(), holding(folder) as lock:
        sweep = HydraConfig.get().sweep.dir if HydraConfig.get().mode == RunMode.MULTIRUN else None
        if sweep and is_own(lock):  # a job that was interrupted
            if done := result(folder):
                return done["val/acc"]
            cfg = as_composed(cfg, folder)
            check_consent(cfg, sweep)
        check_consent(cfg, cfg.resume)
        import torch

        from mnist_pl.runs.build import build
        from mnist_pl.runs.check import check_test_batches

        data, model, trainer = build(cfg, find_ensemble(cfg))
        start = find_start(model, trainer, cfg.fit, cfg.ckpt_path)
        if start is not None:
            cfg.ckpt_path = str(start)  # `last` will be another one tomorrow
        if has_to_launch(cfg):
            if lock is not None:
                lock.keep()
            return launch(trainer, main, cfg)
        cfg.threads = torch.get_num_threads()  # resumed on another machine, it gets the same bits with as many
        changed = changes(cfg)
        data.prepare_data()
        data.setup("fit")
        check_same_data(data.dataset)
        check_test_batches(trainer, data)
        if cfg.data.get("dataset") not in (None, data.dataset):  # the fallback
            cfg.data.dataset, cfg.data.val_size = data.dataset, data.hparams["val_size"]
        if trainer.is_global_zero:
            if cfg.resume is not None:
                log.info("resumes %s, with %s", short_path(cfg.resume), ", ".join(changed) or "nothing changed")
            remember(cfg)
            if HydraConfig.get().mode == RunMode.RUN and cfg.fit:
                note(folder, named(cfg))
        if lock is not None:
            lock.keep()
        advise(f"continue with {again(cfg, sweep or folder)}")
        experiment = said(cfg.resume)[0].get("experiment")
        chosen = {"run": label(cfg), "experiment": experiment, "claim": cfg.claim, "seed": cfg.seed}
        if isinstance(cfg.ckpt_path, ListConfig):
            chosen["members"] = [name(Path(path)) for path in cfg.ckpt_path]
        with ending_together(trainer):
            return run(data, model, trainer, cfg.fit, start, chosen, OmegaConf.to_container(cfg, resolve=True))


def run(
    data: "MNISTDataModule",
    model: "DigitClassifier",
    trainer: "Trainer",
    training: bool,
    start: Path | None,
    chosen: dict[str, Any],
    settings: Any,
) -> float | None:
    """Fits (or not), tests the best checkpoint, writes summary.json; returns the validation accuracy of the best.

    An ensemble comes with its weights, and its validation images are scored too: no checkpoint tells its figures.
    `chosen` is what the summary shall say of the choices; `settings` are for the record.
    """
    from mnist_pl.models import Ensemble
    from mnist_pl.reading import checkpoint
    from mnist_pl.runs import loggers, summary

    trained = {} if start is None else checkpoint.read(start)
    step = trained.get("global_step", -1) if training else -1
    facts = summary.describe(trainer, model, data, chosen)
    if trainer.is_global_zero:
        log.info("%s", summary.header(trainer, data, facts))
    loggers.start_loggers(trainer, step, facts, settings, trained.get("epoch_row", {}))
    best = start
    if training:
        fit(trainer, model, data, start, step)
        best = summary.best_checkpoint(trainer)
    facts |= summary.course(trainer) if training else summary.course_before(trained)
    scores = checkpoint.read(best).get("metrics", {}) if best else {}
    is_joined = isinstance(model, Ensemble)
    if is_joined and trainer.limit_val_batches:
        scores = trainer.validate(model, datamodule=data, verbose=False)[0]
    loggers.log_best(trainer, scores)
    tested = None if is_joined else best
    trainer.test(model, datamodule=data, ckpt_path=tested, verbose=False, weights_only=True)
    summed_up = summary.results(trainer, facts, best, scores)
    if trainer.is_global_zero:
        summary.write_json(trainer.default_root_dir, summed_up)
        log.info("%s", summary.table(summed_up, trainer))
    advise(f"the run is finished, in {short_path(trainer.default_root_dir)}")
    return summed_up["val/acc"]


if __name__ == "__main__":
    set_up_process()
    set_up_job()
    sys.path.append(os.getcwd())  # for parts of one's own
    with one_line_errors():
        check_no_sweep(sys.argv[1:])
        sys.argv[1:] = expand_resume(spell_out_none(go_on(sys.argv[1:]), CONF), CONF)
        main()
