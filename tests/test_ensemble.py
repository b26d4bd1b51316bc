"""Several networks that answer together: from a list of checkpoints, and from one file that holds them."""

import importlib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from conftest import ROOT, Compose, Run, Train, one_line
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Trainer
from omegaconf import open_dict
from PIL import Image
from torch import Tensor

from mnist_pl.data import MNISTDataModule, to_float
from mnist_pl.data.digits import embedded_digits
from mnist_pl.models import CNN, MLP, Ensemble, RefusingCNN
from mnist_pl.models.classifier import rebuild
from mnist_pl.reading import checkpoint
from mnist_pl.reading.checkpoint import join, load_model
from mnist_pl.runs.folders import find_all
from mnist_pl.runs.resume import find_ensemble
from mnist_pl.storage import as_word, read_value

SMALL = {"channels": [4, 8], "hidden": [16]}
NAMES = ("a", "b, c", "d")  # of the runs
BARE = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """The 300 test images, (N, 1, 28, 28) in [0, 1], and their labels."""
    images, labels = embedded_digits()[1]
    return to_float(images), labels


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three run folders, of different networks that plain Trainers have trained."""
    folder = tmp_path_factory.mktemp("runs")
    networks = (MLP(hidden=[16]), CNN(**SMALL), RefusingCNN(**SMALL, mean=0.3, std=0.5))
    for name, network in zip(NAMES, networks, strict=True):
        trainer = Trainer(accelerator="cpu", max_epochs=1, num_sanity_val_steps=0, **BARE)
        trainer.fit(network, MNISTDataModule("digits", val_size=200))
        trainer.save_checkpoint(folder / name / "checkpoints" / "best.ckpt")
    return folder


@pytest.fixture(scope="module")
def paths(runs: Path) -> list[Path]:
    return [runs / name / "checkpoints" / "best.ckpt" for name in NAMES]


@pytest.fixture
def here(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the three runs in it."""
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def program(here: Path, unchanged_process: None) -> Callable[..., None]:
    """Runs a command's `main` with some words, in this process; what it leaves is in `out`."""

    def run_here(module: str, *words: str) -> None:
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = hydra.compose(module.rpartition(".")[2], list(words), return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir, cfg.hydra.mode = str(here / "out"), RunMode.RUN
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        importlib.import_module(module).main(cfg)

    return run_here


def answers(paths: list[Path], images: Tensor) -> Tensor:  # -> (members, N, 10) probabilities
    with torch.inference_mode():
        return torch.stack([load_model(path)[0](images).softmax(dim=1) for path in paths])


def test_it_answers_with_the_mean_of_the_probabilities(paths: list[Path], digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    each = answers(paths, images)
    ensemble, _ = join(paths)
    with torch.inference_mode():
        logits = ensemble(images)
        predicted = ensemble.predict_step(images, 0)
    torch.testing.assert_close(predicted, each.mean(dim=0))
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(300))
    assert (each[0].argmax(1) != each[1].argmax(1)).any(), "else there is nothing to decide"
    (scored,) = Trainer(accelerator="cpu", **BARE).test(ensemble, MNISTDataModule("digits"), verbose=False)
    assert scored["test/acc"] == pytest.approx(float((each.mean(dim=0).argmax(1) == labels).double().mean()))
    truth = each.mean(dim=0)[torch.arange(300), labels]
    assert scored["test/loss"] == pytest.approx(float(-truth.log().mean()), rel=1e-4)


def test_a_majority_decides_and_the_mean_breaks_ties(paths: list[Path], digits: tuple[Tensor, Tensor]) -> None:
    images, _ = digits
    each = answers(paths, images)
    votes = torch.nn.functional.one_hot(each.argmax(dim=2), 10).sum(dim=0)
    with torch.inference_mode():
        said = join(paths, vote="majority")[0](images)
        two = join(paths[:2], vote="majority")[0](images)
    assert said.isfinite().all() and (said.softmax(dim=1) - votes / 3).abs().max() < 2e-3
    decided = votes.amax(dim=1) > 1
    assert torch.equal(said.argmax(dim=1)[decided], votes.argmax(dim=1)[decided])
    tied = (each[0].argmax(dim=1) != each[1].argmax(dim=1)).nonzero()[:, 0].tolist()
    assert tied
    for number in tied:
        mean, named = each[:2, number].mean(dim=0), each[:2, number].argmax(dim=1).tolist()
        assert int(two[number].argmax()) == max(named, key=lambda digit: float(mean[digit]))


def test_shifts_are_seen_by_each(paths: list[Path], digits: tuple[Tensor, Tensor]) -> None:
    images = digits[0][:50]
    moved = [images] + [torch.zeros_like(images) for _ in range(4)]
    moved[1][:, :, 2:], moved[2][:, :, :-2] = images[:, :, :-2], images[:, :, 2:]
    moved[3][..., 2:], moved[4][..., :-2] = images[..., :-2], images[..., 2:]
    expected = torch.stack([answers(paths[:1], one)[0] for one in moved]).mean(dim=0)
    committee, described = join(paths[:1], shifts=2)
    assert described["hyper_parameters"]["shifts"] == 2
    with torch.inference_mode():
        torch.testing.assert_close(committee(images).softmax(dim=1), expected)
        alone = rebuild(type(committee.net[0]), {**committee.net[0].hparams, "shifts": 2})
        alone.load_state_dict(committee.net[0].state_dict())
        assert torch.equal(alone.train()(images[:4]), committee.net[0].train()(images[:4]))  # one look while it learns
        torch.testing.assert_close(alone.eval()(images).softmax(dim=1), expected)


def test_it_refuses_where_all_members_do() -> None:
    no, yes = CNN(**SMALL), RefusingCNN(**SMALL)
    assert [Ensemble.of(given).refuses for given in ([yes, yes], [yes, no], [no])] == [True, False, False]


def test_the_joined_file_is_a_checkpoint_as_any(
    paths: list[Path], digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    ensemble, described = join(paths, vote="majority", shifts=1)
    torch.save(described, tmp_path / "joined.ckpt")
    rebuilt, found = load_model(tmp_path / "joined.ckpt")
    own = Ensemble.load_from_checkpoint(tmp_path / "joined.ckpt", map_location="cpu").eval()
    with torch.inference_mode():
        expected = ensemble(digits[0][:40])
        assert torch.equal(rebuilt(digits[0][:40]), expected) and torch.equal(own(digits[0][:40]), expected)
    assert [type(one) for one in own.net] == [MLP, CNN, RefusingCNN] and own.net[2].mean == 0.3
    assert checkpoint.trained_on(found)["dataset"] == "digits" and found["model"] == "Ensemble"
    assert list(own.hparams["members"][0]["hyper_parameters"]["hidden"]) == [16]
    assert set(own.hparams["members"][0]["hyper_parameters"]) == set(MLP().hparams), "each has its own alone"
    with pytest.raises(ValueError, match="an Ensemble cannot be trained; train its members one by one"):
        Trainer(accelerator="cpu", max_epochs=1, **BARE).fit(own, MNISTDataModule("digits"))


@pytest.mark.promise("a stranger's checkpoint runs nothing, fills no memory, is refused in one line", "joined files")
def test_a_strangers_ensemble_is_refused(paths: list[Path], tmp_path: Path) -> None:
    _, whole = join(paths)
    settings, weights = whole["hyper_parameters"], whole["state_dict"]
    first, *others = settings["members"]
    nested = {"model": "Ensemble", "hyper_parameters": settings}
    deep = {"model": "MLP", "hyper_parameters": {**first["hyper_parameters"], "hidden": (1,) * 10**4}}
    wide = {"model": "MLP", "hyper_parameters": {**first["hyper_parameters"], "hidden": [10**9]}}
    members: dict[str, tuple[Any, str]] = {
        "a class of the system": ([{**first, "model": "os.system"}, *others], "holds the network os.system"),
        "a class of nowhere": ([{**first, "model": "a b"}, *others], "holds a 'a b', not one of"),
        "a target": ([{"_target_": "os.system", "command": "touch ran"}], "must each have a model"),
        "an ensemble": ([nested, *others], "is an ensemble itself"),
        "ten thousand layers": ([deep, *others], "more layers than it has weights"),
        "a billion weights": ([wide, *others], "has the shape"),
        "ten thousand members": ([first] * 10**4, "more layers than it has weights"),
        "too many members": ([first] * 101, "a list of 1 to 100"),
        "no members": ([], "a list of 1 to 100"),
        "text": ("MLP", "must each have a model"),
        "a number": (3, "a list of 1 to 100"),
        "numbers": ([1, 2, 3], "must each have a model"),
        "another order": ([*others, first], "has the shape"),
        "no settings": ([{"model": "MLP"}, *others], "must each have a model"),
        "settings of another": ([{**others[0], "model": "MLP"}, *others], "unexpected keyword"),
    }
    many = weights | {f"more.{number}": torch.zeros(1) for number in range(200)}
    changed = {
        name: ({"members": value}, many if "too" in name else weights, why) for name, (value, why) in members.items()
    }
    changed |= {
        "a vote": ({"vote": "mine"}, weights, "must be mean or majority"),
        "shifts": ({"shifts": 10**9}, weights, "from 0 to 27"),
        "no numbers": ({}, {name: part * float("nan") for name, part in weights.items()}, "NaN or infinite"),
        "no weights": ({}, {}, "more layers than it has weights"),
    }
    for name, (change, parts, why) in changed.items():
        path = tmp_path / f"{name}.ckpt"
        torch.save({**whole, "hyper_parameters": {**settings, **change}, "state_dict": parts}, path)
        with pytest.raises(ValueError, match=f"ckpt_path={path}: .*{why}") as caught:
            load_model(path)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 400, name
    assert not (tmp_path / "ran").exists()


OWN = """
from torch import nn
from mnist_pl.models import DigitClassifier

class Net(DigitClassifier):
    def __init__(self, width=8, **shared):
        super().__init__(mean=0.2, **shared)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
"""


def test_a_network_of_ones_own_among_them(here: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "my_members.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(here))
    own = importlib.import_module("my_members").Net
    trainer = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **BARE)
    trainer.fit(own(width=4), MNISTDataModule("digits", val_size=200))
    trainer.save_checkpoint("own.ckpt")
    with pytest.raises(
        ValueError, match=r"own.ckpt: holds the network my_members.Net, .* model._target_=my_members.Net"
    ):
        join([paths[0], Path("own.ckpt")])
    ensemble, described = join([paths[0], Path("own.ckpt"), paths[1]], own)
    torch.save(described, "joined.ckpt")
    with pytest.raises(
        ValueError, match=r"joined.ckpt: holds the network my_members.Net, .* model._target_=my_members"
    ):
        load_model(Path("joined.ckpt"))
    rebuilt, _ = load_model(Path("joined.ckpt"), own)
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(rebuilt(images), ensemble(images)) and rebuilt.net[1].mean == 0.2
    del sys.modules["my_members"]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_train_py_scores_them(
    here: Path, train_here: Train, digits: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """As one checkpoint: figures, tables, pictures; from the list, and from the joined file."""
    caplog.set_level("INFO")
    paths = find_all(list(NAMES), "best.ckpt")
    torch.save(join(paths)[1], "joined.ckpt")
    said = as_word("ckpt_path", list(NAMES))
    assert said == """'ckpt_path=[a,'"'"'b, c'"'"',d]'"""
    score = train_here("data=digits", "fit=false", *shlex.split(said))
    train_here("data=digits", "fit=false", "ckpt_path=joined.ckpt", "callbacks=minimal", "logger=csv", folder="file")
    listed, joined = summary(here / "run"), summary(here / "file")
    guesses = answers(paths, digits[0]).mean(dim=0).argmax(dim=1)
    assert listed["test/acc"] == pytest.approx(float((guesses == digits[1]).double().mean()), abs=1e-6)
    for name in ("val/acc", "val/loss", "test/acc", "test/loss", "parameters", "model"):
        assert listed[name] == joined[name] is not None, name
    assert score == listed["val/acc"] and listed["members"] == list(NAMES) and listed["optimizer"] is None
    assert joined["best_checkpoint"] == "joined.ckpt" and listed["run"] == "digits-ensemble-of-3"
    pictures = {"samples", "confusion", "mistakes", "calibration"}
    drawn = {path.stem for path in (here / "run").glob("*.png")}
    assert pictures <= drawn and "curves" not in drawn
    assert list((here / "run" / "digits-ensemble-of-3").glob("events.out*"))
    header = (here / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/acc", "test/acc"} <= set(header)
    (command,) = re.findall(r"^predict +python predict.py (.*)$", caplog.text.partition("file")[0], re.MULTILINE)
    assert command == said


def test_train_py_scores_no_validation_images_that_a_member_has_seen(here: Path, train_here: Train) -> None:
    for name, held_out in {"a": 100, "d": 0}.items():
        path = here / name / "checkpoints" / "best.ckpt"
        known = checkpoint.read(path)
        known["datamodule_hyper_parameters"]["val_size"] = held_out
        torch.save(known, path)
    words = ("data=digits", "fit=false", "ckpt_path=[a,d]", "callbacks=minimal", "logger=none")
    assert train_here(*words) is None
    assert summary(here / "run")["val/acc"] is None and summary(here / "run")["test/acc"] > 0.2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["ckpt_path=[a,d]"], "ckpt_path=.*: is an ensemble, whose members are trained one by one; .* fit=false"),
        (["ckpt_path=joined.ckpt"], "ckpt_path=joined.ckpt: is an ensemble, whose members are trained one by one"),
        (["fit=false", "ckpt_path=[]"], r"ckpt_path=\[\]: is empty; name runs or checkpoints, as ckpt_path=\[A,B\]"),
        (["fit=false", "ckpt_path=[a,nowhere]"], "ckpt_path=nowhere: there is no such file or folder"),
        (["fit=false", "ckpt_path=[a,broken.ckpt]"], "ckpt_path=broken.ckpt: not a checkpoint that can be read"),
        (["fit=false", "ckpt_path=[a,d,./a]"], r"ckpt_path=\['a', 'd', './a'\]: names a/.* twice"),
        (["fit=false", "ckpt_path=[a,[d]]"], "must be a run or a checkpoint, or several"),
        (["fit=false", "ckpt_path=[a,null]"], "must be a run or a checkpoint, or several"),
        (["fit=false", "ckpt_path={a: 1}"], "must be a run or a checkpoint, or several"),
        (["fit=false", "ckpt_path=[a,joined.ckpt]"], "one of them is an ensemble itself; name its members"),
        (["fit=false", "ckpt_path=[a,mnist.ckpt]"], "mnist.ckpt: was trained on mnist, and a/.* on digits; only"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_in_one_line(
    here: Path, train_here: Train, words: list[str], reason: str, request: pytest.FixtureRequest
) -> None:
    (here / "broken.ckpt").write_text("hello")
    torch.save(join(find_all(["a", "d"], "best.ckpt"))[1], "joined.ckpt")
    known = checkpoint.read(here / "a" / "checkpoints" / "best.ckpt")
    torch.save({**known, "datamodule_hyper_parameters": {"dataset": "mnist"}}, "mnist.ckpt")
    with pytest.raises(SystemExit, match=f"^error: .*{reason}") as caught:
        train_here("data=digits", *words)
    assert "\n" not in str(caught.value) and not (here / "run").exists()


def test_what_a_list_may_name(here: Path, compose: Compose) -> None:
    """One alone is that network; Lightning's words; a sweep is all its jobs; any names."""
    cfg = compose("data=digits", "fit=false", "ckpt_path=[a]")
    assert find_ensemble(cfg) is None and cfg.ckpt_path == "a/checkpoints/best.ckpt"
    for job in (10, 9, 0):
        shutil.copytree("a", f"multirun/sweep/{job}")
    Path("multirun/sweep/sweep.json").touch()
    assert [path.parts[2] for path in find_all("multirun/sweep", "best.ckpt")] == ["0", "9", "10"]
    shutil.copytree("d", "outputs/new")
    shutil.copy("a/checkpoints/best.ckpt", "outputs/new/checkpoints/last.ckpt")
    assert [path.name for path in find_all(["last", "best"], "best.ckpt")] == ["last.ckpt", "best.ckpt"]
    for name in ("with space", "a,b", "it's", "[x]", "$HOME", "last", "a=b", "null", "${x}", "7"):
        shutil.copytree("a", name, dirs_exist_ok=True)
        (word,) = shlex.split(as_word("ckpt_path", [name, "d"]))
        first, second = find_all(read_value(word.partition("=")[2]), "best.ckpt")
        assert (first.parts[-3], second.parts[-3]) == (name, "d"), name


def test_the_commands_take_several(
    here: Path, program: Callable[..., None], digits: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    said = "ckpt_path=[a,'b, c',d]"
    program("mnist_pl.ensemble", said, "output=joined.ckpt")
    program("mnist_pl.ensemble", "ckpt_path=a", "shifts=1", "output=moved.ckpt")
    assert "MLP from a\nCNN from b, c\nRefusingCNN from d\nwrote joined.ckpt, " in capsys.readouterr().out
    right = int((answers(find_all(list(NAMES), "best.ckpt"), digits[0]).mean(0).argmax(1) == digits[1]).sum())
    for word in (said, "ckpt_path=joined.ckpt"):
        program("predict", word, "seed=1")
        assert f"digits: {right} of 300 test images right" in capsys.readouterr().out
    Image.fromarray((255 - 255 * digits[0][0, 0]).byte().numpy()).resize((140, 140)).save("digit.png")
    program("predict", said, "input=digit.png")
    assert "Ensemble from a, b, c, d\n" in capsys.readouterr().out and Path("out/predictions.csv").exists()
    with pytest.raises(SystemExit, match="^error: output=joined.ckpt: exists, and is not replaced"):
        program("mnist_pl.ensemble", said, "output=joined.ckpt")
    with pytest.raises(SystemExit, match=r"^error: ckpt_path: names the networks to join, as ckpt_path=\[A,B\]"):
        program("mnist_pl.ensemble", "output=other.ckpt")
    with pytest.raises(SystemExit, match=r"^error: ckpt_path=\[.*\]: model.vote must be mean or majority, got 'mine'"):
        program("mnist_pl.ensemble", said, "output=other.ckpt", "vote=mine")


@pytest.mark.parametrize("how", [{}, pytest.param({"vote": "majority", "shifts": 1}, marks=pytest.mark.long)])
@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.long), "html"])
def test_it_is_taken_elsewhere(
    paths: list[Path], digits: tuple[Tensor, Tensor], format: str, how: dict[str, Any]
) -> None:
    from mnist_pl.reading.export import TOLERANCE, check_format, export, probabilities

    if format == "onnx":
        pytest.importorskip("onnxscript")
    check_format(format)
    ensemble, images = join(paths, **how)[0], (255 * digits[0][:40, 0]).round().byte()
    expected = probabilities(ensemble, images)
    facts = {"made_by": "mnist_pl 1.2.3", "classes": [str(digit) for digit in range(10)]}
    if format == "html" and how:  # its script has the mean alone
        with pytest.raises(ValueError, match="format=html: .* vote=majority; format=onnx may do"):
            export(ensemble, format, images, expected, facts)
        return
    _, answers = export(ensemble, format, images, expected, facts)
    assert (answers - expected).abs().max() < TOLERANCE


@pytest.mark.long
def test_the_other_programs_as_they_are_typed(run: Run, here: Path) -> None:
    assert run("mnist_pl/ensemble.py", "ckpt_path=[a,d]").code == 0
    for words in (["mnist_pl/export.py", "format=torch"], ["predict.py"]):
        ended = run(*words, "ckpt_path=ensemble.ckpt")
        assert ended.code == 0 and "of 300 test images right" in ended.out, ended.err
    assert "put quotes" in one_line(run("predict.py", "ckpt_path=[a,b"))


def test_a_program_as_it_is_typed(run: Run, here: Path) -> None:
    assert "ckpt_path" in one_line(run("predict.py", "ckpt_path=a,d"))
    ended = run("predict.py", "ckpt_path=[a,d]")
    assert ended.code == 0 and ended.out.startswith("Ensemble from a, d\ndigits: "), ended.err
