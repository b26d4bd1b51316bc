"""Checkpoints: which ones a run keeps, where they are found, and reading them without trusting them."""

import io
import logging
import os
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from mnist_pl.models import DigitClassifier

log = logging.getLogger(__name__)

RUNS = ("outputs", "multirun")  # where Hydra puts run folders, below the current one


def write(path: Path, content: bytes | memoryview) -> None:
    """Writes beside the target, flushes to disk, renames: whatever happens, the file under the final name is whole.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name too
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise OSError(f"{path}: cannot be written ({reason}); what was there before is untouched") from error


class DurableIO(TorchCheckpointIO):
    """Checkpoints through `write` and `read`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write(Path(path), content.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read(Path(path))


class Best(ModelCheckpoint):
    """`best.ckpt`: the weights of the best validation score; the last epoch's where there is nothing to choose by."""

    def __init__(self, dirpath: str, monitor: str | None = "val/acc", mode: str = "max") -> None:
        super().__init__(dirpath, filename="best", monitor=monitor, mode=mode, enable_version_counter=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # The test images may be drawn every epoch, as published scripts do, but nothing is ever chosen by them.
        if not trainer.datamodule.selects or trainer.limit_val_batches == 0:  # type: ignore[attr-defined]
            self.monitor = None
        super().setup(trainer, pl_module, stage)
        self.continued = Path(trainer.ckpt_path) if trainer.ckpt_path else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run that continues another in a folder of its own takes the other's best along, until it does better."""
        if self.continued is None or self.dirpath is None:
            return
        theirs, ours = self.continued.with_name("best.ckpt"), Path(self.dirpath, "best.ckpt")
        if theirs.is_file() and state_dict["monitor"] == self.monitor:
            if theirs.resolve() != ours.resolve():
                ours.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(theirs, ours)
            paths = {"best_model_path": str(ours), "kth_best_model_path": str(ours), "dirpath": self.dirpath}
            best = {str(ours): state_dict["best_model_score"]}
            super().load_state_dict({**state_dict, **paths, "best_k_models": best})


class Last(ModelCheckpoint):
    """`last.ckpt`: where to go on from. `Best` alone would leave it behind whenever the score does not improve."""

    def __init__(self, dirpath: str, every_n_train_steps: int | None = None) -> None:
        super().__init__(
            dirpath, filename="last", every_n_train_steps=every_n_train_steps, enable_version_counter=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing is compared with what came before."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.signal: int | None = None
        self.handlers = {}
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number: int, frame: Any) -> None:
        """A second one is not waited for."""
        self.signal = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def on_train_batch_end(self, trainer: Trainer, *rest: Any, **more: Any) -> None:
        """Stops here, between two steps, where a checkpoint holds all that is needed to go on exactly."""
        super().on_train_batch_end(trainer, *rest, **more)
        if self.signal is not None:
            self._save_checkpoint(trainer, os.path.join(str(self.dirpath), "last.ckpt"))
            name = signal.Signals(self.signal).name
            log.warning("stopped by %s after step %d; go on with ckpt_path=%s", name, trainer.global_step, self.dirpath)
            raise SystemExit(128 + self.signal)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in getattr(self, "handlers", {}).items():
            signal.signal(number, handler)
        self.handlers = {}


def find(path: str | os.PathLike[str] | None, name: str = "best.ckpt") -> Path:
    """A checkpoint file, from its path, its run folder, or (None) the newest run.

    Raises:
        ValueError: there is none.
    """
    if path is None:
        found = [file for runs in RUNS for file in Path(runs).glob(f"**/checkpoints/{name}")]
        if not found:
            raise ValueError(f"ckpt_path: no run below {' or '.join(RUNS)} has a checkpoint yet; run train.py first")
        return max(found, key=lambda file: file.stat().st_mtime)
    for candidate in (Path(path), Path(path, "checkpoints", name), Path(path, name)):
        if candidate.is_file():
            return candidate
    missing = f"the folder holds no checkpoints/{name}" if Path(path).is_dir() else "there is no such file or folder"
    raise ValueError(f"ckpt_path={path}: {missing}")


def read(path: Path) -> dict[str, Any]:
    """The checkpoint's plain values and tensors, on the CPU. Nothing in the file is executed.

    Raises:
        ValueError: the file is not a checkpoint of this project.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's file can break the reader in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"ckpt_path={path}: not a checkpoint that can be read safely ({reason})") from error
    kinds = {"model": str, "state_dict": dict, "hyper_parameters": dict, "datamodule_hyper_parameters": dict}
    if not isinstance(checkpoint, dict) or any(
        not isinstance(checkpoint.get(name), kind) for name, kind in kinds.items()
    ):
        raise ValueError(f"ckpt_path={path}: not a checkpoint of this project (it lacks {', '.join(kinds)})")
    return checkpoint


def load_model(path: Path) -> tuple[DigitClassifier, dict[str, Any]]:
    """Rebuilds the network that a checkpoint describes, ready to predict; returns it with the checkpoint.

    Raises:
        ValueError: the file is not a checkpoint of this project, or does not hold what it describes.
    """
    checkpoint = read(path)
    classes = {kind.__name__: kind for kind in DigitClassifier.__subclasses__()}
    if checkpoint["model"] not in classes:
        raise ValueError(f"ckpt_path={path}: holds a {checkpoint['model']!r}, not one of {', '.join(classes)}")
    settings = {**checkpoint["hyper_parameters"], "optimizer": None, "scheduler": None}
    try:
        with torch.device("meta"):  # shapes without memory, whatever sizes a stranger's file asks for
            _compare(classes[checkpoint["model"]](**settings), checkpoint["state_dict"])
        model = classes[checkpoint["model"]](**settings)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"ckpt_path={path}: does not hold what it describes ({error})") from error
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval(), checkpoint


def check_fits(path: Path, model: DigitClassifier) -> dict[str, Any]:
    """Reads a checkpoint that `model` is to take over.

    Raises:
        ValueError: it was made by another network.
    """
    checkpoint = read(path)
    name = type(model).__name__
    if any(part not in checkpoint for part in ("training", "loops", "images_seen", "optimizer_states")):
        raise ValueError(f"ckpt_path={path}: holds weights alone, and cannot be continued; predict.py can use it")
    if checkpoint["model"] != name:
        raise ValueError(
            f"ckpt_path={path}: holds the network {checkpoint['model']} and model is {name}; "
            f"say model={checkpoint['model'].lower()}"
        )
    try:
        _compare(model, checkpoint["state_dict"])
    except ValueError as error:
        raise ValueError(f"ckpt_path={path}: {error}; give the model.* settings that it was trained with") from error
    return checkpoint


def _compare(model: DigitClassifier, weights: dict[str, Any]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{name} has the shape {found.get(name, 'of nothing')} in it and {expected.get(name, 'of nothing')} "
                "in the network"
            )
