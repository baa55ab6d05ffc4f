"""Processes that do jobs: forked from one that has imported everything, or started alone, one a GPU or more.

All are in groups of their own, so that Ctrl-C reaches only who started them; all end when that one is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from mrt5cli.suite.work import Order, begin, carry_out

PRELOAD = "mrt5cli.suite.preload"


class Running(Protocol):
    """A job that is being done."""

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""

    def stop(self) -> None:
        """Ask it to end: a training saves first."""

    def kill(self) -> None:
        """End it."""


class Launcher(Protocol):
    """What starts jobs."""

    slots: int
    """How many may run at a time."""

    def start(self, order: Order, slot: int, log: Path) -> Running:
        """Start a job in one of the slots, numbered from 0."""


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named or [str(number) for number in range(torch.cuda.device_count())]


# --- forked -------------------------------------------------------------------------------------------------


class Forked:
    """Starts jobs on CPUs, each in a fork of a process that has imported torch and all that jobs need.

    Args:
        slots: jobs at a time.
        threads: of each.
        gpus: in place of the CPU: job i takes the i-th, modulo their number.
    """

    def __init__(self, slots: int, threads: int, gpus: Sequence[str] = ()) -> None:
        self.slots = slots
        self.threads = threads
        self.gpus = list(gpus)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([PRELOAD])

    def start(self, order: Order, slot: int, log: Path) -> Running:
        environment = {"OMP_NUM_THREADS": str(self.threads)}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        theirs, ours = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_forked, args=(order, log, environment, theirs), name=order.job)
        process.start()
        theirs.close()
        return _Fork(process, ours)


@dataclass
class _Fork:
    process: multiprocessing.process.BaseProcess
    life: Connection

    def poll(self) -> int | None:
        code = self.process.exitcode
        if code is not None:
            self.life.close()
        return code

    def stop(self) -> None:
        _signal(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        _kill_group(self.process.pid)


def _forked(order: Order, log: Path, environment: Mapping[str, str], life: Connection) -> None:
    begin(life.fileno(), log)
    os.environ |= environment
    import torch

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    code = carry_out(order)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


# --- started alone ------------------------------------------------------------------------------------------


class Alone:
    """Starts jobs on GPUs: one GPU each, or all GPUs for one training at a time.

    Args:
        suite: name or file, as the plan was made from.
        gpus: their numbers, as in CUDA_VISIBLE_DEVICES.
        together: a training takes all of them.
    """

    def __init__(self, suite: str, gpus: Sequence[str], *, together: bool = False) -> None:
        self.suite = suite
        self.gpus = list(gpus)
        self.together = together
        self.slots = 1 if together else max(1, len(gpus))

    def start(self, order: Order, slot: int, log: Path) -> Running:
        words = [sys.executable, "-m", "mrt5cli.suite.work", self.suite, str(order.plan.root), order.job]
        words += ["--device", order.device]
        words += ["--smoke"] * order.plan.smoke + ["--overwrite"] * order.overwrite
        ranks = len(self.gpus) if self.together and order.plan.job(order.job).kind == "train" else 1
        gpus = self.gpus if ranks > 1 else self.gpus[slot : slot + 1]
        environment = dict(os.environ)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        theirs, ours = os.pipe()
        port = _free_port()
        processes = []
        with log.open("ab") as file:
            for rank in range(ranks):
                processes.append(
                    subprocess.Popen(
                        [*words, "--life", str(theirs)],
                        env=environment | (_group(rank, ranks, port) if ranks > 1 else {}),
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=file,
                        pass_fds=[theirs],
                        start_new_session=True,
                    )
                )
        os.close(theirs)
        return _Processes(processes, ours)


def _group(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun would tell a process of a group on this machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class _Processes:
    """One process, or some that train together: then the end of one in failure is the end of all."""

    processes: list[subprocess.Popen[bytes]]
    life: int | None

    def poll(self) -> int | None:
        codes = [process.poll() for process in self.processes]
        failed = [code for code in codes if code]
        if failed and None in codes and all(code != 130 for code in failed):
            self.kill()
        if None in codes:
            return None
        if self.life is not None:
            os.close(self.life)
            self.life = None
        return failed[0] if failed else 0

    def stop(self) -> None:
        for process in self.processes:
            _signal(process.pid, signal.SIGINT)

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                _kill_group(process.pid)


def _signal(pid: int | None, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        if pid is not None:
            os.kill(pid, number)


def _kill_group(pid: int | None) -> None:
    """End a process and those it has started, or it alone while it has no group yet."""
    if pid is None:
        return
    with suppress(ProcessLookupError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
