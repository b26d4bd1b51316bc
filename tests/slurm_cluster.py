"""A SLURM cluster of one node with two processors, on this machine, in a temporary folder: the real daemons.

`python tests/slurm_cluster.py COMMAND ...` runs one command in it, as `bash`. Wants root and Debian's slurm-wlm, munge.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning.pytorch.callbacks import Callback

MUNGE = ("key-file", "socket", "pid-file", "log-file", "seed-file")


class Slow(Callback):
    """A training that lasts, for something to happen to it; how long is not among its settings."""

    hooks_every_n_steps = None

    def on_train_batch_end(self, *_: object, **__: object) -> None:
        time.sleep(float(os.environ.get("SECONDS_A_ROUND", 0)))


PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch")
# A requeued job may start again at once (cred_expire); a job is ended to the second, and killed five later. `rush` jobs
# preempt others after ten seconds of grace. `sched_interval`, `bf_interval`: a job does not wait for its turn.
CONF = """
ClusterName=tests
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.soc,cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
SlurmdTimeout=600
KillWait=5
OverTimeLimit=0
InactiveLimit=0
JobRequeue=1
EnforcePartLimits=ALL
MaxArraySize=1001
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
SlurmctldDebug=info
SlurmdDebug=info
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=work Nodes=localhost Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=10
PartitionName=rush Nodes=localhost MaxTime=60 State=UP PriorityTier=2
"""


def missing() -> str | None:
    """Why there can be no cluster here."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        return f"no {', '.join(lacking)} (Debian's slurm-wlm and munge)"
    return None if os.geteuid() == 0 else "SLURM's daemons want root"


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.variables = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.programs: list[subprocess.Popen[str]] = []  # that use it, and end with it

    def start(self, name: str) -> None:
        words = {
            "munged": ["--foreground", "--force", *(f"--{key}={self.folder}/munge.{key[:3]}" for key in MUNGE)],
            "slurmctld": ["-D"],
            "slurmd": ["-D", "-N", "localhost"],
        }[name]
        with open(self.folder / f"{name}.log", "ab") as log:
            command = ["setpriv", "--pdeathsig", "KILL", shutil.which(name) or name, *words]  # none outlives the tests
            self.daemons[name] = subprocess.Popen(command, stdout=log, stderr=log, env=self.variables, cwd=self.folder)

    def kill(self, name: str) -> None:
        self.daemons[name].kill()
        self.daemons[name].wait()

    def call(self, *words: str | Path, **more: str) -> str:
        """The output of one of SLURM's commands."""
        ended = subprocess.run(words, env={**self.variables, **more}, capture_output=True, text=True, timeout=120)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(map(str, words))}: {ended.stderr}")
        return ended.stdout.strip()

    def state(self, job: str) -> str:
        """Of a job or an array's task, as `RUNNING`; where SLURM has forgotten it, nothing."""
        with suppress(RuntimeError):
            return self.call("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")
        return ""

    def logs(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))


def wait_for(what: Callable[[], object], seconds: float = 60, about: Callable[[], str] = str) -> None:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s in vain; {about()}")
        time.sleep(0.05)


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def cluster() -> Iterator[Cluster]:
    """The daemons run until the end; then no process of theirs is left.

    Raises:
        TimeoutError: the node does not become idle; the message has the daemons' logs.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, ports=free_ports(2)))
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    subprocess.run([shutil.which("mungekey") or "", "--create", f"--keyfile={folder}/munge.key"], check=True)
    here = Cluster(folder)
    try:
        here.start("munged")
        wait_for((folder / "munge.soc").exists, about=here.logs)
        here.start("slurmctld")
        here.start("slurmd")

        def is_idle() -> bool:
            with suppress(RuntimeError):
                return "idle" in here.call("sinfo", "--noheader", "--partition=work", "--format=%T").split()
            return False

        wait_for(is_idle, about=here.logs)
        yield here
    finally:
        for program in here.programs:
            program.kill()
            program.communicate()
        with suppress(RuntimeError, subprocess.TimeoutExpired):
            here.call("scancel", "--full", "--signal=KILL", "--user=root")
            here.call("scancel", "--user=root")
            wait_for(lambda: not here.call("squeue", "--noheader"), 20)
        for name in ("slurmd", "slurmctld", "munged"):
            if name in here.daemons:
                here.daemons[name].terminate()
                here.daemons[name].wait(20)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if reason := missing():
        sys.exit(f"error: {reason}")
    with cluster() as one:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = subprocess.run(sys.argv[1:], env=one.variables).returncode
    sys.exit(code)
