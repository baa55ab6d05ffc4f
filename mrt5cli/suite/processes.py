"""Processes for jobs: forks of one that has imported everything, with one GPU each or all for one training.

Each has its own process group, so that Ctrl-C reaches only the parent; all end when the parent ends.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

from mrt5cli import own_code, runtime
from mrt5cli.errors import UserError
from mrt5cli.output import prepare
from mrt5cli.stopping import SIGNALS, exit_code, kept_from_children, raised
from mrt5cli.suite.jobs import SuitePlan, TrainJob
from mrt5cli.suite.work import JobOrder, carry_out
from mrt5cli.text import counted

MOST_SMOKE_JOBS = 8
"""Default number of parallel smoke jobs, each with one thread and some hundred MB."""
SHUTDOWN_SECONDS = 24 * 3600
"""How long torchrun lets the processes of a group save; a second Ctrl-C ends them, not this limit."""


def visible_gpus() -> list[str]:
    """The GPUs available to this process, named as in CUDA_VISIBLE_DEVICES."""
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named or [str(number) for number in range(torch.cuda.device_count())]


def kill(process: BaseProcess) -> None:
    """Kill a job and the processes that it has started."""
    if process.exitcode is None and process.pid is not None:
        with suppress(ProcessLookupError):  # it has just ended, or has no process group yet
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


@dataclass(frozen=True)
class Forks:
    """Starts jobs, each in a fork of a process that has imported torch and everything else.

    Attributes:
        slots: maximum number of parallel jobs.
        threads: threads per job; None leaves the choice to torch.
        gpus: GPUs to use; the job in slot i uses the i-th, but in a single slot a training uses all of them.
            Empty: the CPU.
        device: the device passed to jobs.
    """

    slots: int
    threads: int | None
    gpus: Sequence[str] = ()
    device: str = "cpu"

    @property
    def together(self) -> bool:
        """Whether one training uses several GPUs."""
        return self.slots == 1 and len(self.gpus) > 1

    def start(self, order: JobOrder, slot: int, log: Path) -> BaseProcess:
        """Start a job in a slot, counted from 0, and append its output to the log.

        On a termination signal, the job ends in an orderly way: a training saves first.
        """
        order = replace(order, device=self.device)
        gpus = self.gpus[slot : slot + 1]
        if self.together and isinstance(order.job, TrainJob):
            gpus, order = self.gpus, replace(order, processes=len(self.gpus))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mrt5cli.suite.preload"])
        process = context.Process(
            target=_forked, args=(_packed(order), log, self.threads, gpus), name=order.job.id
        )
        with kept_from_children(spawned=True):  # also from the fork server
            process.start()
        return process

    def __str__(self) -> str:
        """The number of parallel jobs and their devices, as text."""
        if not self.gpus:
            jobs = f"{counted(self.slots, 'job')} at a time"
            return f"on the CPU, {jobs}, {counted(self.threads or 1, 'thread')} each"
        if self.together:
            return f"one training at a time, on {len(self.gpus)} GPUs"
        return f"{counted(self.slots, 'job')} at a time, one GPU each"


def launcher_for(plan: SuitePlan, device: str, jobs: int | None) -> Forks:
    """The launcher for a plan's jobs on this machine.

    Args:
        device: the value of `--device`.
        jobs: the value of `--jobs`.

    Raises:
        UserError: the device does not exist, or there are more jobs than GPUs.
    """
    if runtime.device(device).type != "cuda":
        cores = runtime.usable_cpus()
        number = jobs or (min(cores, MOST_SMOKE_JOBS) if plan.smoke else 1)
        return Forks(number, 1 if plan.smoke else max(1, cores // number))
    gpus = visible_gpus()
    if ":" in device:
        gpus = [gpus[int(device.split(":")[1])]]
    number = jobs or len(gpus)
    if number > len(gpus):
        raise UserError(f"--jobs {number}: each job needs a GPU, and there are {len(gpus)}", "lower --jobs")
    return Forks(number, None, gpus if number == 1 else gpus[:number], device="cuda")


Packed = tuple[list[Path], bytes]
"""User-defined files to import first, and a pickled order, whose recipes may need them."""


def _packed(order: JobOrder) -> Packed:
    return own_code.files(), pickle.dumps(order)


def _unpacked(packed: Packed) -> JobOrder:
    files, pickled = packed
    for file in files:
        own_code.import_file(file)
    order: JobOrder = pickle.loads(pickled)
    return order


def _forked(packed: Packed, log: Path, threads: int | None, gpus: Sequence[str]) -> None:
    """Do a job in this process, or in a group of processes that it starts."""
    os.setsid()  # Ctrl-C then reaches only the parent, which forwards it once
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for descriptor in (1, 2):
        os.dup2(target, descriptor)
    prepare()
    try:
        with raised():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            code = _carried_out(packed, threads, gpus)
    except KeyboardInterrupt as error:  # before the job started
        code = exit_code(error)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _carried_out(packed: Packed, threads: int | None, gpus: Sequence[str]) -> int:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if threads is not None:
        import torch

        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    order = _unpacked(packed)
    return carry_out(order) if order.processes == 1 else _together(order)


def _end_with_parent() -> None:
    """Wait for the parent process to end, then send this one a termination signal."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _together(order: JobOrder) -> int:
    """Train in a group of processes, as torchrun starts them; if one ends, all end."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SHUTDOWN_SECONDS)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=order.processes,
        run_id="suite",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    job = order.job
    # Decide before the group starts, so that a slow process does not resume what the first has just started.
    there = isinstance(job, TrainJob) and job.run.is_run and not order.overwrite
    try:
        elastic_launch(config, _rank)(_packed(replace(order, resume=there)))
    except ChildFailedError as error:
        return int(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _rank(packed: Packed) -> None:
    prepare()
    code = carry_out(_unpacked(packed))
    if code:
        sys.exit(code)
