"""SLURM: each job of a sweep is one of its jobs; what it warns or preempts saves, is queued again, and goes on exactly.

Buys: `hydra/launcher=slurm`, and scripts for `sbatch` that outlive their time limit without a word about it.
A script is covered from train.py's first line on: in the 20 ms that Python takes before, a signal ends it for good.
Without it: delete conf/hydra/launcher/slurm.yaml, the lines that name this module in train.py and claim.py, and there
`once_arranged`, else signals stay blocked in a job.
"""

import json
import logging
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from functools import partial
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

from mnist_pl.runs import plan
from mnist_pl.runs.errors import set_up_process
from mnist_pl.runs.folders import RUNS
from mnist_pl.runs.plan import MAY_BE_CODE, is_sweep
from mnist_pl.runs.processes import is_first
from mnist_pl.runs.resume import result
from mnist_pl.runs.side_by_side import SWEEPS
from mnist_pl.runs.sweep import FAILED, job_line
from mnist_pl.runs.words import key_of, split
from mnist_pl.signals import advise, arrange, end_on_signals, leave_with
from mnist_pl.storage import as_typed, as_word, one_line, quoted, read_value, short_path, write

log = logging.getLogger(__name__)

NAME = "hydra_plugins.mnist_pl.Slurm"  # for conf/hydra/launcher/slurm.yaml; Hydra wants this beginning
RECORD = ".slurm.json"  # in the folder of a run or a sweep: the SLURM job that it was begun in, and by which words
WARNINGS = ("SIGUSR1", "SIGUSR2")  # sbatch --signal=USR1@60, and what submitit asks for
OWN_PART = re.compile(r"[\w.]+\._target_=[\w.]+")
# States of a job that will not run again:
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
ENDED |= {"REVOKED", "TIMEOUT"}
LOST = JobReturn(status=JobStatus.COMPLETED, _return_value=math.nan)  # as Report has a failed job end
ASK_EVERY = 5.0  # seconds; one question for all jobs
STARTED = time.time()
ROOT = Path(__file__).parents[2]  # jobs are to run this code, whatever else is installed

# A job that is preempted in its first second is queued again by SLURM itself, unless a signal has ended it by then:
PYTHON = f"""sh -c 'trap "" TERM USR1 USR2; exec "$0" "$@"' {shlex.quote(sys.executable)}"""

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
    if not is_first() or facts.get("BatchFlag") != "1":
        return None
    if int(facts.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0)):  # somebody has done so
        return f"SLURM job {job} is queued again, to go on there"
    if facts.get("JobState") != "RUNNING":
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
        if (begun["job"], begun["cluster"], begun["words"]) == (job_here(), _cluster(), arguments):
            if is_sweep(record.parent):
                flags = [flag for flag in flags if flag not in ("-m", "--multirun")]
                named = [word for word in words if MAY_BE_CODE.search(word)]
            else:
                named = [word for word in begun["named"] if OWN_PART.fullmatch(word)]
            return [*flags, f"resume={quoted(record.parent.absolute())}", *named]
    return arguments


def _cluster() -> str | None:
    return os.environ.get("SLURM_CLUSTER_NAME")


def note(folder: str | os.PathLike[str], named: Sequence[str] = ()) -> None:
    """Writes into the folder of a run or a sweep whose it is, for the time when this SLURM job is queued again.

    `named` are the words that it is resumed with because it has parts of one's own.
    """
    if job_here() is not None and _typed is not None:
        record = {"job": job_here(), "cluster": _cluster(), "words": _typed, "named": list(named)}
        write(Path(folder, RECORD), (json.dumps(record, indent=2) + "\n").encode())


