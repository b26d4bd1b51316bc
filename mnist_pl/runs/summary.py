"""What a run says of itself: its first lines, summary.json, and the table at its end."""

import json
import math
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.loggers import TensorBoardLogger

from mnist_pl.data import MNISTDataModule
from mnist_pl.engine.checkpoints import Best
from mnist_pl.engine.record import Record
from mnist_pl.models import DigitClassifier, Ensemble
from mnist_pl.models.classifier import ADAM, class_path, is_known
from mnist_pl.runs.claim import taken
from mnist_pl.storage import as_word, in_shell, printable, short_path, write

DIGIT = "vs_digit/acc_"  # what GatherAnswers logs


def describe(trainer: Trainer, model: DigitClassifier, data: MNISTDataModule, chosen: dict[str, Any]) -> dict[str, Any]:
    """What was chosen, one value each; `chosen` has what only the command line knows: run, seed, experiment, claim."""
    trained = not isinstance(model, Ensemble)
    return {
        "data": data.dataset,
        "model": type(model).__name__,
        "optimizer": (model.hparams["optimizer"] or ADAM)["_target_"].rpartition(".")[2] if trained else None,
        "lr": model.lr if trained else None,
        "batch_size": data.hparams["batch_size"],
        "epochs": trainer.max_epochs,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **chosen,
    }


def header(trainer: Trainer, data: MNISTDataModule, facts: dict[str, Any]) -> str:
    train, val, test = (f"{len(data.splits[name][1]):,}" for name in ("train", "val", "test"))
    made = sum(len(labels) for _, labels in data.made)
    train += f" and {made:,} synthetic" if made else ""
    batches = f"{trainer.world_size} x " * (trainer.world_size > 1) + str(facts["batch_size"])
    lines = {
        "data": f"{facts['data']}: {train} training, {val} validation, {test} test images",
        "model": f"{facts['model']}, {facts['parameters']:,} parameters",
        "with": facts["lr"] and f"{facts['optimizer']}, lr {facts['lr']:g}, batches of {batches}, seed {facts['seed']}",
        "on": _device(trainer),
        "in": printable(short_path(trainer.default_root_dir) + "".join(f" ({name} is taken)" for name in taken[:1])),
    }
    wrapper = textwrap.TextWrapper(shutil.get_terminal_size().columns, subsequent_indent=" " * 10)
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    return "\n".join(wrapper.fill(f"{name:10}{text}") for name, text in lines.items() if text) + "\n"


def results(
    trainer: Trainer, facts: dict[str, Any], best: Path | None, best_scores: dict[str, float]
) -> dict[str, Any]:
    """summary.json, one flat object: `facts`, and what came out."""
    scores = {**trainer.callback_metrics, **{name: best_scores.get(name) for name in ("val/acc", "val/loss")}}
    figures = ("val/acc", "val/loss", "test/acc", "test/loss", "test/calibration_error")
    each = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(DIGIT)}
    worst = min(each, key=lambda name: each[name], default=None)
    known = trainer.callback_metrics.get("test/label_errors")
    return {
        **facts,
        "device": _device(trainer),
        "processes": trainer.world_size,
        **{name: _figure(scores.get(name)) for name in figures},
        "test/label_errors": None if known is None else int(known),  # of the wrong answers; the label may be wrong
        "test_images": _test_images(trainer),
        "worst_digit": None if worst is None else int(worst.removeprefix(DIGIT)),
        "worst_digit_acc": None if worst is None else _figure(each[worst]),
        "best_checkpoint": short_path(best) if best else None,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "git_commit": git_commit(),
    }


def _test_images(trainer: Trainer) -> int:
    """That were scored; all, where a loader of one's own does not tell its batches."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    size = getattr(data.test_dataloader(), "batch_size", None) or math.inf
    return int(min(len(data.splits["test"][1]), sum(trainer.num_test_batches) * size * trainer.world_size))


def _figure(score: torch.Tensor | float | None) -> float | None:
    return None if score is None else round(float(score), 6)  # float32 holds no more


def best_checkpoint(trainer: Trainer) -> Path | None:
    """What the run's own Best has kept."""
    paths = [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, Best)]
    return next((Path(path) for path in paths if path), None)


