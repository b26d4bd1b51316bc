"""A search space, as conf/tune/*.yaml says it: a setting's whole name, and what is tried for it.

optimizer: [sgd, adam]                           # options of a group, or values, lists among them
optimizer.lr: {low: 1e-4, high: 0.1, log: true}  # a range, its ends included; whole numbers where the setting is one
data.batch_size: {low: 32, high: 256, step: 32}
model.hidden: {choices: [[50], [200, 100]]}      # the same as the list alone
"""

from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import Any, NamedTuple

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from mnist_pl.runs.errors import suggest
from mnist_pl.runs.folders import LABELLED as SEARCHED
from mnist_pl.runs.words import key_of
from mnist_pl.storage import quoted, read_value

RANGE = ("low", "high", "step", "log")
SAME_FOR_ALL = ("data", "data.dataset", "data.val_size", "data.validate_on_test", "data.seed")  # else nothing compares


class Setting(NamedTuple):
    distribution: BaseDistribution
    only_with: tuple[str, ...] | None  # the options of its group that have it; None: it is always there


Space = dict[str, Setting]
Value = bool | int | float | str | None  # what Optuna keeps of a choice: itself, or as Hydra reads it


def read_space(said: Any, words: list[str]) -> tuple[Space, list[str]]:
    """The space, groups first, and the settings in it that are not searched, since the command line fixes them.

    `said` is the part of the configuration, `words` the command line's. Raises ValueError, one line that names a
    setting, where it does not exist, or what is said of it cannot be tried.
    """
    if not isinstance(said, dict) or not said:
        raise ValueError(f"space must name settings and what to try for each, got {said!r}")
    by_name = {str(key): value for key, value in sorted(said.items(), key=lambda item: "." in str(item[0]))}
    fixed = {key_of(word) for word in words}
    space: Space = {}
    dropped = []
    options: dict[str, list[str]] = {}
    composed = {"": compose("tune", words)}
    for name, tried in by_name.items():
        group, _, setting = name.partition(".")
        if name in SAME_FOR_ALL:
            raise ValueError(f"space.{name}: must be the same for all trials, or their scores would not compare")
        if group not in SEARCHED:
            raise ValueError(f"space.{name}: there is no such group to search in; {suggest(group, SEARCHED)}")
        if name in fixed or any(name.startswith(f"{one}.") and "." in one for one in fixed):
            dropped.append(name)
            continue
        if not setting:
            distribution = _read(name, tried, None)
            choices = list(dict.fromkeys(str(one or "none") for one in getattr(distribution, "choices", ())))
            known_options = GlobalHydra.instance().config_loader().get_group_options(group)
            unknown = [choice for choice in choices if choice not in known_options]
            if unknown or not choices:
                hint = suggest(unknown[0] if unknown else "", known_options)
                raise ValueError(f"space.{name}={tried}: must be a list of options of {group}; {hint}")
            options[group] = choices
            if any(one.startswith(f"{group}.") for one in by_name):
                composed |= {f"{group}={one}": compose("tune", [*words, f"{group}={one}"]) for one in choices}
            space[name] = Setting(CategoricalDistribution(choices), None)
            continue
        nodes = {one: composed[f"{group}={one}"] for one in options.get(group, ())} or {"": composed[""]}
        having = tuple(one for one, node in nodes.items() if _has(node, name))
        if not having and group in fixed:
            dropped.append(name)  # of another option than the one that the command line has chosen
            continue
        if not having:
            parents = [OmegaConf.select(node, name.rpartition(".")[0]) for node in nodes.values()]
            names = {str(key) for parent in parents if isinstance(parent, DictConfig) for key in parent}
            raise ValueError(f"space.{name}: there is no such setting; {suggest(name.rpartition('.')[2], names)}")
        present = OmegaConf.select(nodes[having[0]], name)
        space[name] = Setting(_read(name, tried, present), having if len(having) < len(nodes) else None)
    if not space:
        raise ValueError(f"space: the command line fixes all of it ({', '.join(dropped)}); leave something to search")
    return space, dropped


def _has(node: DictConfig, name: str) -> bool:
    parent, _, key = name.rpartition(".")
    found = OmegaConf.select(node, parent)
    return isinstance(found, DictConfig) and key in found and not key.startswith("_")


