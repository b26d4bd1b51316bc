"""The speed figures of RESULTS.md, side by side in one run, on an idle machine: `python -m mnist_pl.benchmark`.

Ours runs as people run it: metrics, progress bar, TensorBoard, checkpoints and validation on. The yardsticks are the
recipes of the published scripts, as plain as their authors wrote them and as fast as those choices allow, each in a
process of its own. Ours and the yardstick alternate; the first of each is warm-up and left out.
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import open_dict
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from mnist_pl.data import MNISTDataModule, files, to_float
from mnist_pl.engine.memory import keep_freed_memory
from mnist_pl.figures.plots import rows
from mnist_pl.figures.progress import Progress
from mnist_pl.models import CNN
from mnist_pl.runs import front
from mnist_pl.runs.build import build

ROOT = Path(__file__).parent.parent
REPEATS = 5
PIPELINE = "its source's pipeline"
IMPORTS = "import torch, lightning, torchvision"
TRAIN = f"import runpy; runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
# Ratios, differences, plainly:
UNITS = {"x": "{:.2f} ×", "min": "{:.2f} min", "+s": "+{:.1f} s", "+MB": "+{:.0f} MB", "s": "{:.2f} s"}

Times = tuple[list[float], list[float]]  # seconds of ours, seconds of the yardstick


class Row(NamedTuple):
    what: str
    yardstick: str
    unit: str  # of the comparison, a key of UNITS
    target: str
    measure: "Callable[[Bench, Row], Times]"


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 10))


def cnn(kernel: int, channels: int, inputs: int, hidden: int) -> nn.Module:
    """As the sources write it: ReLU before pooling, the default memory layout."""
    layers: list[nn.Module] = []
    for layer in (nn.Conv2d(1, 24, kernel), nn.Conv2d(24, channels, 3)):
        layers += [layer, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 10))


adam, sgd = torch.optim.Adam, partial(torch.optim.SGD, lr=0.01, momentum=0.5)
RECIPES: dict[str, tuple[Any, Any, int, float, float]] = {  # network, optimiser, batch size, mean and std of the pixels
    "seed_mlp": (mlp, sgd, 64, 0.1307, 0.3081),
    "seed_cnn3_adam": (partial(cnn, 3, 48, 1200, 200), partial(adam, lr=0.001), 200, 0.5, 0.5),
    # for 99 % in one epoch, with a one-cycle schedule
    "peer": (partial(cnn, 5, 32, 800, 256), partial(adam, lr=0.01, betas=(0.7, 0.9)), 256, 0.1307, 0.3081),
}


@cache
def load(root: Path, name: str, pipeline: bool) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """Gives an epoch's batches: of tensors in memory; or of torchvision's data set, transformed one image at a time."""
    _, _, batch_size, mean, std = RECIPES[name]
    if pipeline:
        steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize((mean,), (std,))])
        return partial(iter, DataLoader(datasets.MNIST(root, transform=steps), batch_size, shuffle=True))
    source = datasets.MNIST(root)
    images, labels = (source.data.unsqueeze(1) / 255 - mean) / std, source.targets
    return lambda: ((images[i], labels[i]) for i in torch.randperm(len(labels)).split(batch_size))


def yardstick(root: Path, name: str, pipeline: bool) -> float:
    """Seconds of an epoch of a plain loop."""
    batches = load(root, name, pipeline)
    make_network, make_optimizer, batch_size, *_ = RECIPES[name]
    started = perf_counter()
    model = make_network()
    optimizer = make_optimizer(model.parameters())
    schedule = OneCycleLR(optimizer, max_lr=0.01, total_steps=-(-60_000 // batch_size)) if name == "peer" else None
    for images, labels in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return perf_counter() - started


def seconds(function: Callable[[], Any]) -> float:
    started = perf_counter()
    function()
    return perf_counter() - started


@contextmanager
def own_process(root: Path, name: str, pipeline: bool, threads: int | None = None) -> Iterator[Callable[[], float]]:
    """`yardstick` in a process of its own, as its author ran it: what ours does to its own is not lent to it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        if threads is not None:
            pool.submit(torch.set_num_threads, threads).result()
        yield lambda: pool.submit(yardstick, root, name, pipeline).result()


