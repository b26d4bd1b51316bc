"""Settings against the classes that they are for, whose signatures say what there is and of which kind.

Whatever is wrong, or breaks a constructor or a first step, becomes one line that begins with the setting's whole name.
"""

import collections.abc
import inspect
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object
from lightning import Trainer
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.optim import Optimizer

from mnist_pl.data import MNISTDataModule
from mnist_pl.models import DigitClassifier
from mnist_pl.reading.checkpoint import measure
from mnist_pl.runs.errors import GROUPS, suggest
from mnist_pl.storage import one_line

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
KINDS |= {NoneType: "null", dict: "a mapping"}
PASS_ON = "lightning.pytorch.strategies."  # which hand what they do not know to PyTorch's DistributedDataParallel
LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
FOR_EACH_WEIGHT = 16  # bytes: itself, its gradient, and Adam's two means


def check(
    node: Any,
    name: str,
    kind: type = object,
    extra: Mapping[str, Any] | None = None,
    words: Mapping[str, Any] | None = None,
) -> None:
    """Raises ValueError where a setting cannot be resolved, does not exist, or is of another kind than its class says.

    The class is to be a `kind`. `extra` are settings that it does not take, with their kinds; `words` stand for other
    values.
    """
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ValueError(f"{name} must have a _target_, the class that it stands for")
    target = target_of(node, name)
    if inspect.isclass(target) and not issubclass(target, kind):
        raise ValueError(f"{name}._target_={node._target_}: must be a subclass of {kind.__module__}.{kind.__name__}")
    known = parameters(target)
    takes = {**(known or {}), **{key: (hint, inspect.Parameter.empty) for key, hint in (extra or {}).items()}}
    for key in map(str, node):
        value = _resolve(node, key, f"{name}.{key}")
        if key.startswith("_"):  # Hydra's
            continue
        if name == "trainer" and key in GROUPS:
            raise ValueError(f"{name}.{key}: is a group of its own; say {key}=none")
        if known is not None and key not in takes and not str(getattr(target, "__module__", "")).startswith(PASS_ON):
            raise ValueError(f"{name}.{key}: there is no such setting; {suggest(key, known)}")
        hint, default = takes.get(key, (Any, None))
        value = words.get(value, value) if words is not None and isinstance(value, str) else value
        if not OmegaConf.is_interpolation(node, key):
            for path, part in _with_target(node[key], f"{name}.{key}"):
                check(part, path, extra=extra, words=words)
        if not (fits(value, hint, default) or (value is None and default is None)):
            raise ValueError(f"{name}.{key} must be {describe(hint)}, got {value!r}")


