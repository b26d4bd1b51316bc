"""SLURM: each job of a sweep is one of its jobs; what it warns or preempts saves, is queued again, and goes on exactly.

Buys: `hydra/launcher=slurm`, and scripts for `sbatch` that outlive their time limit without a word about it.
Without it: delete conf/hydra/launcher/slurm.yaml, and the lines that name this module in train.py, resume.py, sweep.py
and build.py.
"""

import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from mnist_pl.runs.errors import set_up_process
from mnist_pl.runs.folders import RUNS
from mnist_pl.runs.processes import is_first
from mnist_pl.runs.sweep import FAILED
from mnist_pl.runs.words import key_of, split
from mnist_pl.signals import advise, arrange, end_on_signals, leave_with
from mnist_pl.storage import as_typed, as_word, one_line, quoted, read_value, short_path, write

log = logging.getLogger(__name__)

NAME = "hydra_plugins.mnist_pl.Slurm"  # for conf/hydra/launcher/slurm.yaml; Hydra wants this beginning
RECORD = ".slurm.json"  # in the folder of a run or a sweep: the SLURM job that it was begun in, and by which words
WARNINGS = ("SIGUSR1", "SIGUSR2")  # sbatch --signal=USR1@60, and what submitit asks for
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")
ENDED += ("REVOKED", "TIMEOUT")  # states of a job that will not run again
ASK_EVERY = 5.0  # seconds; one question for all jobs
STARTED = time.time()
ROOT = Path(__file__).parents[2]  # jobs are to run this code, whatever else is installed

_typed: list[str] | None = None  # the words of this program, which is not a job of a sweep


def set_up_job() -> None:
    """In a SLURM job: as many threads as it has processors, and what SLURM warns or preempts is queued again."""
    if job_here() is None:
        return
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
        os.environ.setdefault("OMP_NUM_THREADS", cpus)  # without task/affinity PyTorch would take the whole node
    arrange(_queue_again)


def job_here() -> str | None:
    """The SLURM job that this process belongs to, as `45`, or `45_3` of an array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def _queue_again(number: int) -> str | None:
    """What is told of a signal, where this process's job is to be queued again; that is done once the process ends.

    SIGTERM is also how `scancel` ends a job, and a person a process: then it stays ended.
    """
    job = job_here()
    facts = dict(word.partition("=")[::2] for word in _ask("scontrol", "--oneliner", "show", "job", str(job)).split())
    preempted = facts.get("PreemptTime", "None") not in ("None", "N/A")
    if not is_first() or facts.get("JobState") != "RUNNING" or facts.get("BatchFlag") != "1":
        return None
    if not preempted and signal.Signals(number).name not in WARNINGS:
        return None
    if facts.get("Requeue") != "1":
        log.warning("SLURM job %s is not queued again: it was submitted without --requeue", job)
        return None
    if not preempted and not _is_further():
        log.warning("SLURM job %s is not queued again: it has not trained a step in the time that it had", job)
        return None
    leave_with(partial(_ask, "scontrol", "requeue", str(job)))
    return f"SLURM job {job} is queued again, to go on there"


def _is_further() -> bool:
    """Whether this process has trained anything; else its job would be queued again for ever."""
    if not HydraConfig.initialized():
        return False
    hydra = HydraConfig.get()
    files = [Path(hydra.runtime.output_dir, "checkpoints", "last.ckpt")]
    if hydra.mode == RunMode.MULTIRUN:
        files += Path(hydra.sweep.dir).glob("*/summary.json")
    return any(file.stat().st_mtime > STARTED for file in files if file.exists())


def _ask(*words: str) -> str:
    """The output of one of SLURM's commands; nothing, and a line in the log, where it fails."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s: %s", " ".join(words), one_line(getattr(error, "stderr", None) or error))
        return ""


def go_on(arguments: list[str]) -> list[str]:
    """The arguments that resume what the same ones have begun in this SLURM job, if that was queued again since."""
    global _typed
    _typed = arguments
    if not int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        return arguments
    flags, words = split(arguments)
    named = [str(read_value(w.partition("=")[2])) for w in words if key_of(w) in ("hydra.run.dir", "hydra.sweep.dir")]
    places = [*map(as_typed, named), *(file.parent for runs in RUNS for file in as_typed(runs).glob(f"**/{RECORD}"))]
    records = [Path(place, RECORD) for place in places if Path(place, RECORD).is_file()]
    for record in sorted(records, key=lambda file: file.stat().st_mtime, reverse=True):
        begun = json.loads(record.read_text(encoding="utf-8"))
        if (begun["job"], begun["words"]) == (job_here(), arguments):
            return [flag for flag in flags if flag not in ("-m", "--multirun")] + begun["again"]
    return arguments


def note(folder: str | os.PathLike[str], named: list[str]) -> None:
    """Writes into the folder of a run or a sweep how it is resumed, if this SLURM job should be queued again."""
    if job_here() is not None and _typed is not None:
        again = [f"resume={quoted(Path(folder).absolute())}", *named]
        record = {"job": job_here(), "words": _typed, "again": again}
        write(Path(folder, RECORD), (json.dumps(record, indent=2) + "\n").encode())


