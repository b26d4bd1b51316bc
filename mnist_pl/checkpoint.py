"""Checkpoints: which ones a run keeps, where they are found, and reading them without trusting them."""

import io
import logging
import os
import pickletools
import re
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from mnist_pl.models import DigitClassifier
from mnist_pl.plots import near

log = logging.getLogger(__name__)

RUNS = ("outputs", "multirun")  # where Hydra puts run folders, below the current one
NEWEST = ("last.ckpt", "best.ckpt")  # a run that is killed as it writes its first ones has the best alone
# What torch.save writes for numbers, strings, containers and tensors of the usual kinds.
PLAIN = re.compile(r"torch \w+Storage|torch\._utils _rebuild_tensor_v2|collections OrderedDict")
LARGEST_LAYER = 2_000_000  # numbers for one image: two gigabytes for the 250 images that predict.py takes at a time
# Ctrl-C, `kill`, and what SLURM (#SBATCH --signal) and submitit send before a time limit.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


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
            # Its own score: a killed run may have written it after the checkpoint that is gone on from.
            score = read(theirs)["metrics"][self.monitor] if self.monitor is not None else None
            if theirs.resolve() != ours.resolve():
                ours.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(theirs, ours)
            paths = {"best_model_path": str(ours), "kth_best_model_path": str(ours), "dirpath": self.dirpath}
            scores = {"best_model_score": score, "kth_value": score, "best_k_models": {str(ours): score}}
            super().load_state_dict({**state_dict, **paths, **scores, "last_model_path": ""})


class Last(Checkpoint):
    """`last.ckpt`: where to go on from. Written after each epoch, when a signal asks to stop, and as often as is said.

    Args:
        every_n_train_steps: steps of the optimiser.
        every_n_minutes: of wall time; looked at between two steps.

    Raises:
        ValueError: one of them is not positive.
    """

    def __init__(
        self, dirpath: str, every_n_train_steps: int | None = None, every_n_minutes: float | None = None
    ) -> None:
        limits = {"every_n_train_steps": every_n_train_steps, "every_n_minutes": every_n_minutes}
        for name, value in limits.items():
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"callbacks.last.{name} must be a positive number or null, got {value!r}")
        self.path = Path(dirpath, "last.ckpt")
        self.every_n_train_steps, self.every_n_minutes = every_n_train_steps, every_n_minutes
        self.signal: int | None = None
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            for part in self.path.parent.glob(".*.part"):  # left by a process that was killed while it wrote
                part.unlink()
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self._note) for number in STOPPING}

    def _note(self, number: int, frame: Any) -> None:
        """A second one is not waited for."""
        self.signal = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1  # where gradients wait for more, they would be lost
        if done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches:
            step, minutes = trainer.global_step, (time.monotonic() - self.saved_time) / 60
            counted = self.every_n_train_steps is not None and step % self.every_n_train_steps == 0
            if (counted and step != self.saved_step) or (
                self.every_n_minutes is not None and minutes >= self.every_n_minutes
            ):
                self._save(trainer)
            self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *rest: Any, **more: Any) -> None:
        if not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
        self._stop_if_asked(trainer)

    def _save(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)
        self.saved_step, self.saved_time = trainer.global_step, time.monotonic()

    def _stop_if_asked(self, trainer: Trainer) -> None:
        """Here, between two batches, a checkpoint holds all that is needed to go on exactly."""
        if not trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False):
            return
        self._save(trainer)
        number = self.signal or signal.SIGTERM  # another process got it
        if trainer.is_global_zero:
            name = signal.Signals(number).name
            run = near(trainer.default_root_dir)
            log.warning("stopped by %s after step %d; go on with resume=%s", name, trainer.global_step, run)
        raise SystemExit(128 + number)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


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


def held(folder: Path) -> Path | None:
    """The checkpoint that a run in this folder would go on from."""
    files = (folder / "checkpoints" / name for name in NEWEST)
    return next((file for file in files if file.is_file()), None)


