"""What accuracy each preset gives, and at what cost: from runs that were scored, and in a file that ships with them."""

import csv
import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import inf, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mnist_pl.runs.config import CONF
from mnist_pl.runs.sweep import Job, jobs, spread
from mnist_pl.storage import csv_text, markdown, write

if TYPE_CHECKING:
    from mnist_pl.models import DigitClassifier

KEPT = Path(__file__).with_name("front.csv")
# Of a command line: what changes no result, and what a run is told by anyway.
SILENT = ("seed", "threads", "logger", "callbacks.answers", "fit", "ckpt_path", "trainer.accelerator", "data.data_dir")
YARDSTICK = "seed_cnn3_adam"  # as a bare loop: machines differ, and so do their seconds
MINUTE = 4  # epochs of it
MNISTS = 10_000  # test images, where an older summary.json does not say how many there were
REFERENCES = ("seed_", "peer_", "pytorch_")  # what the names of other people's systems begin with
SURE = 0.95
LONGEST = 40  # letters of a name in the picture
NOTE = (
    "operations: millions of multiply-adds for an image. test acc: mean ± standard deviation over n seeds. wrong: of",
    "10,000 test images, with the 95 % interval of the mean (Student's t; of one seed, Wilson's of its images). ECE:",
    "expected calibration error. seconds: in fit, of an ensemble those of all its members.",
)
A_MINUTE = f"A minute is {MINUTE} epochs of {YARDSTICK} as a bare loop on the same machine."


class Run(NamedTuple):
    """A run that was scored; a row of KEPT."""

    preset: str
    seed: int
    images: int
    wrong: int
    loss: float
    calibration_error: float | None
    seconds: float
    minutes: float | None  # of MINUTE
    parameters: int
    operations: int | None  # multiply-adds of one image
    machine: str
    commit: str | None

    @property
    def accuracy(self) -> float:
        return 1 - self.wrong / self.images


class Preset(NamedTuple):
    """Runs that differ in nothing but their seed; none of a preset without figures."""

    name: str
    parameters: int
    operations: int | None
    runs: list[Run]

    @property
    def is_reference(self) -> bool:
        return self.name.startswith(REFERENCES)

    @property
    def accuracy(self) -> float:
        return statistics.fmean(run.accuracy for run in self.runs)

    @property
    def seconds(self) -> float:
        return statistics.fmean(run.seconds for run in self.runs)

    @property
    def minutes(self) -> float | None:
        found = [run.minutes for run in self.runs if run.minutes is not None]
        return statistics.fmean(found) if found else None

    def interval(self) -> tuple[float, float]:
        """Of the accuracy, at 95 %: the mean's by Student's t; of one seed, that of its images by Wilson."""
        from scipy.special import ndtri, stdtrit

        n = len(self.runs)
        if n > 1:
            half = stdtrit(n - 1, (1 + SURE) / 2) * statistics.stdev(run.accuracy for run in self.runs) / sqrt(n)
            return max(0.0, self.accuracy - half), min(1.0, self.accuracy + half)
        from mnist_pl.figures.plots import wilson

        return wilson(self.accuracy, self.runs[0].images, ndtri((1 + SURE) / 2))


def names() -> list[str]:
    """The presets of conf/experiment."""
    return sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def scored(folders: Iterable[Path]) -> list[Run]:
    """The finished runs below the folders, of equal words the last. Raises ValueError where a folder has none."""
    found: dict[tuple[tuple[str, str], ...], Job] = {}
    for folder in folders:
        done = [job for job in jobs(folder) if job.facts.get("test/acc") is not None]
        if not done:
            raise ValueError(f"no run below {folder} has a summary.json")
        found |= {tuple(sorted(job.choice.items())): job for job in done}
    return list(map(_run, found.values()))


def _run(job: Job) -> Run:
    facts, members = job.facts, _members(job)
    images = facts.get("test_images") or MNISTS
    return Run(
        _name(job),
        facts["seed"],
        images,
        round((1 - facts["test/acc"]) * images),
        facts["test/loss"],
        facts.get("test/calibration_error"),
        facts["train_seconds"] or sum(member.facts["train_seconds"] or 0 for member in members),
        None,
        facts["parameters"],
        _operations(job),
        facts["device"],
        facts["git_commit"],
    )


def _members(job: Job) -> list[Job]:
    """The runs whose networks answered together; none where one is gone."""
    paths = [Path(name) for name in job.facts.get("members") or []]
    found = [jobs(path.parent.parent if path.suffix == ".ckpt" else path) for path in paths]
    return [runs[0] for runs in found] if all(len(runs) == 1 and runs[0].state == "done" for runs in found) else []


def _name(job: Job) -> str:
    """The preset, and what else its command line says that matters; of an ensemble, how many of which."""
    if members := _members(job):
        return " + ".join(f"{count} × {name}" for name, count in Counter(map(_name, members)).items())
    words = {key: value for key, value in job.choice.items() if not key.startswith("hydra") and key not in SILENT}
    if words.get("callbacks") == "minimal":
        del words["callbacks"]
    preset = words.pop("experiment", None)
    said = [] if preset is None else [preset]
    said += [f"{key}={value}" for key, value in words.items()]
    return " ".join(said) or job.facts["model"]


def composed(name: str) -> DictConfig:
    """A preset's settings."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"experiment={name}"])


def sketch(name: str) -> "DigitClassifier":
    """A preset's network, without numbers."""
    import torch

    settings: Any = OmegaConf.to_container(composed(name).model, resolve=True)
    with torch.device("meta"):
        return instantiate(settings, _recursive_=False, _convert_="all")