def processor() -> str:
    about = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", about.read_text() if about.exists() else "")
    return named[1].strip() if named else platform.processor()


def alternate(ours: Callable[[], float], theirs: Callable[[], float], count: int = REPEATS) -> Times:
    pairs = [(theirs(), ours()) for _ in range(1 + count)][1:]
    return [b for _, b in pairs], [a for a, _ in pairs]


class Epochs(Callback):
    """Times each epoch of ours, from its start to the next one's, with one of the yardstick in between."""

    def __init__(self, theirs: Callable[[], float]) -> None:
        self.run_theirs, self.ours, self.theirs, self.started = theirs, list[float](), list[float](), 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.theirs:
            self.ours.append(perf_counter() - self.started)
        self.theirs.append(self.run_theirs())
        self.started = perf_counter()


class Bench:
    """The images, as ours and torchvision read them; a folder of its own for every run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.accuracies = folder, list[float]()
        raw, problem = files.locate("mnist")
        self.real = problem is None
        if self.real:
            self.train, self.test = files.read("mnist", raw)
        else:
            images = torch.randint(0, 256, (70_000, 28, 28), dtype=torch.uint8)
            labels = torch.randint(0, 10, (70_000,))
            self.train, self.test = (images[:60_000], labels[:60_000]), (images[60_000:], labels[60_000:])
        extracted = folder / "MNIST" / "raw"  # which torchvision wants, and ours takes where there is no .gz file
        extracted.mkdir(parents=True)
        for part, (images, labels) in {"train": self.train, "t10k": self.test}.items():
            for name, tensor in {"images-idx3": images, "labels-idx1": labels.to(torch.uint8)}.items():
                header = bytes([0, 0, 8, tensor.dim()]) + np.array(tensor.shape, ">u4").tobytes()
                (extracted / f"{part}-{name}-ubyte").write_bytes(header + tensor.numpy().tobytes())
        # No checksum of extracted files is known for KMNIST, so random images can stand in for them.
        (folder / "KMNIST").symlink_to(folder / "MNIST")
        self.dataset = "mnist" if self.real else "kmnist"
        self.root = os.path.abspath(files.default_folder()) if self.real else str(folder)
        self.words = [f"data.dataset={self.dataset}", f"data.data_dir={self.root}"]

    def new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))

    def fit(self, words: list[str], *more: Callback) -> float:
        """Seconds of train.py's fit; its test accuracy is kept."""
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("train", words + self.words, return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(self.new_folder())
        HydraConfig.instance().set_config(cfg)
        data, model, trainer = build(cfg)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks += more
        next(callback for callback in callbacks if isinstance(callback, Progress)).live = True
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            taken = seconds(lambda: trainer.fit(model, datamodule=data))
        trainer.test(model, datamodule=data, verbose=False)
        self.accuracies.append(100 * float(trainer.callback_metrics["test/acc"]))
        return taken

    def epochs(self, row: Row) -> Times:
        name = row.what.partition(",")[0]
        return self.alternate_epochs(name, name, row.yardstick == PIPELINE)

    def alternate_epochs(self, preset: str, name: str, pipeline: bool) -> Times:
        with own_process(self.folder, name, pipeline) as theirs:
            timer = Epochs(theirs)
            self.fit([f"experiment={preset}", f"trainer.max_epochs={REPEATS + 2}"], timer)
        return timer.ours[1 : REPEATS + 1], timer.theirs[1 : REPEATS + 1]

    def minutes(self, row: Row) -> Times:
        """All epochs of a preset, by one of them, and as many of the yardstick as are called a minute."""
        preset = row.what.partition(",")[0].removeprefix("experiment=")
        ours, theirs = self.alternate_epochs(preset, front.YARDSTICK, False)
        count = front.composed(preset).trainer.max_epochs
        return [count * epoch for epoch in ours], [front.MINUTE * epoch for epoch in theirs]

    def fast(self, row: Row) -> Times:
        self.accuracies.clear()
        seeds = iter(range(REPEATS + 1))
        with own_process(self.folder, "peer", False) as theirs:
            return alternate(lambda: self.fit(["experiment=fast", f"seed={next(seeds)}"]), theirs)

    def deterministic(self, row: Row) -> Times:
        """A hundred steps of the default network at a time: epochs apart, the machine's own changes are larger."""
        keep_freed_memory()
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # as in `build`
        model = CNN(optimizer={"_target_": "torch.optim.Adam", "lr": 0.001, "fused": True})
        optimizer = model.make_optimizer()
        images, labels = to_float(self.train[0][:64]), self.train[1][:64]

        def steps(deterministic: bool) -> None:
            torch.use_deterministic_algorithms(deterministic, warn_only=True)
            for _ in range(100):
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()

        ours, theirs = (partial(seconds, partial(steps, deterministic)) for deterministic in (True, False))
        times = alternate(ours, theirs, 3 * REPEATS)
        torch.use_deterministic_algorithms(False)
        return times

    def processes(self, row: Row) -> Times:
        """train.py with the settings in the row's names, or the yardstick's imports, each in a new process."""
        ours, theirs = (re.findall(r"\S+=\S+", words) for words in (row.what, row.yardstick))
        other = row.yardstick if row.yardstick.startswith("import ") else TRAIN
        measure = partial(self.process, row.unit == "+MB")
        return alternate(lambda: measure(TRAIN, *ours), lambda: measure(other, *theirs), 3)

    def process(self, memory: bool, code: str, *words: str) -> float:
        """Seconds; or MB at the most, as the process itself reads it: what we read would count our own memory in."""
        more = [*words, *self.words, f"hydra.run.dir={self.new_folder()}"]
        command = [sys.executable, "-c", code + "; print(open('/proc/self/status').read())" * memory, *more]
        started = perf_counter()
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return int(re.findall(r"VmHWM:\s+(\d+)", ended.stdout)[-1]) / 1024 if memory else perf_counter() - started

    def two_processes(self, row: Row) -> Times:
        """An epoch in two processes of one thread, and in one of two threads with the joint batch."""

        def epoch(threads: int, *words: str) -> float:
            folder = self.new_folder()
            more = [*self.words, "callbacks=minimal", "logger=csv", "trainer.max_epochs=2", f"hydra.run.dir={folder}"]
            command = [sys.executable, str(ROOT / "train.py"), *words, *more, "trainer.accelerator=cpu"]
            threading = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=threading)
            return min(row["seconds_per_epoch"] for row in rows(folder / "metrics.csv") if "seconds_per_epoch" in row)

        ddp = partial(epoch, 1, "trainer=ddp", "trainer.devices=2", "data.batch_size=32")
        return alternate(ddp, partial(epoch, 2, "data.batch_size=64"), 3)

    def reading(self, row: Row) -> Times:
        def read() -> None:
            data = MNISTDataModule(self.dataset, self.root)
            data.prepare_data()
            data.setup("fit")

        return [seconds(read) for _ in range(REPEATS)], []

    def predict(self, row: Row) -> Times:
        sys.path.insert(0, str(ROOT))
        from predict import read_pictures

        pictures = self.new_folder()
        for number, image in enumerate(self.test[0].numpy()):
            Image.fromarray(image).save(pictures / f"{number:05}.png")
        model, paths = CNN().eval(), sorted(pictures.iterdir())

        def ours() -> float:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                return seconds(partial(read_pictures, model, [str(pictures)], self.new_folder()))

        return alternate(ours, partial(seconds, lambda: [np.asarray(Image.open(path)) for path in paths]))