def read(path: Path) -> dict[str, Any]:
    """The checkpoint's plain values and tensors, on the CPU. Nothing in the file is executed.

    Raises:
        ValueError: the file is not a checkpoint of this project, or holds less than it claims.
    """
    try:
        _look_through(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        claimed = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(checkpoint))
        if claimed > path.stat().st_size:  # views of a few numbers, that would fill the memory when copied
            raise ValueError(f"its tensors claim {claimed:,} bytes")
    except Exception as error:  # a stranger's file can break the reader in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"ckpt_path={path}: not a checkpoint that can be read safely ({reason})") from error
    kinds = {"model": str, "state_dict": dict, "hyper_parameters": dict, "datamodule_hyper_parameters": dict}
    if not isinstance(checkpoint, dict) or any(
        not isinstance(checkpoint.get(name), kind) for name, kind in kinds.items()
    ):
        raise ValueError(f"ckpt_path={path}: not a checkpoint of this project (it lacks {', '.join(kinds)})")
    return checkpoint


def _look_through(path: Path) -> None:
    """Raises ValueError where unpacking would take more memory than the file, or call more than makes a tensor.

    torch.load with weights_only=True runs no stranger's code, but it unpacks deflated entries, and builds a bytearray
    of any length.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("it is a compressed archive, which torch.save never writes")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                for opcode, name, _ in pickletools.genops(archive.read(entry)):
                    if "GLOBAL" in opcode.name and not PLAIN.fullmatch(str(name)):
                        raise ValueError(f"it calls for {name}")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """All in a nest of containers, each container once: it may hold itself."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values() if isinstance(item, dict) else item


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
    weights = checkpoint["state_dict"]
    try:
        if any(isinstance(value, list) and len(value) > len(weights) for value in settings.values()):
            raise ValueError("it describes more layers than it has weights")
        with torch.device("meta"):  # shapes without memory, whatever sizes a stranger's file asks for
            sketch = classes[checkpoint["model"]](**settings).eval()
            _compare(sketch, weights)
            _measure(sketch)
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise ValueError("some of its weights are no numbers")
        model = classes[checkpoint["model"]](**settings)
        model.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"ckpt_path={path}: does not hold what it describes ({reason})") from error
    return model.eval(), checkpoint


def _measure(sketch: DigitClassifier) -> None:
    """Raises ValueError where one layer's answer to one image is larger than this project's networks make sense of."""
    sizes: list[int] = []
    for layer in sketch.modules():
        layer.register_forward_hook(lambda module, images, answer: sizes.append(answer.numel()))
    sketch(torch.empty(1, 1, 28, 28))
    if max(sizes) > LARGEST_LAYER:
        raise ValueError(
            f"one of its layers gives {max(sizes):,} numbers for each image; {LARGEST_LAYER:,} are the most"
        )


def check_fits(path: Path, model: DigitClassifier) -> dict[str, Any]:
    """Reads a checkpoint that `model` is to take over.

    Raises:
        ValueError: it was made by another network.
    """
    checkpoint = read(path)
    name = type(model).__name__
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


def check_continues(path: Path, checkpoint: dict[str, Any], model: DigitClassifier) -> None:
    """Raises ValueError where the training that `checkpoint` is from cannot be gone on with by that of `model`."""
    needed = {"training": dict, "loops": dict, "epochs": int, "global_step": int, "train_seconds": float}
    if any(not isinstance(checkpoint.get(part), kind) for part, kind in needed.items()):
        raise ValueError(f"ckpt_path={path}: holds weights alone, and cannot be continued; predict.py can use it")
    for group in ("optimizer", "scheduler"):
        before, now = checkpoint["hyper_parameters"].get(group), model.hparams[group]
        if before and now and before["_target_"] != now["_target_"]:  # whose state would mean nothing to the other
            raise ValueError(
                f"ckpt_path={path}: was trained with the {group} {before['_target_'].rpartition('.')[2]}, "
                f"and {group} is {now['_target_'].rpartition('.')[2]}; give the same, with other settings if you like"
            )


def _compare(model: DigitClassifier, weights: dict[str, Any]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{name} has the shape {found.get(name, 'of nothing')} in it and {expected.get(name, 'of nothing')} "
                "in the network"
            )