def operations(model: "DigitClassifier") -> int:
    """Multiply-adds of its answer to one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.zeros(1, 1, 28, 28, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    return counter.get_total_flops() // 2


@cache
def _of_preset(name: str) -> int:
    return operations(sketch(name))


def _operations(job: Job) -> int | None:
    """Of its preset, or the checkpoint that was tested; None where that is gone, or of a class from elsewhere."""
    from mnist_pl.reading.checkpoint import load_model

    if members := _members(job):
        counts = [_operations(member) for member in members]
        return None if None in counts else sum(count or 0 for count in counts)
    if (name := _name(job)) in names():
        return _of_preset(name)
    paths = [Path(job.facts.get("best_checkpoint") or ""), job.folder / "checkpoints" / "best.ckpt"]
    try:
        return next((operations(load_model(path)[0]) for path in paths if path.is_file()), None)
    except ValueError:
        return None


def keep(runs: Sequence[Run], minute: Callable[[int], float], processor: str) -> None:
    """Writes KEPT, where each of their presets loses what it had. `minute` is seconds, given the number of threads."""
    minutes: dict[int, float] = {}
    added: list[Run] = []
    for run in runs:
        threads = re.fullmatch(r"cpu, (\d+) threads", run.machine)
        if threads is not None:
            count = int(threads[1])
            minutes[count] = minutes.get(count) or minute(count)
            run = run._replace(minutes=round(run.seconds / minutes[count], 4))
        added.append(run._replace(machine=f"{processor}, {run.machine}"))
    new = {run.preset for run in added}
    rows = sorted([*(run for run in kept() if run.preset not in new), *added], key=lambda run: (run.preset, run.seed))
    write(KEPT, csv_text([Run._fields, *rows], "\n").encode())


def kept() -> list[Run]:
    """What ships with the project."""
    if not KEPT.exists():
        return []
    kinds: dict[str, Any] = dict.fromkeys(("preset", "machine", "commit"), str)
    kinds |= dict.fromkeys(("loss", "calibration_error", "seconds", "minutes"), float)
    with open(KEPT, newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    rows: list[dict[str, Any]] = [
        {key: kinds.get(key, int)(text) if text else None for key, text in row.items()} for row in table
    ]
    return [Run(**row) for row in rows]


def presets(runs: Sequence[Run], named: Iterable[str] = ()) -> list[Preset]:
    """The runs by preset, the cheapest first; then those of `named` that have none."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.preset, []).append(run)
    found = [Preset(name, group[-1].parameters, group[-1].operations, group) for name, group in groups.items()]
    timed = all(run.minutes for run in runs)
    found.sort(key=lambda one: (one.minutes if timed else one.seconds) or inf)  # what was only tested tells no cost
    for name in named:
        if name not in groups:
            model = sketch(name)
            count = sum(parameter.numel() for parameter in model.parameters())
            found.append(Preset(name, count, operations(model), []))
    return found


def table(found: Sequence[Preset]) -> list[str]:
    """Lines of Markdown, and what they mean."""
    rows = [["preset", "parameters", "operations", "n", "test acc %", "wrong (95 %)", "ECE %", "seconds", "minutes"]]
    for preset in found:
        count = "–" if preset.operations is None else f"{preset.operations / 1e6:.2f}"
        rows.append([preset.name, f"{preset.parameters:,}", count, *(_scores(preset) if preset.runs else ["–"] * 6)])
    timed = any(preset.minutes is not None for preset in found)
    return [*markdown([row if timed else row[:-1] for row in rows]), "", *(NOTE + (A_MINUTE,) * timed)]


def _scores(preset: Preset) -> list[str]:
    accuracies = [run.accuracy for run in preset.runs]
    high, low = ((1 - bound) * 10_000 for bound in preset.interval())
    wrong = (1 - preset.accuracy) * 10_000
    digits = 1 if wrong < 1000 else 0
    errors = [run.calibration_error for run in preset.runs if run.calibration_error is not None]
    return [
        str(len(accuracies)),
        spread(accuracies, 100, 2),
        f"{wrong:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})",
        f"{statistics.fmean(errors):.2%}"[:-1] if errors else "–",
        f"{preset.seconds:,.1f}" if preset.seconds else "–",
        f"{preset.minutes:.2f}" if preset.minutes is not None else "–",
    ]


def draw(found: Sequence[Preset], path: Path) -> bool:
    """False where there is nothing to be seen."""
    from mnist_pl.figures.front import System, front
    from mnist_pl.figures.plots import save

    shown = [preset for preset in found if preset.runs and preset.seconds]
    if not shown:
        return False
    costs, minute = comparable([preset.runs for preset in shown])
    systems = [
        System(
            textwrap.shorten(preset.name, LONGEST, placeholder=" …"),
            cost,
            [run.accuracy for run in preset.runs],
            preset.interval(),
            preset.is_reference,
        )
        for preset, cost in zip(shown, costs, strict=True)
    ]
    save(front(systems, minute), path)
    return True


def comparable(groups: Sequence[Sequence[Run]]) -> tuple[list[list[float]], float | None]:
    """The seconds of each run, and those of a minute: of several machines, as on that of most of the runs. As they are,
    and None, where some run is not counted in minutes."""
    ratios = [run.seconds / run.minutes for runs in groups for run in runs if run.minutes]
    if len(ratios) < sum(map(len, groups)):
        return [[run.seconds for run in runs] for runs in groups], None
    minute = statistics.median(ratios)
    return [[(run.minutes or 0) * minute for run in runs] for runs in groups], minute