def course(trainer: Trainer) -> dict[str, Any]:
    """Of the training, with that before a checkpoint that it was resumed from; without Record, no time."""
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    record = next((callback for callback in callbacks if isinstance(callback, Record)), None)
    seconds, images = (record.train_seconds, record.images_seen) if record is not None else (None, 0)
    batches, all_batches = trainer.fit_loop.batch_idx + 1, trainer.num_training_batches
    return {
        "epochs": trainer.current_epoch - (0 < batches < all_batches),  # whole ones
        "steps": trainer.global_step,
        "train_seconds": None if seconds is None else round(seconds, 3),
        "images_per_second": round(images / seconds, 1) if seconds and images else None,
        "ended_by": _ended_by(trainer),
    }


def course_before(trained: dict[str, Any]) -> dict[str, Any]:
    """The same of a checkpoint that is only tested."""
    epochs = trained.get("epochs", trained.get("epoch"))
    return {"epochs": epochs, "steps": trained.get("global_step"), "train_seconds": 0.0, "images_per_second": None}


def _ended_by(trainer: Trainer) -> str | None:
    """What ended the training before its last epoch."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return f"trainer.max_steps={trainer.max_steps}"
    for callback in trainer.callbacks if trainer.should_stop else []:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (callback.time_remaining() or 0) <= 0:
            return f"trainer.max_time, after {callback.time_elapsed():.1f} s"
        if isinstance(callback, EarlyStopping) and callback.wait_count >= callback.patience:
            return f"EarlyStopping: {callback.monitor} has not improved for {callback.patience} validations"
    return "a callback" if trainer.should_stop else None


def write_json(folder: str, summary: dict[str, Any]) -> None:
    write(Path(folder, "summary.json"), (json.dumps(summary, indent=2) + "\n").encode())


def table(summary: dict[str, Any], trainer: Trainer) -> str:
    lines = [f"\n{'':10}{'loss':>10}{'accuracy':>12}"]
    for stage in ("val", "test"):
        if summary[f"{stage}/acc"] is not None:
            lines.append(f"{stage:10}{summary[f'{stage}/loss']:>10.4f}{summary[f'{stage}/acc']:>12.2%}")
    if summary["worst_digit"] is not None:
        lines.append(f"{'worst':10}{'digit ' + str(summary['worst_digit']):>10}{summary['worst_digit_acc']:>12.2%}")
    if summary["train_seconds"]:
        speed = f"{summary['images_per_second']:>12,.0f} images/s" if summary["images_per_second"] else ""
        lines.append(f"{'time':10}{summary['train_seconds']:>8.1f} s{speed}")
    where = short_path(trainer.default_root_dir)
    more = {"all in": printable(where)}
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        first = Path(where).parts[:1]
        runs = where if first in ((), ("..",), (Path(where).anchor,)) else first[0]
        more["look"] = "tensorboard --logdir " + in_shell(re.sub("^(?=[-~])", "./", runs))
    if tested := summary.get("members") or summary["best_checkpoint"]:
        tested = tested if summary["train_seconds"] == 0 else where
        kind = type(trainer.lightning_module)
        own = "" if is_known(kind) else f" model._target_={class_path(kind)}"
        more["predict"] = f"python predict.py {as_word('ckpt_path', tested)}{own}"
    if summary.get("ended_by"):
        more["ended"] = f"by {summary['ended_by']}, at step {summary['steps']:,}"
    return "\n".join([*lines, *(f"{name:10}{text}" for name, text in more.items())])


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    if trainer.world_size > 1:
        return f"{name}, {trainer.world_size} processes"
    return f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else name


def git_commit() -> str | None:
    """Of the code that runs; None where it is not in a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
