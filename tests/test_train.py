"""train.py as a user runs it, on the embedded digits."""

import csv
import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from conftest import HAS_MNIST, MNIST_ROOT, ROOT, Run, needs_mnist, one_line

from mnist_pl import checkpoint

QUICK = ("data=digits", "trainer.max_epochs=1", "hydra.run.dir=run")


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_run_learns_and_leaves_what_the_design_says(trained: Path) -> None:
    facts = summary(trained)
    assert facts["test/acc"] >= 0.95 and facts["val/acc"] >= 0.95
    expected = "data model optimizer seed epochs parameters device train_seconds images_per_second val/acc val/loss "
    expected += "test/acc test/loss best_checkpoint torch lightning git_commit"
    assert set(expected.split()) <= set(facts)
    assert facts["data"] == "digits" and facts["model"] == "CNN" and facts["epochs"] == 5
    left = {path.name for path in trained.iterdir()}
    assert {".hydra", "checkpoints", "metrics.csv", "summary.json", "samples.png", "curves.png", "train.log"} <= left
    assert list(trained.glob("digits-cnn-adam-lr0.001-seed1/events.out.tfevents*"))
    assert {"confusion.png", "mistakes.png", "calibration.png"} <= left
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_the_log_has_a_line_for_each_epoch_and_no_bar(trained: Path) -> None:
    lines = (trained.parent.parent / "log").read_text().splitlines()
    table = "epoch 0/5 1/5 2/5 3/5 4/5 5/5 loss val test worst time"
    first_words = f"data model with on in {table} all look predict"
    assert " ".join(line.split()[0] for line in lines if line) == first_words
    assert max(map(len, lines)) <= 80
    assert "\r" not in "".join(lines)


