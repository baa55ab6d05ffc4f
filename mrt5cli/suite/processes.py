"""Processes that do jobs: forks of one that has imported everything, one a GPU, or all for one training.

All are in groups of their own, so that Ctrl-C reaches only who started them; all end when that one is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from mrt5cli import runtime
from mrt5cli.errors import UserError
from mrt5cli.suite.jobs import SuitePlan, TrainJob
from mrt5cli.suite.work import INTERRUPTED, JobOrder, begin, carry_out
from mrt5cli.text import counted

MOST_SMOKE_JOBS = 8
"""Jobs at a time by default for smoke runs, each with one thread and some hundred MB of its own."""
PRELOAD = "mrt5cli.suite.preload"
SHUTDOWN_SECONDS = 24 * 3600
"""How long torchrun lets the processes of a group save: the second Ctrl-C ends them, not a clock."""


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named or [str(number) for number in range(torch.cuda.device_count())]


class Forks:
    """Starts jobs, each in a fork of a process that has imported torch and all that jobs need.

    Args:
        slots: jobs at a time.
        threads: of each; None leaves them to torch.
        gpus: in place of the CPU: job i takes the i-th, modulo their number.
        together: a training takes all of them.
    """

    def __init__(
        self, slots: int, threads: int | None, gpus: Sequence[str] = (), *, together: bool = False
    ) -> None:
        self.slots = slots
        self.threads = threads
        self.gpus = list(gpus)
        self.together = together
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([PRELOAD])

    def start(self, order: JobOrder, slot: int, log: Path) -> Fork:
        """Start a job in one of the slots, numbered from 0."""
        gpus = self.gpus[slot % len(self.gpus) :][:1] if self.gpus else []
        if self.together and isinstance(order.plan.job(order.job), TrainJob):
            gpus, order = self.gpus, replace(order, processes=len(self.gpus))
        theirs, ours = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=_forked, args=(order, log, self.threads, gpus, theirs), name=order.job
        )
        process.start()
        theirs.close()
        return Fork(process, ours)


def launcher_for(plan: SuitePlan, device: str, jobs: int | None) -> tuple[Forks, str, str]:
    """What starts a plan's jobs on this machine, that in words, and the device that jobs are given.

    Args:
        device, jobs: as the command line has them.

    Raises:
        UserError: a device that is not there, or more jobs than GPUs.
    """
    kind = runtime.device(device).type
    if kind != "cuda":
        cores = runtime.usable_cpus()
        number = jobs or (min(cores, MOST_SMOKE_JOBS) if plan.smoke else 1)
        threads = 1 if plan.smoke else max(1, cores // number)
        of = f"{counted(number, 'job')} at a time, {counted(threads, 'thread')} each"
        return Forks(number, threads), f"on the CPU, {of}", "cpu"
    gpus = visible_gpus()
    if ":" in device:
        if jobs is not None and jobs > 1:
            raise UserError(f"--jobs {jobs} on the one GPU {device}", "leave out --jobs or the GPU's number")
        gpus = [gpus[int(device.split(":")[1])]]
    number = jobs or len(gpus)
    if number > len(gpus):
        raise UserError(f"--jobs {number}: there are {len(gpus)} GPUs, and a job takes one", "lower --jobs")
    if plan.smoke:
        return Forks(number, 1, gpus), f"on {len(gpus)} GPUs, {number} jobs at a time", "cuda"
    if number == 1 and len(gpus) > 1:
        launcher = Forks(1, None, gpus, together=True)
        return launcher, f"one training at a time on {len(gpus)} GPUs", "cuda"
    return Forks(number, None, gpus[:number]), f"{counted(number, 'job')} at a time, one GPU each", "cuda"


@dataclass
class Fork:
    """A job that is being done."""

    process: BaseProcess
    life: Connection

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        code = self.process.exitcode
        if code is not None:
            self.life.close()
        return code

    def stop(self) -> None:
        """Ask it to end: a training saves first."""
        if self.process.exitcode is None and self.process.pid is not None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """End the process and those it has started, or it alone while it has no group yet."""
        pid = self.process.pid
        if self.process.exitcode is None and pid is not None:
            with suppress(ProcessLookupError):
                if os.getpgid(pid) == pid:
                    os.killpg(pid, signal.SIGKILL)
                else:
                    os.kill(pid, signal.SIGKILL)


def _forked(order: JobOrder, log: Path, threads: int | None, gpus: list[str], life: Connection) -> None:
    begin(life.fileno(), log)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if threads is not None:
        import torch

        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    code = carry_out(order) if order.processes == 1 else _together(order)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _together(order: JobOrder) -> int:
    """Do a training in a group of processes, as torchrun starts them; the end of one is the end of all."""
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
    try:
        elastic_launch(config, _rank)(order)
    except ChildFailedError as error:
        return int(error.get_first_failure()[1].exitcode)
    except SignalException:
        return INTERRUPTED
    return 0


def _rank(order: JobOrder) -> None:
    """One process of a group."""
    code = carry_out(order)
    if code:
        sys.exit(code)
