"""The speed figures of the README, side by side in one run, on an idle machine: `python -m mnist_pl.benchmark`.

Ours runs as people run it: metrics, progress bar, TensorBoard, checkpoints and validation on. The yardsticks are the
recipes of the published scripts, as plain as their authors wrote them and as fast as those choices allow, each in a
process of its own. Epochs of ours and of the yardstick alternate; the first of each is warm-up and left out.
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import open_dict
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from mnist_pl import data, files
from mnist_pl.callbacks import Progress
from mnist_pl.config import build, keep_freed_memory
from mnist_pl.models import CNN

ROOT = Path(__file__).parent.parent
REPEATS = 5

Times = tuple[list[float], list[float]]  # seconds of ours, seconds of the yardstick


def seed_mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 10))


def seed_cnn3() -> nn.Module:
    """As its source wrote it: ReLU before pooling, the default memory layout."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 24), (24, 48)):
        layers += [nn.Conv2d(inputs, outputs, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1200, 200), nn.ReLU(), nn.Linear(200, 10))


def peer_cnn() -> nn.Module:
    """One peer's recipe for 99 % in one epoch: conv 5x5 -> 24, conv 3x3 -> 32, 256 hidden."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel in ((1, 24, 5), (24, 32, 3)):
        layers += [nn.Conv2d(inputs, outputs, kernel), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10))


class BareLoop:
    """An epoch of a plain loop over tensors in memory, normalised beforehand."""

    def __init__(self, root: Path, batch_size: int, mean: float, std: float) -> None:
        source = torchvision.datasets.MNIST(root)
        self.images, self.labels = (source.data.unsqueeze(1) / 255 - mean) / std, source.targets
        self.batch_size = batch_size

    def epoch(self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Any = None) -> None:
        order = torch.randperm(len(self.labels))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            optimizer.zero_grad()
            F.cross_entropy(model(self.images[chosen]), self.labels[chosen]).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()


class SourceLoop:
    """An epoch of the sources' pipeline: torchvision's data set, transformed one image at a time."""

    def __init__(self, root: Path, batch_size: int, mean: float, std: float) -> None:
        steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize((mean,), (std,))])
        self.loader = DataLoader(torchvision.datasets.MNIST(root, transform=steps), batch_size, shuffle=True)

    def epoch(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for images, labels in self.loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()


def mlp_epochs(root: Path, kind: type[BareLoop] | type[SourceLoop]) -> Callable[[], None]:
    model = seed_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    return partial(kind(root, 64, 0.1307, 0.3081).epoch, model, optimizer)


def cnn_epochs(root: Path, kind: type[BareLoop] | type[SourceLoop]) -> Callable[[], None]:
    model = seed_cnn3()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    return partial(kind(root, 200, 0.5, 0.5).epoch, model, optimizer)


def peer_runs(root: Path) -> Callable[[], None]:
    loop = BareLoop(root, 256, 0.1307, 0.3081)

    def run() -> None:
        model = peer_cnn()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9))
        steps = -(-len(loop.labels) // 256)
        loop.epoch(model, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps))

    return run


class Yardstick:
    """Runs in a process of its own, as its author ran it: what ours does to its own process is not lent to it.

    Each call runs it once and gives the seconds that it took.
    """

    def __init__(self, make: Callable[..., Callable[[], None]], *arguments: Any) -> None:
        processes = multiprocessing.get_context("spawn")
        self.connection, theirs = processes.Pipe()
        self.process = processes.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self.process.start()

    def __call__(self) -> float:
        self.connection.send("go")
        return self.connection.recv()

    def close(self) -> None:
        self.connection.close()
        self.process.join()


def _serve(connection: Connection, make: Callable[..., Callable[[], None]], arguments: tuple) -> None:
    run = make(*arguments)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send(timed(run))


def timed(function: Callable[[], Any]) -> float:
    started = perf_counter()
    function()
    return perf_counter() - started


class Alternate(Callback):
    """Times each epoch of ours, from its start to the next one's, with a run of the yardstick in between."""

    def __init__(self, yardstick: Yardstick) -> None:
        self.yardstick = yardstick
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.started: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.started is not None:
            self.ours.append(perf_counter() - self.started)
        self.theirs.append(self.yardstick())
        self.started = perf_counter()


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        root = Path(os.environ.get("MNIST_ROOT") or "data")
        problem = files.locate("mnist", root)[1]
        self.real = problem is None
        if self.real:
            self.train, self.test = files.read("mnist", files.raw_folder("mnist", root))
        else:
            generator = torch.Generator().manual_seed(0)
            shape = (70_000, 28, 28)
            images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            labels = torch.randint(0, 10, shape[:1], generator=generator)
            self.train, self.test = (images[:60_000], labels[:60_000]), (images[60_000:], labels[60_000:])
        self._lay_extracted(folder / "MNIST" / "raw")
        # No checksum of extracted files is known for KMNIST, so random images can stand in for them.
        (folder / "KMNIST").symlink_to(folder / "MNIST")
        self.words = (f"data.dataset={'mnist' if self.real else 'kmnist'}", f"data.data_dir={self.root}")
        self.runs = 0

    def _lay_extracted(self, raw: Path) -> None:
        """As torchvision wants them, and as we read them too when there is no official file."""
        raw.mkdir(parents=True)
        for part, (images, labels) in {"train": self.train, "t10k": self.test}.items():
            for name, tensor in {"images-idx3": images, "labels-idx1": labels.to(torch.uint8)}.items():
                shape = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
                content = bytes([0, 0, 8, tensor.dim()]) + shape + tensor.numpy().tobytes()
                (raw / f"{part}-{name}-ubyte").write_bytes(content)

    @property
    def root(self) -> str:
        """What ours reads: the official files, or the random ones."""
        return os.path.abspath(os.environ.get("MNIST_ROOT") or "data") if self.real else str(self.folder)

    def fit(self, *words: str, more: Callback | None = None) -> tuple[float, float]:
        """Runs train.py's fit and test on the whole; returns the seconds in fit and the test accuracy."""
        self.runs += 1
        folder = self.folder / "runs" / str(self.runs)
        folder.mkdir(parents=True)
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("train", [*words, *self.words], return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(cfg)
        module, model, trainer = build(cfg)
        if more is not None:
            trainer.callbacks.append(more)  # type: ignore[attr-defined]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Progress):
                callback.live = True
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            seconds = timed(lambda: trainer.fit(model, datamodule=module))
        trainer.test(model, datamodule=module, verbose=False)
        return seconds, float(trainer.callback_metrics["test/acc"])

    def epochs(self, preset: str, yardstick: Yardstick) -> Times:
        alternate = Alternate(yardstick)
        words = (f"experiment={preset}", f"trainer.max_epochs={REPEATS + 2}")
        self.fit(*words, more=alternate)
        yardstick.close()
        return alternate.ours[1 : REPEATS + 1], alternate.theirs[1 : REPEATS + 1]

    def mlp_and_bare_loop(self) -> Times:
        return self.epochs("seed_mlp", Yardstick(mlp_epochs, self.folder, BareLoop))

    def cnn_and_bare_loop(self) -> Times:
        return self.epochs("seed_cnn3_adam", Yardstick(cnn_epochs, self.folder, BareLoop))

    def mlp_and_source(self) -> Times:
        return self.epochs("seed_mlp", Yardstick(mlp_epochs, self.folder, SourceLoop))

    def cnn_and_source(self) -> Times:
        return self.epochs("seed_cnn3_adam", Yardstick(cnn_epochs, self.folder, SourceLoop))

    def fast_and_peer(self) -> Times:
        """The whole of `fit` against the one epoch of the peer's loop."""
        yardstick = Yardstick(peer_runs, self.folder)
        ours, theirs = [], []
        self.accuracies = []
        for seed in range(REPEATS + 1):
            theirs.append(yardstick())
            seconds, accuracy = self.fit("experiment=fast", f"seed={seed}")
            ours.append(seconds)
            self.accuracies.append(accuracy)
        yardstick.close()
        return ours[1:], theirs[1:]

    def deterministic_and_not(self) -> Times:
        """A hundred steps of the default network at a time: epochs apart, the machine's own changes are larger."""
        keep_freed_memory()
        model = CNN(optimizer={"_target_": "torch.optim.Adam", "lr": 0.001, "fused": True})
        optimizer = model.make_optimizer()
        images, labels = data.to_float(self.train[0][:64]), self.train[1][:64].long()

        def steps() -> None:
            for _ in range(100):
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()

        def seconds(deterministic: bool) -> float:
            torch.use_deterministic_algorithms(deterministic, warn_only=True)
            return timed(steps)

        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # as in `build`
        pairs = [(seconds(True), seconds(False)) for _ in range(3 * REPEATS)]
        torch.use_deterministic_algorithms(False)
        return [ours for ours, _ in pairs[1:]], [theirs for _, theirs in pairs[1:]]

    def process_and_import(self) -> Times:
        environment = {**os.environ, "MNIST_ROOT": self.root}
        ours, theirs = [], []
        for number in range(REPEATS + 1):
            words = [
                str(ROOT / "train.py"),
                "experiment=fast",
                *self.words,
                f"hydra.run.dir={self.folder}/process/{number}",
            ]
            theirs.append(timed(partial(_process, ["-c", "import torch, lightning"], environment)))
            ours.append(timed(partial(_process, words, environment)))
        return ours[1:], theirs[1:]

    def logged_and_not(self) -> Times:
        """The whole of a default run, three times."""
        environment = {**os.environ, "MNIST_ROOT": self.root}

        def seconds(*words: str) -> float:
            self.runs += 1
            folder = f"hydra.run.dir={self.folder}/runs/{self.runs}"
            return timed(partial(_process, [str(ROOT / "train.py"), *words, *self.words, folder], environment))

        pairs = [(seconds(), seconds("logger=none")) for _ in range(3)]
        return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]

    def reading(self) -> Times:
        def read() -> None:
            module = data.MNISTDataModule("mnist" if self.real else "kmnist", self.root)
            module.prepare_data()
            module.setup("fit")

        return [timed(read) for _ in range(REPEATS)], []

    def memory(self) -> Times:
        """Megabytes, not seconds."""
        environment = {**os.environ, "MNIST_ROOT": self.root}
        ours, theirs = [], []
        imports = self.folder / "imports.py"
        imports.write_text("import torch, lightning, torchvision")
        for number in range(3):
            words = [str(ROOT / "train.py"), "trainer.max_epochs=1", *self.words]
            words += [f"hydra.run.dir={self.folder}/memory/{number}"]
            theirs.append(_peak_memory([str(imports)], environment))
            ours.append(_peak_memory(words, environment))
        return ours, theirs

    def predict_and_decode(self) -> Times:
        sys.path.insert(0, str(ROOT))
        from predict import read_pictures

        pictures = self.folder / "pictures"
        pictures.mkdir()
        for number, image in enumerate(self.test[0].numpy()):
            Image.fromarray(image).save(pictures / f"{number:05}.png")
        model, ours, theirs = CNN().eval(), [], []
        files = sorted(pictures.iterdir())
        for number in range(REPEATS + 1):
            theirs.append(timed(lambda: [np.asarray(Image.open(file)) for file in files]))
            out = self.folder / "answers" / str(number)
            out.mkdir(parents=True)
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                ours.append(timed(partial(read_pictures, model, str(pictures), out)))
        return ours[1:], theirs[1:]