def test_the_curve_starts_at_the_untrained_network(trained: Path) -> None:
    with open(trained / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    scored = [row for row in rows if row["val/acc"]]
    assert len(scored) == 6 and float(scored[0]["images"]) == 0
    assert float(scored[0]["val/acc"]) < 0.3 < 0.9 < float(scored[-1]["val/acc"])
    assert float(scored[-1]["images"]) == 5 * (1497 - 200)


def test_the_best_checkpoint_is_tested(trained: Path) -> None:
    with open(trained / "metrics.csv") as file:
        validation = [float(row["val/acc"]) for row in csv.DictReader(file) if row["val/acc"]]
    best = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["metrics"]["val/acc"] == pytest.approx(max(validation[1:]))
    assert summary(trained)["val/acc"] == pytest.approx(max(validation[1:]), abs=1e-6)


@pytest.mark.parametrize("alone", [False, True], ids=["", "weights alone"])
def test_only_testing_gives_the_same_figures(run: Run, trained: Path, tmp_path: Path, alone: bool) -> None:
    whole = checkpoint.read(trained / "checkpoints" / "best.ckpt")
    needed = ("model", "state_dict", "hyper_parameters", "datamodule_hyper_parameters", "pytorch-lightning_version")
    torch.save({name: whole[name] for name in needed} if alone else whole, tmp_path / "a.ckpt")
    ended = run("train.py", "data=digits", "fit=false", "optimizer=sgd", "ckpt_path=a.ckpt", "hydra.run.dir=tested")
    assert ended.code == 0, ended.err
    assert summary(tmp_path / "tested")["test/acc"] == summary(trained)["test/acc"]
    assert not (tmp_path / "tested" / "checkpoints").exists()


@pytest.mark.parametrize("scheduler", ["none", "onecycle", "cosine", "step"])
def test_a_checkpoint_is_continued(run: Run, scheduler: str, tmp_path: Path) -> None:
    words = ("train.py", "data=digits", "model=mlp", f"scheduler={scheduler}", "trainer.log_every_n_steps=41")
    assert run(*words, "trainer.max_epochs=2", "hydra.run.dir=first").code == 0
    before = summary(tmp_path / "first")
    words = (*words, "ckpt_path=first", "hydra.run.dir=more")
    assert "raise it to go on" in one_line(run(*words, "trainer.max_epochs=2"))
    ended = run(*words, "trainer.max_epochs=6")
    assert ended.code == 0 and not ended.err, ended.err
    assert [number in ended.out for number in ("1/6", "2/6", "3/6")] == [False, True, True]
    after = summary(tmp_path / "more")
    assert after["epochs"] == 6 and after["val/acc"] >= before["val/acc"]
    with open(tmp_path / "more" / "metrics.csv") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
    assert len(rates) == 4 and max(rates) > 1e-4, "the schedule is stretched, not at its end"


def test_continuing_keeps_the_best_so_far(run: Run, tmp_path: Path) -> None:
    words = ("train.py", "data=digits", "model=mlp", "scheduler=none", "hydra.run.dir=more", "trainer.max_epochs=4")
    assert run("train.py", "data=digits", "model=mlp", "trainer.max_epochs=3", "hydra.run.dir=first").code == 0
    first = torch.load(tmp_path / "first" / "checkpoints" / "last.ckpt", weights_only=True)
    for group in first["optimizer_states"][0]["param_groups"]:
        group["lr"] = 10.0  # ruins the network from here on
    torch.save(first, tmp_path / "first" / "checkpoints" / "last.ckpt")
    assert run(*words, "ckpt_path=first").code == 0
    assert summary(tmp_path / "more")["test/acc"] == summary(tmp_path / "first")["test/acc"]
    assert summary(tmp_path / "more")["best_checkpoint"] == "more/checkpoints/best.ckpt"


def test_the_same_seed_gives_the_same_bits(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        words = ("data.augment={shift: 2, rotate: 10}", "model.dropout=0.5", "trainer.max_epochs=2")
        assert run("train.py", "data=digits", *words, f"hydra.run.dir={name}").code == 0
    one, two = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("one", "two"))
    for name, weights in one["state_dict"].items():
        assert torch.equal(weights, two["state_dict"][name]), name


def test_a_sweep_ends_with_a_table(run: Run, tmp_path: Path) -> None:
    words = ("model=mlp", "optimizer=sgd", "optimizer.lr=0.1,0.001", "seed=1,2", "hydra.sweep.dir=sweep")
    ended = run("train.py", "-m", "data=digits", "trainer.max_epochs=1", *words)
    assert ended.code == 0, ended.err
    rows = [line for line in ended.out.splitlines() if line.startswith("| data=digits")]
    assert len(rows) == 2 and all(row.split("|")[2].strip() == "2" and "±" in row for row in rows)
    assert all((tmp_path / "sweep" / str(job) / "summary.json").exists() for job in range(4))


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.fast_dev_run=true"],
        ["trainer.overfit_batches=2"],
        ["trainer.overfit_batches=0.1"],
        ["trainer.limit_train_batches=3", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"],
        ["trainer.limit_val_batches=0"],
        ["trainer.precision=bf16-mixed", "trainer.limit_train_batches=2"],
        ["trainer.max_steps=5"],
        ["trainer.accumulate_grad_batches=4", "trainer.gradient_clip_val=1.0"],
        ["trainer.val_check_interval=0.5", "trainer.num_sanity_val_steps=0"],
        ["trainer.enable_checkpointing=false", "trainer.enable_progress_bar=false"],
        ["trainer.max_time=00:00:10:00", "trainer.profiler=simple"],
        ["trainer=debug"],
        ["trainer=cpu"],
        ["data.val_size=0"],
        ["callbacks.samples=null", "callbacks.curves=null", "callbacks.best=null"],
        ["logger=csv"],
        ["logger=none"],
        ["scheduler=cosine", "optimizer=adamw"],
        ["scheduler=step", "optimizer=sgd"],
    ],
    ids=" ".join,
)
def test_the_trainers_arguments_and_the_groups_work(run: Run, words: list[str], tmp_path: Path) -> None:
    ended = run("train.py", "model=mlp", *QUICK, *words)
    assert ended.code == 0, ended.err
    assert "Warning" not in ended.err
    assert summary(tmp_path / "run")["test/acc"] >= 0


def test_overfitting_sees_the_same_batches_every_epoch(run: Run, tmp_path: Path) -> None:
    words = ("trainer.overfit_batches=1", "trainer.max_epochs=40", "optimizer.lr=0.01", "scheduler=none")
    assert run("train.py", "model=mlp", *QUICK, *words).code == 0
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["metrics"]["train/acc"] == 1.0
    assert last["images_seen"] == 40 * 32


def test_nothing_is_chosen_by_the_test_images(run: Run, tmp_path: Path) -> None:
    words = ("data.validate_on_test=true", "data.val_size=0", "optimizer.lr=0.3", "scheduler=none", "optimizer=sgd")
    assert run("train.py", "model=mlp", *QUICK, *words, "trainer.max_epochs=4").code == 0
    best, last = (
        torch.load(tmp_path / "run" / "checkpoints" / f"{n}.ckpt", weights_only=True) for n in ("best", "last")
    )
    assert best["epoch"] == last["epoch"] == 4 - 1 or best["global_step"] == last["global_step"]


def test_every_trainer_argument_is_in_the_configuration() -> None:
    import inspect

    from lightning import Trainer

    known = set(inspect.signature(Trainer).parameters) - {"logger", "callbacks"}
    assert set(yaml.safe_load((ROOT / "conf/trainer/default.yaml").read_text())) - {"_target_"} == known


