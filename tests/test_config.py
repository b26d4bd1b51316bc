"""Bad input ends in one line that names the setting, the value and the way out; --help is quick and for people."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Run, Train, one_line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("model=resnet", ["model=resnet", "cnn, mlp"]),
        ("experiment=seed", ["experiment=seed", "seed_mlp"]),
        ("seed=abc", ["seed=abc", "could not be converted to Integer"]),
        ("seed=-1", ["seed", "from 0", "-1"]),
        ("sede=3", ["sede", "seed"]),
        ("optimizer.lr=-1", ["optimizer.lr", "positive", "-1"]),
        ("optimizer.lr=fast", ["optimizer.lr", "number", "'fast'"]),
        ("optimizer=sgd optimizer.momentum=-2", ["optimizer", "momentum", "-2"]),
        ("data.batch_size=0", ["data.batch_size", "positive", "0"]),
        ("data.batch_size=many", ["data.batch_size", "'many'"]),
        ("data=mnist data.val_size=60000", ["data.val_size", "59999", "60000"]),
        ("data.batch_sise=3", ["data.batch_sise", "did you mean batch_size"]),
        ("+data.batch_sise=3", ["data.batch_sise", "did you mean batch_size"]),
        ("data.dataset=emnist", ["data.dataset", "'emnist'", "kmnist"]),
        ("data.fallback=cifar", ["data.fallback", "digits", "'cifar'"]),
        ("data.mirrors=[nonsense]", ["data.mirrors", "nonsense", "addresses"]),
        ("data.augment={shift: -1}", ["data.augment.shift", "-1"]),
        ("data.augment={sheer: 1}", ["data", "sheer"]),
        ("data.augment={shift: 1} data.augment.shear=1", ["there are shift", "+data.augment.shear=… adds another"]),
        ("data.augment={gaps: wide}", ["data.augment.gaps", "number", "'wide'"]),
        ("data.augment={thickness: 2}", ["data.augment.thickness", "0 to 1", "2"]),
        ("data.nondigits=-1", ["data.nondigits", "from 0", "-1"]),
        ("data.nondigits=30", ["data.nondigits=30", "CNN", "model=refusing_cnn"]),
        ("model=refusing_cnn model.nondigit_weight=-1", ["model.nondigit_weight", "from 0", "-1"]),
        ("data.drawn_digits=2.5", ["data.drawn_digits", "whole number", "2.5"]),
        ("data=kmnist data.drawn_digits=30", ["data.drawn_digits=30", "kmnist"]),
        ("model=mlp model.hidden=[0]", ["model.hidden", "0"]),
        ("model=mlp model.dropout=2", ["model", "dropout", "2"]),
        ("model.kernel_sizes=[3]", ["model.kernel_sizes", "[3]", "model.channels"]),
        ("model.kernel_sizes=[15,15]", ["model.kernel_sizes", "28x28"]),
        ("model.label_smoothing=1", ["model.label_smoothing", "1"]),
        ("model._target_=mnist_pl.models.CNM", ["model", "CNM"]),
        ("+model.width=3", ["model.width", "no such setting"]),
        ("scheduler=step scheduler.step_size=two", ["scheduler.step_size", "whole number", "'two'"]),
        ("+scheduler.gama=3", ["scheduler.gama", "no such setting"]),
        ("trainer.accelerator=gpu", ["trainer.accelerator=gpu", "no GPU", "trainer.accelerator=cpu"]),
        ("trainer.accelerator=abacus", ["trainer", "abacus"]),
        ("trainer.max_epochs=-5", ["trainer", "max_epochs", "-5"]),
        ("trainer.max_epoch=5", ["trainer.max_epoch", "did you mean max_epochs"]),
        ("trainer.precision=7", ["trainer", "7"]),
        ("callbacks.best.monitr=x", ["callbacks.best.monitr", "did you mean monitor"]),
        ("callbacks.last.every_n_minutes=-1", ["callbacks.last.every_n_minutes", "positive", "-1"]),
        ("+callbacks.mine={a: 1}", ["callbacks.mine", "_target_"]),
        ("+logger.mine={_target_: builtins.dict}", ["logger.mine", "Logger"]),
        ("fit=false", ["fit=false", "ckpt_path"]),
        ("ckpt_path=nowhere", ["ckpt_path=nowhere", "no such file"]),
        ("ckpt_path=a=b.ckpt", ["ckpt_path=a=b.ckpt", "quote"]),
        ("resume=outputs", ["resume=outputs", "outputs/.hydra/overrides.yaml"]),
    ],
)
def test_a_bad_setting(
    train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, parts: list[str]
) -> None:
    for kind in (torch.cuda, torch.mps):
        monkeypatch.setattr(kind, "is_available", lambda: False)
    if "data=" not in words:
        words = f"data=digits {words}"
    # A value of several words, as a shell would pass it.
    split = [word.replace("~", " ") for word in words.replace(": ", ":~").split()]
    with pytest.raises(SystemExit) as ended:
        train_here(*split)
    line = str(ended.value.code)
    assert line.startswith("error: ") and "\n" not in line
    for part in parts:
        assert part in line, line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("data.batch_size=0", "data.batch_size must be a positive whole number, got 0"),
        ("model=resnet", "model=resnet: there is no such option; there are cnn, mlp"),
    ],
)
def test_a_program_ends_with_one_line(run: Run, tmp_path: Path, words: str, part: str) -> None:
    assert part in one_line(run("train.py", "data=digits", words))
    assert not list(tmp_path.glob("**/*.ckpt")) and not list(tmp_path.glob("**/summary.json"))


def test_a_preset_with_a_misspelt_key(run: Run, train_here: Train, tmp_path: Path) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    for name, body in {"root": "sede: 3", "nested": "data: {batch_sise: 3}"}.items():
        (tmp_path / "conf" / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{body}\n")
    more = f"hydra.searchpath=[file://{tmp_path}/conf]"
    assert "sede" in one_line(run("train.py", more, "experiment=root"))
    with pytest.raises(SystemExit, match=r"^error: .*did you mean batch_size"):
        train_here(more, "experiment=nested")


@pytest.mark.parametrize(
    "words",
    [
        ["train.py", "--help"],
        pytest.param(["train.py", "--cfg", "job"], marks=pytest.mark.long),
        pytest.param(["predict.py", "--help"], marks=pytest.mark.long),
        pytest.param(["mnist_pl/export.py", "--help"], marks=pytest.mark.long),
        pytest.param(["mnist_pl/evaluate.py", "--help"], marks=pytest.mark.long),
    ],
)
def test_help_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(ROOT / words[0]), *words[1:]]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert ended.returncode == 0, ended.stderr
    if words == ["train.py", "--help"]:
        assert "model: cnn, mlp" in ended.stdout and ended.stdout.count("  python train.py") == 5