def _process(words: list[str], environment: dict[str, str]) -> None:
    subprocess.run([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL, check=True)


def _peak_memory(words: list[str], environment: dict[str, str]) -> float:
    """In MB, of a script and its arguments. It reads its own figure: the parent's would count the parent in."""
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__');"
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1])"
    )
    command = [sys.executable, "-c", code, *words]
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return int(ended.stdout.split()[-1]) / 1024


ROWS = {  # what: (the method, the yardstick, how the two are compared, the target)
    "seed_mlp, an epoch": ("mlp_and_bare_loop", "bare tensor loop", "x", "<= 3.0, goal 1.5"),
    "seed_cnn3_adam, an epoch": ("cnn_and_bare_loop", "bare loop as its source", "x", "<= 0.65, goal 0.55"),
    "seed_mlp, an epoch ": ("mlp_and_source", "its source's pipeline", "x", "<= 1/5, goal 1/9"),
    "seed_cnn3_adam, an epoch ": ("cnn_and_source", "its source's pipeline", "x", "<= 1/2.8, goal 1/3.3"),
    "experiment=fast, all of fit": ("fast_and_peer", "the peer's recipe", "x", "<= 0.65, goal 0.35"),
    "default CNN, 100 steps": ("deterministic_and_not", "trainer.deterministic=false", "x", "<= 1.02"),
    "train.py, default run": ("logged_and_not", "logger=none", "x", "<= 1.05"),
    "train.py experiment=fast": ("process_and_import", "import torch, lightning", "+s", "<= +14 s, goal +6 s"),
    "reading the four files": ("reading", "", "s", "<= 0.5 s, goal 0.2 s"),
    "peak memory, default run": ("memory", "import torch, lightning, torchvision", "+MB", "<= +400 MB, goal +200 MB"),
    "predict.py, 10,000 PNGs": ("predict_and_decode", "decoding with Pillow", "x", "<= 2.0, goal 1.2"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mnist_pl.benchmark", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--only", help="the rows whose name holds this")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("mnist_pl").setLevel(logging.ERROR)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for what, (method, yardstick, unit, target) in ROWS.items():
            if arguments.only and arguments.only not in what:
                continue
            print(f"{what} …", file=sys.stderr)
            ours, theirs = getattr(bench, method)()
            results.append(
                {"what": what.strip(), "yardstick": yardstick, "target": target, **compare(ours, theirs, unit)}
            )
        facts: dict[str, Any] = {
            "images": "MNIST" if bench.real else "random",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "threads": torch.get_num_threads(),
            "processor": _processor(),
        }
        if bench.real and hasattr(bench, "accuracies"):
            accuracies = [100 * value for value in bench.accuracies]
            facts["fast_test_acc"] = f"{statistics.fmean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f} %"
            facts["fast_seeds"] = len(accuracies)
    if arguments.json:
        print(json.dumps({**facts, "rows": results}, indent=2))
    else:
        print("\n".join(table(results)) + "\n\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))


def compare(ours: list[float], theirs: list[float], unit: str) -> dict[str, Any]:
    """Medians, and the ratio (or the difference) of each pair: its median and its range."""
    pairs = [
        {"x": a / b, "+s": a - b, "+MB": a - b, "s": a}[unit]
        for a, b in zip(ours, theirs or [1.0] * len(ours), strict=True)
    ]
    return {
        "ours": round(statistics.median(ours), 3),
        "theirs": round(statistics.median(theirs), 3) if theirs else None,
        "unit": "MB" if unit == "+MB" else "s",
        "compared": unit,
        "result": round(statistics.median(pairs), 3),
        "low": round(min(pairs), 3),
        "high": round(max(pairs), 3),
    }


def table(results: list[dict[str, Any]]) -> list[str]:
    """Rows of Markdown."""
    lines = ["| what | ours | yardstick | | ratio or difference | range | target |", "|---|---|---|---|---|---|---|"]
    for row in results:
        form = {"x": "{:.2f} ×", "+s": "+{:.1f} s", "+MB": "+{:.0f} MB", "s": "{:.2f} s"}[row["compared"]]
        spread = f"{form.format(row['low'])} to {form.format(row['high'])}"
        theirs = "" if row["theirs"] is None else f"{row['theirs']:.2f} {row['unit']}"
        lines.append(
            f"| {row['what']} | {row['ours']:.2f} {row['unit']} | {row['yardstick']} | {theirs} | "
            f"{form.format(row['result'])} | {spread} | {row['target']} |"
        )
    return lines


def _processor() -> str:
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        return platform.processor() or "unknown"


if __name__ == "__main__":
    main()
