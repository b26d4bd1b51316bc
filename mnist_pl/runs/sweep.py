"""What a sweep reports at its end: a table of its runs, and which jobs failed."""

import json
import math
import statistics
import sys
import traceback
from collections import defaultdict
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mnist_pl.runs.errors import explain, is_users
from mnist_pl.signals import advise
from mnist_pl.storage import short_path
from mnist_pl.world import is_first

NO_CHOICE = ("seed=", "sweep=", "ckpt_path=", "hydra.")
FAILED = "error.txt"  # in a job's folder: what stopped it; of a job that was refused an existing run's, beside that


class Report(Callback):
    """Lets a sweep continue when a job fails; at its end, one table, the failed jobs, and an exit code that tells.

    A job may have run in another process (with another launcher), so its failure is told by a file in its folder.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        for note in Path(config.hydra.sweep.dir).glob(f"*.{FAILED}"):
            note.unlink()

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.was_there = Path(config.hydra.runtime.output_dir, ".hydra").exists()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if not is_first():  # of the processes of one run
            return
        note = Path(config.hydra.runtime.output_dir, FAILED)
        if job_return.status == JobStatus.COMPLETED:
            note.unlink(missing_ok=True)
        if "wandb" in sys.modules:  # else the next job would be logged as part of this one
            sys.modules["wandb"].finish(exit_code=int(job_return.status != JobStatus.COMPLETED))
        if job_return.status == JobStatus.FAILED and config.hydra.mode == RunMode.MULTIRUN:
            error = _error_of(job_return)
            if not is_users(error):
                traceback.print_exception(error)
            reason = f"{' '.join(config.hydra.overrides.task)}: {explain(error)}"
            print(f"error: job {config.hydra.job.num} failed: {reason}", file=sys.stderr)
            if self.was_there:  # nothing changes a run but that run
                note = Path(config.hydra.sweep.dir, f"{config.hydra.job.num}.{FAILED}")
            note.write_text(reason + "\n", encoding="utf-8", errors="backslashreplace")
            # Hydra would end the sweep with the first failure, after the last job but before the table.
            job_return.status, job_return.return_value = JobStatus.COMPLETED, math.nan
        if config.hydra.mode == RunMode.MULTIRUN:
            advise(f"the jobs before are finished, in {short_path(config.hydra.sweep.dir)}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        runs, failed = read(folder), sorted([*folder.glob(f"*.{FAILED}"), *folder.glob(f"**/{FAILED}")])
        if runs:
            print("\n" + "\n".join(table(runs)))
        print(f"\nThe runs are in {folder}")
        if failed:  # not an Exception, which Hydra would turn into a warning
            reasons = {_job_of(note): note.read_text(encoding="utf-8").strip() for note in failed}
            raise SystemExit("\n".join(f"error: {job} failed: {reason}" for job, reason in reasons.items()))


def _job_of(note: Path) -> Path:
    return note.with_name(note.name.removesuffix(f".{FAILED}")) if note.name != FAILED else note.parent


def _error_of(job: JobReturn) -> Exception:
    try:
        with redirect_stderr(StringIO()):  # where Hydra would repeat the overrides
            _ = job.return_value  # raises what the job raised
    except Exception as error:
        return error
    return RuntimeError("it ended without a result")


def read(folder: Path) -> list[dict[str, Any]]:
    """The summaries below a folder, each with its `choice`."""
    paths = sorted(folder.glob("**/summary.json"), key=lambda path: path.stat().st_mtime)
    return [{**json.loads(path.read_text(encoding="utf-8")), "choice": choice(path.parent)} for path in paths]


def choice(run: Path) -> str:
    """What a run's command line overrode, but for the seed."""
    path = run / ".hydra" / "overrides.yaml"
    overrides = [str(override) for override in OmegaConf.load(path)] if path.exists() else []
    return " ".join(override for override in overrides if not override.startswith(NO_CHOICE)) or "default"


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Rows of Markdown: mean ± standard deviation over the seeds of each choice."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["choice"]].append(run)
    columns = {
        "choice": lambda group: group[0]["choice"],
        "seeds": lambda group: str(len(group)),
        "epochs": lambda group: str(group[0]["epochs"]),
        "val acc %": lambda group: _spread(group, "val/acc", 100, 2),
        "claimed %": lambda group: "–" if group[0].get("claim") is None else f"{group[0]['claim']:g}",
        "test acc %": lambda group: _spread(group, "test/acc", 100, 2),
        "test loss": lambda group: _spread(group, "test/loss", 1, 4),
        "seconds in fit": lambda group: _spread(group, "train_seconds", 1, 1),
    }
    if all(run.get("claim") is None for run in runs):
        del columns["claimed %"]
    if all(run["val/acc"] == run["test/acc"] for run in runs):  # presets that validate on the test images
        del columns["val acc %"]
    rows = [list(columns), *([cell(group) for cell in columns.values()] for group in groups.values())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def _spread(group: list[dict[str, Any]], name: str, scale: float, digits: int) -> str:
    values = [run[name] * scale for run in group if run[name] is not None]
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean
