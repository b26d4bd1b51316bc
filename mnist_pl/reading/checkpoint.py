"""A stranger's checkpoint: read without trusting it, and the network that it describes rebuilt from it."""

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mnist_pl.models import DigitClassifier

# What torch.save writes for numbers, strings, containers and tensors of the usual kinds.
PLAIN = re.compile(r"torch \w+Storage|torch\._utils _rebuild_tensor_v2|collections (OrderedDict|Counter)")
LARGEST_LAYER = 2_000_000  # numbers for one image: two gigabytes for the 250 images that predict.py takes at a time


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
    kinds = {"model": str, "state_dict": dict, "hyper_parameters": dict}
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


def known_networks() -> dict[str, type[DigitClassifier]]:
    """By name: DigitClassifier's subclasses in this package, and theirs."""
    waiting, found = [DigitClassifier], dict[str, type[DigitClassifier]]()
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        waiting += subclasses
        found |= {kind.__name__: kind for kind in subclasses}
    return found


def load_model(path: Path) -> tuple[DigitClassifier, dict[str, Any]]:
    """Rebuilds the network that a checkpoint describes, ready to predict; returns it with the checkpoint.

    Raises:
        ValueError: the file is not a checkpoint of this project, or does not hold what it describes.
    """
    checkpoint = read(path)
    classes = known_networks()
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
            measure(sketch)
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise ValueError("some of its weights are NaN or infinite")
        model = classes[checkpoint["model"]](**settings)
        model.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"ckpt_path={path}: does not hold what it describes ({reason})") from error
    return model.eval(), checkpoint


def measure(sketch: DigitClassifier) -> None:
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
            "choose the model= that it was trained with"
        )
    try:
        _compare(model, checkpoint["state_dict"])
    except ValueError as error:
        raise ValueError(f"ckpt_path={path}: {error}; give the model.* settings that it was trained with") from error
    return checkpoint


def check_continues(path: Path, checkpoint: dict[str, Any], model: DigitClassifier) -> None:
    """Raises ValueError where the training that `checkpoint` is from cannot be continued by that of `model`."""
    needed = {"loops": dict, "optimizer_states": list, "global_step": int}
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