def _read(name: str, tried: Any, present: Any) -> BaseDistribution:
    """`present` is the setting's value without a search."""
    where = f"space.{name}={tried}"
    if isinstance(tried, dict) and set(tried) == {"choices"}:
        tried = tried["choices"]
    if isinstance(tried, list):
        if not tried:
            raise ValueError(f"{where}: is empty; list what to try")
        written = [choice if isinstance(choice, Value) else as_hydra(choice) for choice in tried]
        twice = [one for one in written if written.count(one) > 1]
        if twice:
            raise ValueError(f"{where}: has {twice[0]} twice")
        return CategoricalDistribution(written)
    if not isinstance(tried, dict) or not {"low", "high"} <= set(tried) <= set(RANGE):
        raise ValueError(f"{where}: must be a list, or a range as {{low: 0, high: 1}}, with step: 0.1 or log: true")
    low, high, step, log = (tried.get(key) for key in RANGE)  # type: Any, Any, Any, Any
    for key, value in {"low": low, "high": high, "step": step}.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
        if not is_number and not (key == "step" and value is None):
            raise ValueError(f"{where}: {key} must be a number, got {value!r}")
    if not isinstance(log, bool | None):
        raise ValueError(f"{where}: log must be true or false, got {log!r}")
    if low > high:
        raise ValueError(f"{where}: low must not be above high")
    if log and low <= 0:
        raise ValueError(f"{where}: low must be positive where log is true")
    if step is not None and (step <= 0 or log):
        raise ValueError(f"{where}: step must be positive, and not together with log")
    whole = all(isinstance(value, int) for value in (low, high, 1 if step is None else step))
    if whole and not isinstance(present, float):
        high -= (high - low) % (step or 1)  # where Optuna would warn
        return IntDistribution(low, high, log=bool(log), step=step or 1)
    if step is not None:
        high = low + step * int((high - low) / step + 1e-9)
    return FloatDistribution(float(low), float(high), log=bool(log), step=step)


def as_hydra(value: Any) -> str:
    """A plain value as a word of the command line says it, from which Hydra reads the same, to the last bit."""
    if isinstance(value, list):
        return "[" + ",".join(map(as_hydra, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_hydra(part)}" for key, part in value.items()) + "}"
    if isinstance(value, str):
        return value if read_value(value) == value else quoted(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def suggest_params(trial: Any, space: Space) -> dict[str, Value]:
    """What `trial`, an Optuna Trial, is to try: those settings alone that the options chosen for it have."""
    params: dict[str, Value] = {}
    for name, (distribution, _) in space.items():
        of: Any = distribution
        if not _applies(name, space, params):
            continue
        if isinstance(of, CategoricalDistribution):
            params[name] = trial.suggest_categorical(name, of.choices)
        elif isinstance(of, IntDistribution):
            params[name] = trial.suggest_int(name, of.low, of.high, step=of.step, log=of.log)
        else:
            params[name] = trial.suggest_float(name, of.low, of.high, step=of.step, log=of.log)
    return params


def words_of(params: Mapping[str, Value]) -> list[str]:
    """As words of a command line."""
    return [f"{name}={value if _is_structure(value) else as_hydra(value)}" for name, value in params.items()]


def _is_structure(value: Value) -> bool:
    return isinstance(value, str) and isinstance(read_value(value), list | dict)


def rounds(space: Space) -> Iterator[list[list[str]]]:
    """Each option, each value and each end of a range, as many at a time as go together: words for each.

    Not the values that are lists, which may only fit one another.
    """
    tried: dict[str, list[Value]] = {}
    for name, (distribution, _) in space.items():
        of: Any = distribution
        values = of.choices if hasattr(of, "choices") else (of.low, of.high)
        tried[name] = [value for value in values if not _is_structure(value)]
    left = {(name, value) for name in tried for value in tried[name]}
    for number in range(max(map(len, tried.values()))):
        params = {name: values[number % len(values)] for name, values in tried.items() if values}
        params = {name: params[name] for name in params if _applies(name, space, params)}
        left -= set(params.items())
        yield [words_of({name: value}) for name, value in params.items()]
    for name, value in sorted(left, key=str):
        group, options = name.partition(".")[0], space[name].only_with or ("",)
        yield [words_of({group: options[0], name: value})]


def _applies(name: str, space: Space, params: Mapping[str, Value]) -> bool:
    options = space[name].only_with
    return options is None or params[name.partition(".")[0]] in options


def check_ends(space: Space, check: Callable[[list[str]], Any]) -> None:
    """`check` of the words of each round; where that raises, of each part by itself, which tells the one to blame.

    What fails only together with others is left to the trials.
    """
    for parts in rounds(space):
        try:
            check([word for part in parts for word in part])
        except Exception:
            for part in parts:
                group = part[0].partition(".")[0]
                check([*(one[0] for one in parts if one[0].startswith(f"{group}=") and one != part), *part])
