"""What a sweep tells: a line for each job, and at its end a ranked table and a picture of them all, in its folder."""

import json
import logging
import math
import statistics
import sys
import textwrap
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mnist_pl.runs import plan, side_by_side
from mnist_pl.runs.errors import explain, is_users
from mnist_pl.runs.folders import existing_checkpoint
from mnist_pl.signals import advise, end_on_signals
from mnist_pl.storage import as_word, csv_text, is_locked, markdown, short_path, write
from mnist_pl.world import is_first

NO_CHOICE = ("seed=", "sweep=", "ckpt_path=", "hydra.")
FAILED = "error.txt"  # in a sweep's folder, after a job's number: what stopped it
MOST_COLUMNS = 5  # of what was varied, among runs that are no sweep's


class Job(NamedTuple):
    """A run of a sweep, or one found in a folder of runs."""

    choice: dict[str, str]  # what its command line overrides
    folder: Path
    state: str  # done, failed, running, stopped or waiting
    facts: dict[str, Any]  # of its summary.json; or the `error`


class Row(NamedTuple):
    """Jobs that differ in nothing but their seed."""

    choice: dict[str, str]
    jobs: list[Job]

    def values(self, name: str) -> list[float]:
        return [job.facts[name] for job in self.jobs if job.facts.get(name) is not None]

    def seeds(self) -> int:
        return len(self.values("test/acc") or self.values("val/acc"))

    def mean(self, name: str) -> float:
        values = self.values(name)
        return statistics.fmean(values) if values else -math.inf

    def state(self) -> str:
        counts = Counter(job.state for job in self.jobs)
        return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {state}" for state, n in counts.items())