ROWS = [
    Row("seed_mlp, an epoch", "bare tensor loop", "x", "<= 3.0, goal 1.5", Bench.epochs),
    Row("seed_cnn3_adam, an epoch", "bare loop as its source", "x", "<= 0.65, goal 0.55", Bench.epochs),
    Row("seed_mlp, an epoch", PIPELINE, "x", "<= 1/5, goal 1/9", Bench.epochs),
    Row("seed_cnn3_adam, an epoch", PIPELINE, "x", "<= 1/2.8, goal 1/3.3", Bench.epochs),
    Row("experiment=fast, all of fit", "the peer's recipe", "x", "<= 0.65, goal 0.35", Bench.fast),
    Row("default CNN, 100 steps", "trainer.deterministic=false", "x", "<= 1.02", Bench.deterministic),
    Row("train.py, default run", "logger=none", "x", "<= 1.05", Bench.processes),
    Row("train.py experiment=fast", "import torch, lightning", "+s", "<= +14 s, goal +6 s", Bench.processes),
    Row("trainer=ddp, an epoch", "one process, two threads", "x", "<= 1.1", Bench.two_processes),
    Row("reading the four files", "", "s", "<= 0.5 s, goal 0.2 s", Bench.reading),
    Row("peak memory, trainer.max_epochs=1", IMPORTS, "+MB", "<= +400 MB, goal +200 MB", Bench.processes),
    Row("predict.py, 10,000 PNGs", "decoding with Pillow", "x", "<= 2.0, goal 1.2", Bench.predict),
]


