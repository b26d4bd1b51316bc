"""A stranger's checkpoint: read without trusting it, and the network that it describes rebuilt from it."""

import io
import os
import pickletools
import pkgutil
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import takewhile
from math import inf
from pathlib import Path
from typing import Any, BinaryIO

import lightning
import torch
from hydra.utils import get_class

from mnist_pl import models
from mnist_pl.models import DigitClassifier, Ensemble
from mnist_pl.models.classifier import class_path, is_known, known_as, networks, rebuild
from mnist_pl.models.ensemble import MOST
from mnist_pl.storage import one_line

# What torch.save writes for numbers, strings, containers and tensors of the usual kinds.
PLAIN = re.compile(r"torch \w+Storage|torch\._utils _rebuild_tensor_v2|collections (OrderedDict|Counter)")
LARGEST_LAYER = 2_000_000  # numbers for one image: two gigabytes for the 250 images that predict.py takes at a time


def read(path: Path) -> dict[str, Any]:
    """The checkpoint's plain values and tensors, on the CPU; nothing in the file is executed. Raises ValueError where
    it is not a checkpoint of this project, or holds less than it claims."""
    try:
        with open(path, "rb") as file:
            checkpoint = _read(file, path.stat().st_size)
    except Exception as error:  # a stranger's file can break the reader in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"ckpt_path={path}: not a checkpoint that can be read safely ({reason})") from error
    match checkpoint:
        case {"model": str(), "state_dict": dict(), "hyper_parameters": dict()}:
            return checkpoint
    lacks = "it lacks model, state_dict, hyper_parameters"
    raise ValueError(f"ckpt_path={path}: not a checkpoint of this project ({lacks})")


def _read(file: BinaryIO, size: int) -> Any:
    _look_through(file, size)
    file.seek(0)
    content = torch.load(file, map_location="cpu", weights_only=True)
    claims: dict[int, int] = {}  # by storage, which tied weights share
    for tensor in _tensors(content):
        place = tensor.untyped_storage().data_ptr()
        claims[place] = max(claims.get(place, 0), tensor.numel() * tensor.element_size())
    if sum(claims.values()) > size:  # views of a few numbers, that would fill the memory when copied
        raise ValueError(f"its tensors claim {sum(claims.values()):,} bytes")
    return content


def check_can_be_kept(parts: Mapping[str, Any]) -> None:
    """Raises ValueError where `read` would refuse one of `parts`, by name, in a checkpoint that has it."""
    for name, part in parts.items():
        content = io.BytesIO()
        try:
            torch.save(part, content)
            _read(content, content.tell())
        except Exception as error:  # whatever pickle makes of a stranger's object
            raise ValueError(
                f"{name} cannot be kept in a checkpoint ({one_line(error)}); take plain values, such as names"
            ) from error


def _look_through(file: BinaryIO, size: int) -> None:
    """Raises ValueError where unpacking would take more memory than the file, or call more than makes a tensor:
    torch.load with weights_only=True runs no stranger's code, but inflates entries, and builds any bytearray."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > size:
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
    """By name: DigitClassifier's subclasses in `mnist_pl.models`, and theirs."""
    for module in pkgutil.walk_packages(models.__path__, f"{models.__name__}."):
        import_module(module.name)
    return {name: kind for name, kind in networks().items() if is_known(kind)}


def load(paths: Sequence[Path], own: type | None = None) -> tuple[DigitClassifier, dict[str, Any]]:
    """`load_model` of one checkpoint, or `join` of several."""
    return load_model(paths[0], own) if len(paths) == 1 else join(paths, own)


def join(paths: Sequence[Path], own: type | None = None, **how: Any) -> tuple[Ensemble, dict[str, Any]]:
    """The networks of some checkpoints as an Ensemble, as `load_model` gives one, with a checkpoint of its own, which
    says of its data what the first does. `how` has the Ensemble's other settings.

    Raises ValueError where a file is not a checkpoint of this project, or they were trained on different data sets.
    """
    members: list[DigitClassifier] = []
    about: list[dict[str, Any]] = []  # of the data of each
    for path in paths:
        is_ours = own is not None and class_name(read(path)) in known_networks()
        network, checkpoint = load_model(path, None if is_ours else own)
        members.append(network)
        about.append(trained_on(checkpoint))
        if about[-1].get("dataset") != about[0].get("dataset"):
            raise ValueError(
                f"ckpt_path={path}: was trained on {one_line(about[-1].get('dataset'))}, and {paths[0]} on "
                f"{one_line(about[0].get('dataset'))}; only networks of one data set answer together"
            )
    try:
        ensemble = Ensemble.of(members, **how)
    except ValueError as error:
        raise ValueError(f"ckpt_path=[{','.join(map(str, paths))}]: {error}") from error
    if any(data.get("val_size") != about[0].get("val_size") for data in about):  # no images that all held out
        about[0]["val_size"] = 0
    checkpoint = {"pytorch-lightning_version": lightning.__version__, "datamodule_hyper_parameters": about[0]}
    checkpoint |= {"state_dict": ensemble.state_dict(), "hyper_parameters": dict(ensemble.hparams)}
    ensemble.on_save_checkpoint(checkpoint)
    return ensemble, checkpoint