def _with_target(value: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(value, ListConfig):
        for number in range(len(value)):
            yield from _with_target(value[number], f"{path}[{number}]")
    elif isinstance(value, DictConfig) and "_target_" in value:
        yield path, value


def _resolve(node: DictConfig, key: str, path: str) -> Any:
    try:
        value = node[key]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raw = OmegaConf.to_container(node, resolve=False)
        reason = str(error.msg or error).splitlines()[0]
        raise ValueError(f"{path}={raw[key]}: {one_line(reason)}") from error  # type: ignore[index,call-overload]


def target_of(node: DictConfig, name: str) -> Any:
    """The class that a node names. Raises ValueError where it names none."""
    target = _resolve(node, "_target_", f"{name}._target_")
    if not isinstance(target, str) or not target:
        raise ValueError(f"{name}._target_ must be the whole name of a class, as torch.optim.Adam, got {target!r}")
    try:
        found = get_object(target)
    except Exception as error:  # a stranger's module can break in any way as it is imported
        raise ValueError(f"{name}._target_={target}: {reason(error)}") from error
    if not callable(found):
        raise ValueError(f"{name}._target_={target}: must be a class, got {found!r}")
    return found


def parameters(target: Any) -> dict[str, tuple[Any, Any]] | None:
    """What a class or function takes: the kind and the default of each; None where it does not say."""
    known: dict[str, tuple[Any, Any]] = {}
    # A class that passes **keywords on takes those of its parent too.
    kinds = inspect.getmro(target) if inspect.isclass(target) else ()
    owners: list[Any] = [vars(kind)["__init__"] for kind in kinds if "__init__" in vars(kind)]
    for owner in owners or [target]:
        try:
            signature = inspect.signature(owner).parameters
        except ValueError:  # some builtins do not say
            return None
        try:
            hints = get_type_hints(owner, localns=vars(collections.abc))
        except Exception:  # names that are only imported for type checkers
            hints = {}
        taken = [key for key, value in signature.items() if value.kind is not value.VAR_KEYWORD]
        named = taken[1:] if owners else taken  # without self
        known = {key: (hints.get(key, Any), signature[key].default) for key in named} | known
        if len(taken) == len(signature):
            break
    return known


def fits(value: Any, hint: Any, default: Any = None) -> bool:
    """Whether a plain value is of an annotated kind. True is no number, nor is NaN; nor infinity, unless by default."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, part, default) for part in parts)
    if kind is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if kind is float:
        return fits(value, int) or (isinstance(value, float) and (isfinite(value) or value == default))
    if kind in LISTS:
        if not isinstance(value, list):
            return False
        each = parts * len(value) if kind is not tuple or parts[1:] == (...,) else parts
        return not parts or len(each) == len(value) and all(map(fits, value, each))
    made = kind not in KINDS and isinstance(value, dict) and "_target_" in value  # from what it holds
    return made or kind is Any or not isinstance(kind, type) or isinstance(value, kind)


def describe(hint: Any) -> str:
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Literal:
        return " or ".join(map(str, parts))
    if kind in (Union, UnionType):
        return " or ".join(dict.fromkeys(describe(part) for part in parts))
    if kind in LISTS:
        if not parts:
            return "a list"
        each = f"{len(parts)} number" if kind is tuple else describe(parts[0]).removeprefix("a ")
        return f"a list of {each}s"
    return KINDS.get(kind) or f"a {getattr(kind, '__name__', kind)}"


def reason(error: BaseException) -> str:
    """What went wrong, in one line that is not too long."""
    while isinstance(error, InstantiationException) and error.__cause__:
        error = error.__cause__
    plain = isinstance(error, ValueError | TypeError | ImportError | RuntimeError) and str(error)
    return textwrap.shorten(one_line(error if plain else f"{type(error).__name__}: {error}"), 400)


def construct(name: str, settings: Mapping[str, Any], make: Callable[[dict[str, Any]], Any], kind: type) -> Any:
    """`make(settings)`. Raises ValueError, one line that names the setting to blame, where it fails or makes no `kind`.

    That is the one without which it works, for then its default is taken; else those that are no defaults.
    """
    settings = dict(settings)
    try:
        made = make(settings)
    except Exception as error:
        line = reason(error)
        if line.startswith(f"{name}."):
            raise ValueError(line) from error
        raise ValueError(f"{', '.join(_blamed(name, settings, make))}: {line}") from error
    if not isinstance(made, kind):
        wanted = f"a subclass of {kind.__module__}.{kind.__name__}"
        raise ValueError(f"{name}._target_={settings['_target_']}: must be {wanted}, got {made!r}")
    return made


def _blamed(name: str, settings: dict[str, Any], make: Callable[[dict[str, Any]], Any]) -> Iterator[str]:
    known = parameters(get_object(settings["_target_"])) or {}
    others = [key for key in settings if key != "_target_"]
    for key in others:
        try:
            make({other: value for other, value in settings.items() if other != key})
        except Exception:
            continue
        yield f"{name}.{key}={settings[key]}"
        return
    set_here = [key for key in others if key in known and known[key][1] != settings[key]]
    yield from (f"{name}.{key}={settings[key]}" for key in (*set_here, "_target_"))


def check_size(sketch: DigitClassifier) -> None:
    """Raises ValueError where a network, built on the device `meta`, would not fit into this machine's memory."""
    count = sum(parameter.numel() for parameter in sketch.parameters())
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if count * FOR_EACH_WEIGHT > memory:
            raise ValueError(f"{count:,} parameters are more than this machine has memory for")
    measure(sketch)


def check_test_batches(trainer: Trainer, data: MNISTDataModule) -> None:
    """Raises ValueError where a share of the test images is less than one batch; Lightning sees that after training."""
    share = trainer.limit_test_batches
    if isinstance(share, float) and 0 < share < 1:
        count = len(data.test_dataloader())
        if int(count * share) < 1:
            raise ValueError(
                f"trainer.limit_test_batches={share}: is less than one of the {count} batches of test images; say at "
                f"least {1 / count:.2g}, or 0 for no test"
            )


def try_step(model: DigitClassifier, optimizer: Optimizer | None = None) -> None:
    """The first training step, on blank images."""

    def loss() -> torch.Tensor:
        model.zero_grad()
        answers = model(torch.zeros(2, 1, 28, 28))
        loss = torch.nn.functional.cross_entropy(answers, torch.zeros(2, dtype=torch.long))
        loss.backward()
        return loss

    if optimizer is None:
        loss()
    else:
        optimizer.step(loss)  # type: ignore[arg-type]