def chosen(only: str) -> list[Row]:
    """The rows whose name holds `only`; those of the presets, which take long, where it says experiment=."""
    bare = f"a minute: {front.MINUTE} epochs of {front.YARDSTICK}, bare"
    presets = front.names() if "experiment=" in only else []
    costs = [Row(f"experiment={name}, all epochs", bare, "min", "", Bench.minutes) for name in presets]
    return [row for row in [*ROWS, *costs] if only in row.what]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mnist_pl.benchmark", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--only", default="", help="the rows whose name holds this; experiment=NAME: a preset's cost")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("mnist_pl").setLevel(logging.ERROR)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        facts: dict[str, Any] = {
            "images": "MNIST" if bench.real else "random",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "threads": torch.get_num_threads(),
            "processor": processor(),
        }
        for row in chosen(arguments.only):
            print(f"{row.what} …", file=sys.stderr)
            names = {"what": row.what, "yardstick": row.yardstick, "target": row.target}
            results.append({**names, **compare(*row.measure(bench, row), row.unit)})
            if row.measure == Bench.fast and bench.real:
                mean, spread = statistics.fmean(bench.accuracies), statistics.stdev(bench.accuracies)
                facts |= {"fast_test_acc": f"{mean:.2f} ± {spread:.2f} %", "fast_seeds": len(bench.accuracies)}
    if arguments.json:
        print(json.dumps({**facts, "rows": results}, indent=2))
    else:
        print("\n".join(table(results)) + "\n\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))


def compare(ours: list[float], theirs: list[float], unit: str) -> dict[str, Any]:
    """Medians, and the ratio (or the difference) of each pair: its median and its range."""
    pairs = [a / b if unit in ("x", "min") else a - b for a, b in zip(ours, theirs or [0.0] * len(ours), strict=True)]
    figures = {"ours": statistics.median(ours), "theirs": statistics.median(theirs) if theirs else None}
    figures |= {"result": statistics.median(pairs), "low": min(pairs), "high": max(pairs)}
    rounded = {name: None if value is None else round(value, 3) for name, value in figures.items()}
    return {**rounded, "unit": "MB" if unit == "+MB" else "s", "compared": unit}


def table(results: list[dict[str, Any]]) -> list[str]:
    """Rows of Markdown."""
    lines = ["| what | ours | yardstick | | ratio or difference | range | target |", "|---|---|---|---|---|---|---|"]
    for row in results:
        result, low, high = (UNITS[row["compared"]].format(row[name]) for name in ("result", "low", "high"))
        ours, theirs = (f"{row[n]:.2f} {row['unit']}" if row[n] is not None else "" for n in ("ours", "theirs"))
        cells = (row["what"], ours, row["yardstick"], theirs, result, f"{low} to {high}", row["target"])
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
