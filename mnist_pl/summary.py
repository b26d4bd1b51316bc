"""What a run says of itself: its first lines, summary.json, and the table at its end."""

import json
import shutil
import subprocess
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from mnist_pl import checkpoint
from mnist_pl.data import MNISTDataModule
from mnist_pl.models import DigitClassifier
from mnist_pl.plots import near


def describe(trainer: Trainer, model: DigitClassifier, data: MNISTDataModule) -> dict[str, Any]:
    """What was chosen, one value each."""
    optimizer = model.hparams["optimizer"]
    return {
        "data": data.dataset,
        "model": type(model).__name__,
        "optimizer": optimizer["_target_"].rpartition(".")[2],
        "lr": optimizer["lr"],
        "batch_size": data.hparams["batch_size"],
        "epochs": trainer.max_epochs,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def header(trainer: Trainer, data: MNISTDataModule, facts: dict[str, Any]) -> str:
    train, val, test = (f"{len(data.splits[name][1]):,}" for name in ("train", "val", "test"))
    lines = {
        "data": f"{facts['data']}: {train} training, {val} validation, {test} test images",
        "model": f"{facts['model']}, {facts['parameters']:,} parameters",
        "with": f"{facts['optimizer']}, lr {facts['lr']:g}, batches of {facts['batch_size']}, seed {facts['seed']}",
        "on": _device(trainer),
        "in": near(trainer.default_root_dir),
    }
    wrap = partial(
        textwrap.fill, width=shutil.get_terminal_size().columns, subsequent_indent=" " * 10, break_long_words=False
    )
    return "\n".join(wrap(f"{name:10}{text}", break_on_hyphens=False) for name, text in lines.items()) + "\n"


def conclude(
    trainer: Trainer, model: DigitClassifier, facts: dict[str, Any], best: Path | None, best_scores: dict[str, float]
) -> dict[str, Any]:
    """summary.json, one flat object: `facts`, and what came out."""
    scores = {**trainer.callback_metrics, **{name: best_scores.get(name) for name in ("val/acc", "val/loss")}}
    figures = ("val/acc", "val/loss", "test/acc", "test/loss", "test/calibration_error")
    assert model.answers is not None
    each = model.answers.accuracy_of_each().nan_to_num(2)
    return {
        **facts,
        "epochs": trainer.current_epoch,
        "device": _device(trainer),
        **{name: _figure(scores.get(name)) for name in figures},
        "worst_digit": int(each.argmin()),
        "worst_digit_acc": _figure(each.min()),
        "best_checkpoint": near(best) if best else None,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "git_commit": _git_commit(),
    }


def _figure(score: torch.Tensor | float | None) -> float | None:
    return None if score is None else round(float(score), 6)  # float32 holds no more


def write(folder: str, summary: dict[str, Any]) -> None:
    checkpoint.write(Path(folder, "summary.json"), (json.dumps(summary, indent=2) + "\n").encode())


def table(summary: dict[str, Any], trainer: Trainer) -> str:
    lines = [f"\n{'':10}{'loss':>10}{'accuracy':>12}"]
    for stage in ("val", "test"):
        if summary[f"{stage}/acc"] is not None:
            lines.append(f"{stage:10}{summary[f'{stage}/loss']:>10.4f}{summary[f'{stage}/acc']:>12.2%}")
    lines.append(f"{'worst':10}{'digit ' + str(summary['worst_digit']):>10}{summary['worst_digit_acc']:>12.2%}")
    if summary["train_seconds"]:
        lines.append(f"{'time':10}{summary['train_seconds']:>8.1f} s{summary['images_per_second']:>12,.0f} images/s")
    where = near(trainer.default_root_dir)
    more = {"all in": where}
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        more["look"] = f"tensorboard --logdir {where if Path(where).is_absolute() else Path(where).parts[0]}"
    if summary["best_checkpoint"]:
        more["predict"] = (
            f"python predict.py ckpt_path={where if summary['train_seconds'] else summary['best_checkpoint']}"
        )
    return "\n".join([*lines, *(f"{name:10}{text}" for name, text in more.items())])


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)


def _git_commit() -> str | None:
    """Of the code that runs; None where it is not in a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