class Report(Callback):
    """Has a sweep continue when a job fails, tells how far it is, and ends it with its results.

    `epochs`: each job shows what a single run does, with its table of epochs.
    """

    def __init__(self, epochs: bool = False) -> None:
        self.epochs = epochs

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        side_by_side.start(config)
        for note in folder.glob(f"*.{FAILED}"):
            note.unlink()
        plan.keep(config)
        advise(f"continue with {plan.again(folder)}")
        for name in ("hydra._internal.core_plugins", "hydra_plugins"):  # whose lists of all jobs are long
            logging.getLogger(name).setLevel(logging.WARNING)
        count, done = len(plan.read(folder).jobs), len(_ended(folder))
        before = f", of which {done} have ended before" if done else ""
        print(f"a sweep of {count or 'some'} jobs{before}, in {short_path(folder)}", flush=True)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN and side_by_side.is_worker():
            side_by_side.set_up_worker(Path(config.hydra.sweep.dir))
        elif config.hydra.mode == RunMode.MULTIRUN and not self.epochs:
            side_by_side.quieten(logging.WARNING)  # the job's log file gets all

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if not is_first():  # of the processes of one run
            return
        if "wandb" in sys.modules:  # else the next job would be logged as part of this one
            sys.modules["wandb"].finish(exit_code=int(job_return.status != JobStatus.COMPLETED))
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        folder, number = Path(config.hydra.sweep.dir), config.hydra.job.num
        if job_return.status == JobStatus.FAILED:
            error = _error_of(job_return)
            if not is_users(error):
                traceback.print_exception(error)
            note = folder / f"{number}.{FAILED}"
            note.write_text(explain(error) + "\n", encoding="utf-8", errors="backslashreplace")
            # Hydra would end the sweep with the first failure, after the last job but before the table.
            job_return.status, job_return.return_value = JobStatus.COMPLETED, math.nan
        end_on_signals()  # instead of what a training that failed has left
        line = job_line(folder, number, Path(config.hydra.runtime.output_dir))
        if line is not None:
            print(line, flush=True)
        advise(f"continue with {plan.again(folder)}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        found = jobs(folder)
        print("\n" + "\n".join([*report(folder, found), f"all in    {short_path(folder)}"]))
        failed = failures(found)
        if failed:  # not an Exception, which Hydra would turn into a warning
            raise SystemExit("\n".join(f"error: {short_path(folder)}/{line}" for line in failed))


def _error_of(job: JobReturn) -> Exception:
    try:
        with redirect_stderr(StringIO()):  # where Hydra would repeat the overrides
            _ = job.return_value  # raises what the job raised
    except Exception as error:
        return error
    return RuntimeError("it ended without a result")


def _ended(folder: Path) -> list[Path]:
    """The file that each job which has ended has left."""
    files = [(run / "summary.json", note) for _, run, note in _places(folder)]
    return [file for pair in files for file in [next((file for file in pair if file.exists()), None)] if file]


def job_line(folder: Path, number: int, run: Path) -> str | None:
    """What a job gave, how far the sweep is, and how long the others will take; None of one that had ended before."""
    began, ended = (folder / plan.COMPOSED).stat().st_mtime, _ended(folder)
    choices = [_choice(words) for words in plan.read(folder).jobs]
    job = _job(choices[number] if choices else _overrides(run), run, folder / f"{number}.{FAILED}")
    if job.state == "done" and (job.folder / "summary.json").stat().st_mtime < began:
        return None
    keys = [*varied(choices), "seed"]
    width = min(60, max((len(_words(choice, keys)) for choice in choices), default=0))
    parts = [f"{len(ended)}/{len(choices) or '?'}".rjust(7), _words(job.choice, keys).ljust(width)]
    if job.state == "failed":
        parts.append(f"failed: {textwrap.shorten(job.facts['error'], 80, placeholder=' …')}")
    for name in ("val", "test"):
        if job.facts.get(f"{name}/acc") is not None:
            parts.append(f"{name} {job.facts[f'{name}/acc']:.2%}")
    if job.facts.get("train_seconds") is not None:
        parts.append(f"{job.facts['train_seconds']:.1f} s")
    now = sum(path.stat().st_mtime >= began for path in ended)
    left = len(choices) - len(ended)
    if left > 0 and now:
        parts.append(f"about {_duration((time.time() - began) / now * left)} left")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    units = ((3600 * 48, 3600 * 24, "d"), (3600 * 2, 3600, "h"), (90, 60, "min"), (0, 1, "s"))
    return next(f"{math.ceil(seconds / unit)} {name}" for least, unit, name in units if seconds >= least)


def _words(choice: dict[str, str], keys: Sequence[str]) -> str:
    return " ".join(f"{key}={choice[key]}" for key in keys if key in choice)


def _choice(words: Sequence[str]) -> dict[str, str]:
    pairs = (str(word).lstrip("+").partition("=") for word in words)
    return {key: value for key, _, value in pairs if not f"{key}=".startswith(("sweep=", "hydra."))}


def jobs(folder: Path) -> list[Job]:
    """The jobs of a sweep, in its order; of any other folder, those of the sweeps below it, and the finished runs."""
    if plan.is_sweep(folder):
        return _jobs_of_sweep(folder)
    sweeps = sorted({path.parent for name in (plan.PLAN, plan.COMPOSED) for path in folder.glob(f"**/{name}")})
    runs = sorted(folder.glob("**/summary.json"), key=lambda path: path.stat().st_mtime)
    alone = [path.parent for path in runs if not any(path.is_relative_to(sweep) for sweep in sweeps)]
    return [job for sweep in sweeps for job in _jobs_of_sweep(sweep)] + [
        _job(_overrides(run), run, run / FAILED) for run in alone
    ]


def _jobs_of_sweep(sweep: Path) -> list[Job]:
    return [_job(choice, run, note) for choice, run, note in _places(sweep)]


def _places(sweep: Path) -> Iterator[tuple[dict[str, str], Path, Path]]:
    """Of each job: what its command line overrides, its folder, and where it is told that it has failed."""
    planned = plan.read(sweep)
    runs: dict[tuple[tuple[str, str], ...], Path] = {}
    if not planned.jobs or planned.subdir != plan.SUBDIR:
        begun = sorted(path.parent.parent for path in sweep.glob("**/.hydra/overrides.yaml"))
        runs = {tuple(sorted(_overrides(run).items())): run for run in begun}
    for number, words in enumerate(planned.jobs):
        choice, note = _choice(words), sweep / f"{number}.{FAILED}"
        yield choice, runs.get(tuple(sorted(choice.items())), sweep / str(number)), note
    if not planned.jobs:
        yield from ((_overrides(run), run, run / FAILED) for run in runs.values())


def _overrides(run: Path) -> dict[str, str]:
    path = run / ".hydra" / "overrides.yaml"
    overrides: Any = OmegaConf.load(path) if path.exists() else []
    return _choice(overrides)


def _job(choice: dict[str, str], run: Path, note: Path) -> Job:
    if (run / "summary.json").exists():  # it may have been resumed with other settings
        facts = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        return Job(_overrides(run) or choice, run, "done", facts)
    if note.exists():
        return Job(choice, run, "failed", {"error": note.read_text(encoding="utf-8").strip()})
    if is_locked(run):
        return Job(choice, run, "running", {})
    begun = (run / ".hydra").exists() or existing_checkpoint(run) is not None
    return Job(choice, run, "stopped" if begun else "waiting", {})


def choice(run: Path) -> str:
    """What a run's command line overrode, but for the seed."""
    words = (f"{key}={value}" for key, value in _overrides(run).items())
    return " ".join(word for word in words if not word.startswith(NO_CHOICE)) or "default"


def varied(choices: Sequence[dict[str, str]]) -> list[str]:
    """The settings, but for the seed, in which they differ, in the order of the command line."""
    keys = dict.fromkeys(key for choice in choices for key in choice if key != "seed")
    return [key for key in keys if len({choice.get(key) for choice in choices}) > 1]


def rank(found: Sequence[Job]) -> tuple[list[Row], list[str]]:
    """The jobs by what was varied, best validation accuracy first; and what was varied.

    Of several jobs with one choice and seed, the last counts. Nothing is ranked by the test images.
    """
    keys = differ = varied([job.choice for job in found])
    groups: dict[tuple[str | None, ...], dict[str | None, Job]] = {}
    for job in found:
        groups.setdefault(tuple(job.choice.get(key) for key in keys), {})[job.choice.get("seed")] = job
    if len(keys) > MOST_COLUMNS:
        keys = ["choice"]
    rows = []
    for seeds in groups.values():
        any_job = next(iter(seeds.values()))
        words = [f"{key}={value}" for key, value in any_job.choice.items() if key in differ]
        chosen = {"choice": " ".join(words)} if keys == ["choice"] else {k: any_job.choice.get(k, "–") for k in keys}
        rows.append(Row(chosen, list(seeds.values())))
    if selects(found):
        rows.sort(key=lambda row: -row.mean("val/acc"))
    return rows, keys


def selects(found: Sequence[Job]) -> bool:
    """Whether there are validation images to choose by, which are not the test images."""
    scored = [job.facts for job in found if job.facts.get("val/acc") is not None]
    return any(facts[f"val/{name}"] != facts[f"test/{name}"] for facts in scored for name in ("acc", "loss"))


def table(rows: Sequence[Row], keys: Sequence[str]) -> list[str]:
    """Lines of Markdown: mean ± standard deviation over the seeds of each choice."""
    columns: dict[str, list[str]] = {key: [row.choice[key] for row in rows] for key in keys}
    columns["seeds"] = [str(row.seeds()) for row in rows]
    columns["val/acc %"] = [spread(row.values("val/acc"), 100, 2) for row in rows]
    if any(row.values("claim") for row in rows):
        columns["claimed %"] = [f"{row.mean('claim'):g}" if row.values("claim") else "–" for row in rows]
    columns["test/acc %"] = [spread(row.values("test/acc"), 100, 2) for row in rows]
    columns["seconds"] = [spread(row.values("train_seconds"), 1, 1) for row in rows]
    columns["state"] = [row.state() for row in rows]
    return markdown([list(columns), *map(list, zip(*columns.values(), strict=True))])


def spread(values: Sequence[float], scale: float, digits: int) -> str:
    if not values:
        return "–"
    mean = f"{statistics.fmean(values) * scale:.{digits}f}"
    return f"{mean} ± {statistics.stdev(values) * scale:.{digits}f}" if len(values) > 1 else mean


def as_csv(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """The same for programs: accuracies from 0 to 1, and `_sd`, the standard deviation over the seeds."""
    scores = ("val/acc", "val/loss", "test/acc", "test/loss", "train_seconds")
    names = [name for score in scores for name in (score, f"{score}_sd")]
    table: list[list[Any]] = [[*keys, "seeds", *names, "state"]]
    for row in rows:
        cells: list[Any] = []
        for score in scores:
            values = row.values(score)
            cells += [round(statistics.fmean(values), 6) if values else "", ""]
            cells[-1] = round(statistics.stdev(values), 6) if len(values) > 1 else ""
        table.append([*row.choice.values(), row.seeds(), *cells, row.state()])
    return csv_text(table)


def report(folder: Path, found: Sequence[Job]) -> list[str]:
    """Lines for the terminal; results.md, results.csv and results.png in a sweep's folder."""
    rows, keys = rank(found)
    lines = table(rows, keys)
    done = [row for row in rows if row.seeds()]
    by = "val/acc" if selects(found) else "test/acc"
    verdict, after = [], []
    if done and by == "val/acc":
        best = max(done[0].jobs, key=lambda job: job.facts.get("val/acc") or -math.inf)
        words = " ".join(f"{key}={value}" for key, value in done[0].choice.items())
        verdict = [f"best      by validation accuracy: {words}"] * bool(words)
        after.append(f"predict   python predict.py {as_word('ckpt_path', best.folder)}")
    elif done:
        verdict = ["best      none is named: there are no validation images to choose by, only the test images"]
    if plan.is_sweep(folder):
        failed = [f"- {line}" for line in failures(found)]
        text = [f"# Sweep {folder.name}", "", *lines, "", *verdict, *[""] * bool(failed), *failed]
        try:
            write(folder / "results.md", ("\n".join(text).strip() + "\n").encode(errors="backslashreplace"))
            write(folder / "results.csv", as_csv(rows, keys).encode(errors="backslashreplace"))
            if done:
                draw(folder, done, keys, by)
        except OSError as error:  # somebody else's folder, or a full disk
            after.append(f"not kept  {error}")
    return [*lines, "", *verdict, *after]


def draw(folder: Path, rows: Sequence[Row], keys: Sequence[str], by: str) -> None:
    from mnist_pl.figures.plots import save
    from mnist_pl.figures.results import of_sweep

    images = "validation" if by == "val/acc" else "test"
    several = any(len(row.values(by)) > 1 for row in rows)
    title = f"{images} accuracy" + ", mean and standard deviation over seeds" * several
    scored = [(row.choice, row.values(by)) for row in rows if row.values(by)]
    save(of_sweep(scored, keys, title), folder / "results.png")


def failures(found: Sequence[Job]) -> list[str]:
    """A line for each job that failed: the name of its folder, what was its own, and the reason."""
    keys = [*varied([job.choice for job in found]), "seed"]
    named = [(job.folder.name, job) for job in found if job.state == "failed"]
    return [f"{name} ({_words(job.choice, keys)}) failed: {job.facts['error']}" for name, job in named]
