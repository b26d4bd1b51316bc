"""Every leaf of the configuration, set to anything: the run works, or one line names the leaf before any training."""

import os
import re
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Compose, Train
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.control import note
from omegaconf import DictConfig, OmegaConf

TINY = ["data=digits", "model.hidden=[8]", "trainer.max_epochs=1", "trainer.max_steps=3", "trainer.log_every_n_steps=1"]
TINY += [f"trainer.{name}=1" for name in ("num_sanity_val_steps", "limit_val_batches", "limit_test_batches")]
WRONG = "-1 0 1 nan 1e400 '' abc [] {} [a,b] [1] null true 1000000000 1000000000000000000000 0.5 '${oc.env:NOPE}' "
WRONG += "'${nowhere}' '${seed' ??? 3.7 '1' [null] [-1,-1] [0.5,0.5] {a:1} {_target_:3} {_target_:builtins.dict}"
TARGETS = ["3", "null", "torch.nope", "nowhere.At", "math.pi", "torch", "builtins.dict", "torch.nn.ReLU", "''"]
UNENDING = {"trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.min_steps", "trainer.min_epochs"}
DIVERGED = "NaN or infinite"  # which is only seen while it trains


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


# The quick option of each group comes first; the others are tried for their own settings.
CHOICES = {
    "model": ["mlp", "cnn"],
    "optimizer": ["sgd", *options("optimizer")],
    "scheduler": ["none", *options("scheduler")],
    "callbacks": ["minimal", *options("callbacks")],
    "logger": ["csv", "csv", "none", "tensorboard"],
}


def leaves(node: Any, path: str = "") -> Iterator[str]:
    """The whole names of all settings below a node; what refers to a group elsewhere is one of its own."""
    for key in node:
        inner = f"{path}.{key}".lstrip(".")
        refers = OmegaConf.is_interpolation(node, key)
        child = None if refers else node[key]
        if isinstance(child, DictConfig) and child:
            yield from leaves(child, inner)
        elif inner != "resume" and inner not in CHOICES:  # which is read before Hydra composes; groups without settings
            yield inner


def said(path: str) -> st.SearchStrategy[str]:
    """`path=value` for a value that may be anything."""
    values = st.sampled_from(TARGETS if path.endswith("_target_") else WRONG.split())
    numbers = st.one_of(st.integers(-(10**20), 10**20), st.integers(-3, 40), st.floats(), st.floats(0, 1)).map(str)
    text = st.text("abcxyz 0123456789_-./", max_size=12).map(lambda words: f"'{words}'")
    several = st.lists(numbers, max_size=3).map(lambda numbers: f"[{','.join(numbers)}]")
    return st.one_of(values, values, numbers, several, text).map(lambda value: f"{path}={value}")


def accept(words: list[str]) -> bool:
    """Not what takes for ever, or starts further processes."""
    keys = [word.partition("=")[0] for word in words]
    several = re.compile(r"trainer\.devices=\D*([2-9]|1\d)\D*")
    return len(UNENDING & set(keys)) < 2 and not any(several.fullmatch(word) for word in words)


@pytest.mark.promise("an invalid setting ends in one line that names it, before any training", "any value for any leaf")
@pytest.mark.filterwarnings("default")
def test_any_value_of_any_setting(
    train_here: Train, compose: Compose, tmp_path: Path, record_property: Any, capfd: Any
) -> None:
    number, tried = count(), 0
    found: dict[tuple[str, ...], list[str]] = {}

    @settings(
        max_examples=int(os.environ.get("SETTINGS", 40)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # a few words need no shrinking
    )
    @given(st.data())
    def try_one(data: st.DataObject) -> None:
        nonlocal tried
        group = data.draw(st.sampled_from([None, *CHOICES]))
        choice = {name: names[0] for name, names in CHOICES.items()}
        if group is not None:
            choice[group] = data.draw(st.sampled_from(CHOICES[group][1:]))
        chosen = tuple(f"{name}={option}" for name, option in choice.items())
        chosen += ("model.channels=[2,2]",) * (choice["model"] == "cnn")
        if chosen not in found:
            found[chosen] = list(leaves(compose(*chosen, *TINY)))
        mine = [path for path in found[chosen] if group is None or path.startswith(f"{group}.")] or found[chosen]
        paths = data.draw(st.lists(st.sampled_from(mine), min_size=1, max_size=2, unique=True))
        words = [data.draw(said(path)) for path in paths]
        assume(accept(words))
        note(" ".join([*chosen, *words]))
        tried += 1
        folder = tmp_path / f"run{next(number)}"
        try:
            train_here(*chosen, *TINY, *words, folder=folder.name)
        except SystemExit as ended:
            line = str(ended.code)
            assert line.startswith("error: ") and "\n" not in line, line
            if DIVERGED not in line:
                assert any(path.removeprefix("model.") in line for path in paths), line
                assert not (folder / "checkpoints").exists(), line
        finally:
            for left in tmp_path.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    try_one()
    record_property("tried", tried)