class Slurm(Launcher):
    """hydra-submitit-launcher's, except that a job that is lost is a failed job of the sweep: the others are waited for.

    And that needs no accounting (`sacct`), which small clusters do not keep.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = {name: _plain(value) for name, value in settings.items() if value is not None}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if find_spec("hydra_plugins.hydra_submitit_launcher") is None:
            raise ValueError("hydra/launcher=slurm: needs hydra-submitit-launcher; pip install -e '.[slurm]'")
        if shutil.which("sbatch") is None:
            raise ValueError("hydra/launcher=slurm: there is no sbatch here; run this on a node of the cluster")
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

        self.config, self.loader = config, hydra_context.config_loader
        self.run = SlurmLauncher()
        self.run.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """One array of SLURM jobs, in the order of `job_overrides`; returns when all have ended.

        Raises:
            ValueError: submitit or sbatch refuses a setting.
        """
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError

        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        settings = dict(self.settings)
        common = BaseQueueConf.__dataclass_fields__  # the others are SLURM's alone
        calls = [
            (list(overrides), "hydra.sweep.dir", number, str(number), Singleton.get_state())
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        try:
            executor = AutoExecutor(settings.pop("submitit_folder"), cluster="slurm")
            executor.update_parameters(**{key if key in common else f"slurm_{key}": settings[key] for key in settings})
            with redirect_stderr(StringIO()):  # where submitit repeats what sbatch says
                submitted = executor.map_array(partial(_work, self.run), *zip(*calls, strict=True))
        except (AssertionError, NameError, FailedJobError) as error:
            raise ValueError(f"hydra.launcher: {one_line(error)}") from error
        array = submitted[0].job_id.partition("_")[0]
        log.info("%d jobs are SLURM's, as %s; `scancel %s` ends them", len(submitted), array, array)
        advise(f"the jobs go on in SLURM, as {array}; {as_word('resume', self.config.hydra.sweep.dir)} gathers them")
        jobs = dict(zip(range(initial_job_idx, initial_job_idx + len(submitted)), submitted, strict=True))
        results: dict[int, JobReturn] = {}
        ended: dict[str, str] = {}
        asked = time.monotonic()
        while len(results) < len(jobs):
            time.sleep(0.2)
            for number, job in list(jobs.items()):
                if number not in results and job.paths.result_pickle.exists():
                    results[number] = self._result(job, number, job_overrides[number - initial_job_idx])
            if time.monotonic() - asked > ASK_EVERY:
                # What was so twice, for a result may come late through a network's file system.
                before, ended, asked = ended, _ended([job.job_id for job in submitted]), time.monotonic()
                for number, job in jobs.items():
                    if number not in results and job.job_id in before and job.job_id in ended:
                        words = job_overrides[number - initial_job_idx]
                        results[number] = self._lost(job, number, words, f"ended as {ended[job.job_id]}")
        return [results[number] for number in jobs]

    def _result(self, job: Any, number: int, words: Sequence[str]) -> JobReturn:
        from submitit.core.utils import UncompletedJobError

        try:
            return job.task(0).result()
        except UncompletedJobError as error:
            trace = re.split(r"\n-{22}\n", str(error))[1:2] or [str(error)]
            return self._lost(job, number, words, f"failed: {trace[0].strip().splitlines()[-1]}")

    def _lost(self, job: Any, number: int, words: Sequence[str], how: str) -> JobReturn:
        """A failed job, told as the report of the sweep expects it."""
        config = self.loader.load_sweep_config(self.config, list(words))
        with open_dict(config.hydra.job):
            config.hydra.job.num, config.hydra.job.id = number, job.job_id
        folder = Path(config.hydra.sweep.dir, str(config.hydra.sweep.subdir))
        folder.mkdir(parents=True, exist_ok=True)
        reason = f"SLURM job {job.job_id} {how}; its log is {short_path(job.task(0).paths.stderr)}"
        print(f"error: job {number} failed: {reason}", file=sys.stderr)
        Path(folder, FAILED).write_text(f"{' '.join(words)}: {reason}\n", encoding="utf-8")
        return JobReturn(overrides=words, status=JobStatus.COMPLETED, _return_value=math.nan)


def _ended(jobs: list[str]) -> dict[str, str]:
    """Those that will not run again, and their states."""
    words = ["squeue", "--noheader", "--states=all", "--array", "--format=%i %T", f"--jobs={jobs[0].partition('_')[0]}"]
    asked = subprocess.run(words, capture_output=True, text=True)
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return {}  # SLURM's controller is not there just now
    states = dict(line.split() for line in asked.stdout.splitlines())
    return {job: states.get(job, "one that SLURM has forgotten") for job in jobs if states.get(job, "CANCELLED") in ENDED}


def _work(run: Callable[..., JobReturn], *call: Any) -> JobReturn:
    """In a process of a SLURM job, all that train.py does at its beginning."""
    set_up_process()
    set_up_job()
    end_on_signals()  # submitit's handlers would end a training without a checkpoint
    return run(*call)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


Plugins.instance().class_name_to_class[NAME] = Slurm