def trained_on(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The data module's hyper-parameters, as far as the checkpoint knows."""
    about = checkpoint.get("datamodule_hyper_parameters")
    return about if isinstance(about, dict) else {}


def load_model(path: Path, own: type | None = None) -> tuple[DigitClassifier, dict[str, Any]]:
    """Rebuilds the network that a checkpoint describes, ready to predict; returns it with the checkpoint.

    A class from elsewhere is never imported because a file names it: `own` is the one that the caller trusts. Raises
    ValueError where the file is not a checkpoint of this project, or does not hold what it describes.
    """
    checkpoint = read(path)
    kind = _find_class(path, checkpoint, own)
    settings, weights = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    try:
        _check_lengths(settings, weights)
        with torch.device("meta"):  # shapes without memory, whatever sizes a stranger's file asks for
            sketch = rebuild(kind, settings).eval()
            _compare(sketch, weights)
            measure(sketch, path.stat().st_size)
        if not all(tensor.isfinite().all() for tensor in _tensors(weights)):
            raise ValueError("some of its weights are NaN or infinite")
        model = rebuild(kind, settings)
        model.load_state_dict(weights)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"ckpt_path={path}: does not hold what it describes ({reason})") from error
    return model.eval(), checkpoint


def own_class(name: str | None) -> type | None:
    """A class that the person names, who may have it in the current folder; nothing else is imported from there."""
    if name is None:
        return None
    sys.path.append(os.getcwd())
    try:
        return get_class(name)
    except (ImportError, ValueError) as error:
        raise ValueError(f"model._target_={name}: {one_line(error)}") from error


def _check_lengths(settings: dict[str, Any], weights: dict[str, Any]) -> None:
    """Raises ValueError where a list is longer than there are weights, of the whole or of a member of an ensemble."""
    counts = Counter(str(name).split(".")[:2][-1] for name in weights)  # of `net.0.net.1.bias`, by the member
    parts = [(settings, len(weights))]
    parts += [(member["hyper_parameters"], counts[str(number)]) for number, member in enumerate(_members(settings))]
    for described, most in parts:
        if any(isinstance(value, list | tuple) and len(value) > most for value in described.values()):
            raise ValueError("it describes more layers than it has weights")


def _members(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What an ensemble says of each, up to the first that is not as it should be, or one too many."""
    members = settings.get("members")
    given = members[: MOST + 1] if isinstance(members, list) else []
    return [*takewhile(lambda one: isinstance(one, dict) and isinstance(one.get("hyper_parameters"), dict), given)]


def _find_class(path: Path, checkpoint: dict[str, Any], own: type | None) -> type[DigitClassifier]:
    if class_name(checkpoint) != Ensemble.__name__:
        return _find_network(path, checkpoint, own)
    for member in _members(checkpoint["hyper_parameters"]):
        name = str(member.get("model"))
        described = {"model": name.rpartition(".")[2], "model_class": name}
        _find_network(path, described, None if name in known_networks() else own)
    return Ensemble


def _find_network(path: Path, checkpoint: dict[str, Any], own: type | None) -> type[DigitClassifier]:
    name, known = class_name(checkpoint), known_networks()
    if own is None:
        if name in known:
            return known[name]
        if re.fullmatch(r"\w+(\.\w+)+", name):
            raise ValueError(
                f"ckpt_path={path}: holds the network {name}, which is not of this project; predict.py, evaluate and "
                f"export run that code where they are told model._target_={name}"
            )
        raise ValueError(f"ckpt_path={path}: holds a {name!r}, not one of {', '.join(known)}")
    if not issubclass(own, DigitClassifier):
        raise ValueError(f"model._target_={class_path(own)}: is no subclass of {class_path(DigitClassifier)}")
    if checkpoint["model"] != own.__name__:
        raise ValueError(f"ckpt_path={path}: holds the network {name!r}, and model._target_ is {class_path(own)}")
    return own


def class_name(checkpoint: dict[str, Any]) -> str:
    """Of the network in a checkpoint: one of this project by its name, another by its module too, where it is there."""
    name, where = checkpoint["model"], str(checkpoint.get("model_class", ""))
    return name if not where or where.startswith(f"{models.__name__}.") else where


def measure(sketch: DigitClassifier, room: float = inf) -> None:
    """Raises ValueError where the network takes more memory than the checkpoint's `room`, in bytes, or one layer's
    answer to one image is larger than this project's networks make sense of."""
    numbers = sum(part.numel() for part in {*sketch.parameters(), *sketch.buffers()})
    if numbers > max(room, LARGEST_LAYER):
        raise ValueError(f"it describes {numbers:,} weights in a file of {room:,} bytes")
    sizes: list[int] = []
    for layer in sketch.modules():
        layer.register_forward_hook(lambda *call: sizes.extend(part.numel() for part in _tensors(call[-1])))
    try:
        sketch(torch.empty(1, 1, 28, 28))
    except RuntimeError as error:  # an operation that depends on numbers, which a sketch has not
        if not isinstance(error, NotImplementedError) and "meta" not in str(error):
            raise
    if max(sizes, default=0) > LARGEST_LAYER:
        many = f"{max(sizes):,} numbers for each image"
        raise ValueError(f"one of its layers gives {many}; {LARGEST_LAYER:,} are the most")


def check_fits(path: Path, model: DigitClassifier) -> dict[str, Any]:
    """Reads a checkpoint that `model` is to take over. Raises ValueError where it was made by another network."""
    checkpoint = read(path)
    kind = type(model)
    name = known_as(kind)
    if class_name(checkpoint) not in (name, kind.__name__):
        raise ValueError(
            f"ckpt_path={path}: holds the network {class_name(checkpoint)} and model is {name}; "
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
    expected, found = (
        {name: tuple(getattr(tensor, "shape", ())) for name, tensor in state.items()}
        for state in (model.state_dict(), weights)
    )
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{name} has the shape {found.get(name, 'of nothing')} in it and {expected.get(name, 'of nothing')} "
                "in the network"
            )
