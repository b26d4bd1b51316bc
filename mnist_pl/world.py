"""Which of a run's processes this one is, by the environment alone: before PyTorch has joined them, or is imported."""

import os
import re
import socket
import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

PATIENCE = 55.0  # seconds, until the first process has spoken
LINGER = 4.0  # seconds, for which a first process that has failed still serves the others

_store: Any = None  # kept, because in the first process it may be the one that serves the others
_spoken = 0


class World(NamedTuple):
    """The processes that torchrun or srun has started for one program, each by itself."""

    starter: str  # how a message calls it
    rank: int
    size: int
    nodes: int
    on_each_node: int | None  # None: not the same number on each


def world() -> World | None:
    """None where neither has started this process: then Lightning may start further ones itself.

    The shell of `salloc` and the script of `sbatch` are of SLURM, but no task of a step of `srun`.
    """
    read = os.environ.get
    if "TORCHELASTIC_RUN_ID" in os.environ:
        size, nodes, here = (int(os.environ[f"{name}WORLD_SIZE"]) for name in ("", "GROUP_", "LOCAL_"))
        return World("torchrun", int(os.environ["RANK"]), size, nodes, here if here * nodes == size else None)
    if "SLURM_STEP_NUM_TASKS" in os.environ and "SLURM_PROCID" in os.environ:
        size, nodes = int(os.environ["SLURM_STEP_NUM_TASKS"]), int(read("SLURM_STEP_NUM_NODES", 1))
        each = re.fullmatch(r"(\d+)(\(x\d+\))?", read("SLURM_STEP_TASKS_PER_NODE", ""))  # as 2(x8), or 2,1
        return World("srun", int(os.environ["SLURM_PROCID"]), size, nodes, int(each[1]) if each else None)
    return None


def is_first() -> bool:
    """Whether this is the first process of its run, which alone writes and speaks; so is the only one of a run."""
    here = world()
    further = [os.environ.get(name, "0") != "0" for name in ("LOCAL_RANK", "NODE_RANK")]  # that Lightning has started
    return (here is None or here.rank == 0) and not any(further)


def from_first(text: str) -> str:
    """What the first process calls this with, in each of those that torchrun or srun has started; else `text` itself.

    All have to call it as often. Those that Lightning starts are told everything by their command line. Ends the
    program where the first process has ended, or has not spoken within a minute.
    """
    global _spoken
    here = world()
    if here is None or here.size == 1:
        return text
    _spoken += 1
    key, deadline = _key(_spoken), time.monotonic() + PATIENCE
    try:
        store = _connect(here, deadline)
        if here.rank == 0:
            store.set(key, text)
            return text
        store.wait([key], timedelta(seconds=max(1.0, deadline - time.monotonic())))
        return store.get(key).decode()
    except RuntimeError as error:  # those of torch.distributed
        reason = str(error).partition("\n")[0].partition(". Exception raised")[0]
        line = f"error: {here.starter} has started {here.size} processes, of which the first is not heard of: {reason}"
        sys.exit(line if here.rank in (0, 1) else 1)  # one for all of them


def is_to_tell(line: str) -> bool:
    """Whether this process says what others may have to say too: the first one to ask does."""
    here = world()
    if here is None or here.size == 1:
        return True
    try:
        is_first_to_ask = _connect(here, time.monotonic() + LINGER).add(_key(line), 1) == 1
    except RuntimeError:  # under srun it was the first process that has ended
        return here.rank in (0, 1)
    if here.rank == 0 and _serves(here):
        time.sleep(LINGER)
    return is_first_to_ask


def _key(what: object) -> str:
    """torchrun's store stays when it starts the processes again."""
    return f"mnist_pl/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{what}"


def meet() -> tuple[str, int]:
    """Where the processes of this world meet: address and port of the first one, also for Lightning and PyTorch.

    Lightning reads what SLURM says of the whole job; it is told of this step here. It takes the port from the job's
    number, which two steps side by side would share.
    """
    here = world()
    if here is not None and here.starter == "srun":
        from lightning.fabric.plugins.environments import SLURMEnvironment

        nodes, job, step = (os.environ.get(f"SLURM_{name}", "0") for name in ("STEP_NODELIST", "JOB_ID", "STEP_ID"))
        os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
        os.environ.setdefault("MASTER_PORT", str(15_000 + (int(job) + 101 * int(step)) % 10_000))
        facts = {"NTASKS": here.size, "NNODES": here.nodes, "NTASKS_PER_NODE": here.on_each_node}
        os.environ.update({f"SLURM_{name}": str(value) for name, value in facts.items() if value is not None})
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def _connect(here: World, deadline: float) -> Any:
    """torchrun serves a store itself; under srun the first process does, which PyTorch's own later shares."""
    global _store
    if _store is not None:
        return _store
    from torch.distributed import TCPStore

    address, port = meet()
    serves = here.rank == 0 and _serves(here)
    while not serves and not _answers(address, port):  # PyTorch itself would wait for longer than it is told to
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing answers at {address}:{port}")
        time.sleep(0.1)
    how: dict[str, Any] = {"timeout": timedelta(seconds=PATIENCE), "wait_for_workers": False, "multi_tenant": True}
    _store = TCPStore(address, port, is_master=serves, **how)
    return _store


def _serves(here: World) -> bool:
    return here.starter == "srun" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _answers(address: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False
