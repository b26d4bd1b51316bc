"""A stranger's checkpoint is read without trusting it."""

import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from conftest import Run, one_line
from hypothesis import given
from hypothesis import settings as settings_
from hypothesis import strategies as st

from mnist_pl.models import MLP
from mnist_pl.reading import checkpoint


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class Large:
    """Unpickled, ten gigabytes."""

    def __reduce__(self) -> Any:
        return bytearray, (10**10,)


def bomb(path: Path) -> None:
    """A checkpoint of a few megabytes that unpacks to half a gigabyte."""
    torch.save({"model": "MLP", "state_dict": {"a": torch.zeros(1)}}, path)
    with zipfile.ZipFile(path) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in content.items():
            with archive.open(name, "w", force_zip64=True) as entry:
                entry.write(data)
                if name.endswith("/data/0"):
                    for _ in range(1 << 3):
                        entry.write(bytes(1 << 26))


@pytest.fixture(scope="module")
def hostile(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A stranger's files, each of another kind. Beside them, a file `ran` would tell that a payload did."""
    tmp_path = tmp_path_factory.mktemp("hostile")
    whole = checkpoint.read(trained / "checkpoints" / "best.ckpt")
    settings, weights = whole["hyper_parameters"], whole["state_dict"]
    content = (trained / "checkpoints" / "best.ckpt").read_bytes()
    wide = torch.zeros(1).expand(10**6, 10**6)
    changes: dict[str, Any] = {
        "code": {"model": Payload(tmp_path / "ran")},
        "code in settings": {"hyper_parameters": {**settings, "hidden": Payload(tmp_path / "ran")}},
        "a class": {"model": "os.system"},
        "a target": {"hyper_parameters": {**settings, "hidden": {"_target_": "os.system", "command": "touch ran"}}},
        "a billion parameters": {"hyper_parameters": {**settings, "hidden": [10**9]}},
        "a view of a billion": {"state_dict": {**weights, "net.7.weight": wide}},
        "a million layers": {"hyper_parameters": {**settings, "hidden": [1] * 10**6}},
        "a bytearray": {"more": Large()},
        "a wide margin": {"hyper_parameters": {**settings, "padding": 10**5, "pools": [10**4, 1]}},
        "an unknown setting": {"hyper_parameters": {**settings, "colour": 1}},
        "a number that is text": {"hyper_parameters": {**settings, "mean": "0"}},
        "no numbers": {"state_dict": {name: tensor * float("nan") for name, tensor in weights.items()}},
        "no weights": {"state_dict": {}},
        "text for weights": {"state_dict": dict.fromkeys(weights, "0")},
    }
    files = {
        name: tmp_path / f"{name}.ckpt" for name in (*changes, "half", "random", "empty", "web page", "bomb", "old")
    }
    for name, change in changes.items():
        torch.save({**whole, **change}, files[name])
    torch.save(whole, files["old"], _use_new_zipfile_serialization=False)
    files["half"].write_bytes(content[: len(content) // 2])
    files["random"].write_bytes(Random(0).randbytes(100_000))
    files["empty"].touch()
    files["web page"].write_text("<html>not found</html>")
    bomb(files["bomb"])
    return files


STRANGERS = "a stranger's checkpoint runs nothing, fills no memory, is refused in one line"


@pytest.mark.promise(STRANGERS, "crafted files: code, bombs, huge shapes, views, random bytes")
def test_a_strangers_checkpoint_is_refused(
    hostile: dict[str, Path], record_property: Callable[[str, Any], None]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB
    for name, path in hostile.items():
        with pytest.raises(ValueError, match=f"ckpt_path={path}: ") as caught:
            checkpoint.load_model(path)
        assert "\n" not in str(caught.value), name
        assert "alloc" not in str(caught.value) and "Memory" not in str(caught.value), name
    assert not hostile["code"].with_name("ran").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    record_property("tried", len(hostile))


@pytest.mark.promise(STRANGERS, "the same to predict.py and train.py")
@pytest.mark.parametrize("name", ["code", *(pytest.param(name, marks=pytest.mark.long) for name in ("bomb", "half"))])
def test_the_programs_refuse_a_strangers_checkpoint(run: Run, hostile: dict[str, Path], name: str) -> None:
    for words in (["predict.py"], ["train.py", "data=digits"], ["train.py", "data=digits", "fit=false"]):
        assert "not a checkpoint that can be read safely" in one_line(run(*words, f"ckpt_path={hostile[name]}"))
    assert not hostile["code"].with_name("ran").exists()


@pytest.mark.promise(STRANGERS, "hypothesis: bytes of a checkpoint changed, cut and inserted")
def test_no_change_to_a_checkpoint_breaks_the_reader(
    tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    model = MLP(hidden=[3])
    settings = {name: value for name, value in model.hparams.items()}
    torch.save(
        {
            "model": "MLP",
            "state_dict": model.state_dict(),
            "hyper_parameters": settings,
            "datamodule_hyper_parameters": {},
        },
        tmp_path / "whole.ckpt",
    )
    whole = (tmp_path / "whole.ckpt").read_bytes()
    start = len(whole) - 4000  # the weights in the middle are mere numbers
    place = st.one_of(st.integers(0, 2000), st.integers(start, len(whole) - 1), st.integers(0, len(whole) - 1))
    change = st.tuples(place, st.sampled_from(["cut", "put", "insert", "delete"]), st.binary(min_size=1, max_size=8))
    tried = 0

    @settings_(max_examples=int(os.environ.get("FUZZ", 200)), deadline=None, database=None)
    @given(st.lists(change, min_size=1, max_size=4))
    def check(changes: list[tuple[int, str, bytes]]) -> None:
        nonlocal tried
        content = bytearray(whole)
        for at, how, new in changes:
            if how == "cut":
                del content[at:]
            elif how == "delete":
                del content[at : at + len(new)]
            else:
                content[at : at + (len(new) if how == "put" else 0)] = new
        (tmp_path / "changed.ckpt").write_bytes(content)
        try:
            checkpoint.load_model(tmp_path / "changed.ckpt")[0](torch.zeros(1, 1, 28, 28))
        except ValueError as error:
            assert str(error).startswith("ckpt_path=") and "\n" not in str(error)
        tried += 1

    check()
    record_property("tried", tried)