def test_without_mnist_the_default_run_says_so_and_trains_on_digits(run: Run, tmp_path: Path) -> None:
    ended = run("train.py", "trainer.max_epochs=1", "hydra.run.dir=run", limit=60)
    assert ended.code == 0, ended.err
    assert ended.out.count("WARNING") == 1 and "1,797 embedded digits" in ended.out
    facts = summary(tmp_path / "run")
    assert facts["data"] == "digits" and facts["run"] == "digits-cnn-adam-lr0.001-max_epochs1-seed1"
    assert (tmp_path / "run" / facts["run"]).is_dir()


def test_two_processes_share_the_work_and_count_every_test_image_once(tmp_path: Path) -> None:
    words = ["data=digits", "model=mlp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]
    command = [sys.executable, str(ROOT / "train.py"), *words, "trainer.max_epochs=2", "hydra.run.dir=run"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(" 2/2 ") == 1 and "Warning" not in ended.stderr
    facts = summary(tmp_path / "run")
    assert facts["test/acc"] * 300 == pytest.approx(round(facts["test/acc"] * 300), abs=1e-3)
    assert facts["test/acc"] > 0.8
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["images_seen"] == 2 * 2 * (1297 // 2)


def test_a_sweep_of_several_processes_is_refused(run: Run) -> None:
    words = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp")
    ended = run("train.py", "-m", "data=digits", "model=mlp", *words, "seed=1,2")
    assert ended.code != 0 and "trainer.devices=2: in a sweep" in ended.err and "Traceback" not in ended.err


PRESETS = {  # parameters, and the least accuracy after one epoch of MNIST
    "seed_mlp": (39_760, 0.90),
    "seed_cnn": (21_840, 0.92),
    "seed_cnn3_adam": (252_866, 0.97),
    "seed_cnn3_sgd": (252_866, 0.975),
    "seed_cnn3_sgd_slow": (252_866, 0.11),
    "seed_deep_mlp": (211_140, 0.93),
    "seed_digit_cnn": (1_007_590, 0.975),
}


@pytest.mark.promise("the same seed, the same bits", "first epochs of the presets, on MNIST where it is there")
@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_first_epoch_gives_the_same_bits_and_learns(run: Run, preset: str, tmp_path: Path) -> None:
    epochs = 3 if preset == "seed_mlp" else 1
    words = [f"experiment={preset}", f"trainer.max_epochs={epochs}"] + ([] if HAS_MNIST else ["data=digits"])
    where = {"MNIST_ROOT": MNIST_ROOT} if HAS_MNIST else {}
    weights = []
    for name, less in (("one", []), ("two", ["trainer.limit_test_batches=1", "trainer.num_sanity_val_steps=0"])):
        ended = run("train.py", *words, *less, f"hydra.run.dir={name}", **where)
        assert ended.code == 0 and not ended.err, ended.err
        weights.append(checkpoint.read(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"])
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    facts = summary(tmp_path / "one")
    assert facts["experiment"] == preset and facts["parameters"] == PRESETS[preset][0]
    assert facts["val/acc"] == facts["test/acc"], "the sources score the test images every epoch"
    if HAS_MNIST:
        assert facts["data"] == "mnist" and facts["test/acc"] >= PRESETS[preset][1]
        if preset == "seed_mlp":
            assert facts["test/acc"] == pytest.approx(0.938, abs=0.004)
        if preset == "seed_cnn3_sgd_slow":
            assert facts["test/acc"] < 0.9, "the author's lesson: far too small a learning rate"


def test_mnist_is_found_or_the_skip_says_why() -> None:
    assert HAS_MNIST or "MNIST_ROOT" in needs_mnist.kwargs["reason"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk of its own: give it the options of `mount`, as often as you like."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        again = ["remount," + options] if mounted else [options]
        if subprocess.run(["mount", "-t", "tmpfs", "-o", *again, "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("mounting a small disk needs to be root")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", folder], check=True)


SMALL = (
    "data=digits",
    "model.channels=[4,8]",
    "model.hidden=[20]",
    "data.batch_size=16",
    "trainer.log_every_n_steps=1",
)


@pytest.mark.promise(
    "a full disk: one clear error, the earlier checkpoint whole; with room, the run goes on",
    "real disks of 8 to 260 kB",
)
@pytest.mark.parametrize("size", [8, 32, 64, 128, 260])
def test_a_full_disk(run: Run, disk: Callable[[str], Path], size: int) -> None:
    folder = disk(f"size={size}k")
    line = one_line(run("train.py", *SMALL, "trainer.max_epochs=3", f"hydra.run.dir={folder}/run"))
    assert "No space left on device" in line and "hydra.run.dir=FOLDER" in line
    checkpoints = list(folder.glob("run/checkpoints/*"))
    for path in checkpoints:
        checkpoint.read(path)
    if checkpoints:
        assert "No space left" in one_line(run("train.py", f"resume={folder}/run"))
        disk("size=4m")
        assert run("train.py", f"resume={folder}/run").code == 0
        assert summary(folder / "run")["epochs"] == 3


STARVED = "no shared memory, one core, a wrong clock, folders that cannot be written"


@pytest.mark.promise(STARVED, "read-only disks")
def test_a_folder_that_cannot_be_written(run: Run, disk: Callable[[str], Path], trained: Path) -> None:
    folder = disk("ro")
    for words in (["train.py", "data=digits"], ["predict.py", f"ckpt_path={trained}"]):
        line = one_line(run(*words, f"hydra.run.dir={folder}/run"))
        assert "Read-only file system" in line and "hydra.run.dir=FOLDER" in line


@pytest.mark.promise(STARVED, "/dev/shm taken away in a namespace of its own; one core")
def test_without_shared_memory_and_on_one_core(tmp_path: Path) -> None:
    script = f"mount -t tmpfs -o ro,size=4k tmpfs /dev/shm; exec taskset -c 0 {sys.executable} {ROOT / 'train.py'}"
    command = ["unshare", "--mount", "sh", "-ec", f"{script} {' '.join(QUICK)} model=mlp"]
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace needs to be root")
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    assert "cpu, 1 threads" in summary(tmp_path / "run")["device"]


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(which, now);
    if (which == CLOCK_REALTIME) now->tv_sec += atol(getenv("CLOCK_OFF"));
    return code;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.mark.promise(STARVED, "the year 2100, and a clock set back between a run and its resume")
def test_a_wrong_clock(run: Run, tmp_path: Path) -> None:
    """The program asks the C library for the time of day, and gets this one."""
    (tmp_path / "clock.c").write_text(CLOCK)
    build = ["cc", "-shared", "-fPIC", "-o", "clock.so", "clock.c", "-ldl"]
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    subprocess.run(build, cwd=tmp_path, check=True)
    century = 130 * 365 * 86_400 + 40 * 86_400 - int(time.time())
    command = [sys.executable, str(ROOT / "train.py"), "data=digits", "model=mlp", "trainer.max_epochs=1"]
    variables = {**os.environ, "LD_PRELOAD": str(tmp_path / "clock.so"), "CLOCK_OFF": str(century)}
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=variables)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    (folder,) = tmp_path.glob("outputs/*/*")
    assert folder.parent.name.startswith("2100")
    assert run("train.py", "resume=last", "trainer.max_epochs=2").code == 0
    assert summary(folder)["epochs"] == 2


@pytest.mark.promise("no network connection but the data download", "strace of training, testing and predicting")
def test_no_connection_is_opened(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    train, predict = (f"{sys.executable} {ROOT / name}" for name in ("train.py", "predict.py"))
    script = (
        f"{train} {' '.join(QUICK)} model=mlp; {predict} ckpt_path=run; {predict} ckpt_path=run input=run/samples.png"
    )
    command = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-e",
        "trace=connect,sendto,sendmsg",
        "-o",
        "calls",
        "sh",
        "-ec",
        script,
    ]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    calls = (tmp_path / "calls").read_text()
    assert "exited with 0" in calls and "AF_INET" not in calls, calls


@pytest.mark.parametrize("width", [50, 100])
def test_a_terminal_of_any_width(width: int, tmp_path: Path) -> None:
    """A real one, of which nothing but letters is expected: no colours, no UTF-8."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    words = ["data=digits", "model=mlp", "trainer.max_epochs=2", "data.batch_size=1", "hydra.run.dir=run"]
    variables = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    variables |= {"NO_COLOR": "1", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "TERM": "dumb"}
    command = [sys.executable, str(ROOT / "train.py"), *words]
    process = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=slave, stderr=slave, stdin=slave)
    os.close(slave)
    shown = b""
    with suppress(OSError):  # EIO: the other end is closed
        while part := os.read(master, 65536):
            shown += part
    os.close(master)
    assert process.wait() == 0
    text = shown.decode("ascii")
    assert not re.search(r"\x1b\[[0-9;]*m", text), "no colours"
    bars = [state for line in text.split("\r\n") for state in line.split("\r") if "%|" in state or "% " in state[:14]]
    assert any(re.search(r"acc=0\.\d{4}", bar) for bar in bars), "the figures that matter"
    lines = [line.split("\r")[-1] for line in text.split("\r\n")]
    whole = [line for line in [*lines, *bars] if "python predict.py" not in line]  # commands are not broken
    assert max(map(len, whole)) <= width
    (head,) = [" ".join(line.split()) for line in lines if line.lstrip().startswith("epoch")]
    losses = width > 60
    assert head == f"epoch {'train loss ' * losses}train acc {'val loss ' * losses}val acc seconds"