class Slurm(Launcher):
    """hydra-submitit-launcher's, except that a job that is lost is a failed one: the sweep goes on, and has its report.

    And that no accounting (`sacct`) is needed to see it, which small clusters do not keep.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = {name: value for name, value in settings.items() if value is not None}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        try:
            from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
        except ImportError:
            raise ValueError('hydra/launcher=slurm: is an extra; pip install -e ".[slurm]"') from None
        if shutil.which("sbatch") is None:
            raise ValueError("hydra/launcher=slurm: there is no sbatch here, which submits jobs on a cluster")
        self.config, self.loader = config, hydra_context.config_loader
        self.run = SlurmLauncher()
        self.run.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """The jobs that are not finished already, as one array of SLURM's; returns when all have ended.

        Raises ValueError where submitit or sbatch refuses a setting.
        """
        words = dict(enumerate(map(list, job_overrides), initial_job_idx))
        folders = {number: self._folder(number, words[number]) for number in words}
        results = {number: self._finished(folders[number]) for number in words}
        left = [number for number in words if results[number] is None]
        jobs = dict(zip(left, self._submit({number: words[number] for number in left}), strict=True)) if left else {}
        ended: dict[str, str] = {}
        asked = time.monotonic()
        while left:
            time.sleep(0.2 + len(left) / 1000)  # for a look at as many files
            lost: dict[int, str] = {}
            for number in left:
                if jobs[number].paths.result_pickle.exists():
                    results[number], lost[number] = _result(jobs[number])
            if time.monotonic() - asked > ASK_EVERY:
                # What was so twice: a result may come late through a network's file system.
                before, ended, asked = ended, _ended([jobs[number].job_id for number in left]), time.monotonic()
                for number in left:
                    state = ended.get(jobs[number].job_id) if jobs[number].job_id in before else None
                    if state is not None and number not in lost:
                        results[number], lost[number] = LOST, f"ended as {state}"
            for number, how in lost.items():
                left.remove(number)
                self._tell(number, folders[number], jobs[number], how)
        return [result for result in results.values() if result is not None]

    def _submit(self, words: dict[int, list[str]]) -> list[Any]:
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError

        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        settings = dict(self.settings)
        common = BaseQueueConf.__dataclass_fields__  # the others are SLURM's alone
        state = Singleton.get_state()
        calls = [(words[number], "hydra.sweep.dir", number, str(number), state) for number in words]
        try:
            executor = AutoExecutor(settings.pop("submitit_folder"), cluster="slurm", slurm_python=PYTHON)
            executor.update_parameters(**{key if key in common else f"slurm_{key}": settings[key] for key in settings})
            with redirect_stderr(StringIO()):  # where submitit repeats what sbatch says
                jobs = executor.map_array(partial(_work, self.run), *zip(*calls, strict=True))
        except (AssertionError, NameError, FailedJobError) as error:
            raise ValueError(f"hydra.launcher: {one_line(error)}") from error
        array = jobs[0].job_id.partition("_")[0]
        print(f"they are SLURM's, as job {array}, which `scancel {array}` ends", flush=True)
        advise(f"the jobs go on in SLURM, as {array}; {as_word('resume', self.config.hydra.sweep.dir)} gathers them")
        return jobs

    def _folder(self, number: int, words: list[str]) -> Path:
        config = self.config
        if OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"] != plan.SUBDIR:  # type: ignore[call-overload,index]
            config = self.loader.load_sweep_config(config, words)
        with open_dict(config.hydra.job):
            config.hydra.job.num = number
        return Path(config.hydra.sweep.dir, str(config.hydra.sweep.subdir))

    def _finished(self, folder: Path) -> JobReturn | None:
        done = result(str(folder)) if self.config.hydra.callbacks.claim.resumes else None
        return JobReturn(status=JobStatus.COMPLETED, _return_value=done["val/acc"]) if done else None

    def _tell(self, number: int, folder: Path, job: Any, how: str) -> None:
        sweep = Path(self.config.hydra.sweep.dir)
        if how:
            reason = f"SLURM job {job.job_id} {how}; its log is {short_path(job.task(0).paths.stderr)}"
            write(sweep / f"{number}.{FAILED}", (reason + "\n").encode(errors="backslashreplace"))
        if line := job_line(sweep, number, folder):
            print(line, flush=True)


def _result(job: Any) -> tuple[JobReturn, str]:
    """What a job returned; and how it failed, where it did outside of what Hydra runs."""
    from submitit.core.utils import UncompletedJobError

    try:
        return job.task(0).result(), ""
    except UncompletedJobError as error:
        trace = re.split(r"\n-{22}\n", str(error))[1:2] or [str(error)]
        return LOST, f"failed: {trace[0].strip().splitlines()[-1]}"


def _ended(jobs: list[str]) -> dict[str, str]:
    """Those that will not run again, and their states."""
    words = ["squeue", "--noheader", "--states=all", "--array", "--format=%i %T", f"--jobs={jobs[0].partition('_')[0]}"]
    asked = subprocess.run(words, capture_output=True, text=True)
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return {}  # SLURM's controller is not there just now
    states = dict(line.split() for line in asked.stdout.splitlines())
    return {job: states.get(job, "FORGOTTEN") for job in jobs if job not in states or states[job] in ENDED}


def _work(run: Callable[..., JobReturn], *call: Any) -> JobReturn:
    """In a process of a SLURM job, all that train.py does at its beginning."""
    set_up_process()
    set_up_job()
    end_on_signals()  # submitit's handlers would end a training without a checkpoint
    os.environ.pop(SWEEPS, None)  # that process is on another machine
    return run(*call)


Plugins.instance().class_name_to_class[NAME] = Slurm
