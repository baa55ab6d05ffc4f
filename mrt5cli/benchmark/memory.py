"""Memory of a case, in a process of its own: what it takes at its peak beside the model.

A process that imported everything and built the weights forks once for each case, so that nobody pays for
what an earlier case left behind. It has one thread until then: threads do not survive a fork.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mrt5cli.benchmark.cases import Builder
from mrt5cli.benchmark.inputs import Shapes
from mrt5cli.benchmark.models import base_model
from mrt5cli.errors import RunFailed
from mrt5cli.models import MrT5ForConditionalGeneration

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ENVIRONMENT = {
    # glibc gives freed blocks of this size back at once, so that resident memory is what is in use.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    # Asking whether there is a GPU must not start CUDA, which does not survive a fork.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


@dataclass(frozen=True)
class Memory:
    """Bytes beside those that were there before the case.

    Attributes:
        peak: the most it held at any moment, gradients included; None where it could not be measured.
        live: of a training step, what is held between its forward and its backward pass.
        problem: why there is no peak.
    """

    peak: int | None
    live: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class MemoryRequest:
    """Which cases of a suite to measure, on the weights that `base_model` makes of `source` and `size`."""

    build: Builder
    cases: Sequence[str]
    source: str | None
    size: str
    shapes: Shapes
    device: torch.device
    threads: int


def measure(request: MemoryRequest) -> Iterator[tuple[str, Memory]]:
    """The memory of each case, one after the other.

    Raises:
        RunFailed: the measuring process died.
    """
    command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        pickle.dump(request, process.stdin)
        process.stdin.close()
        for name in request.cases:
            try:
                memory: Memory = pickle.load(process.stdout)
            except EOFError:
                break
            yield name, memory
    if process.returncode:
        raise RunFailed(f"the process that measures memory ended with {process.returncode}")


def serve() -> None:
    """Read a request from stdin, and write the memory of each of its cases."""
    request: MemoryRequest = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(1)
    unknown = request.device.type == "cpu" and not STATUS.exists()
    base = None if unknown else base_model(request.source, request.size, torch.device("cpu"))
    for name in request.cases:
        if base is None:
            found = pickle.dumps(Memory(None, problem="this system does not say how much is in use"))
        else:
            found = _in_a_fork(base, name, request)
        sys.stdout.buffer.write(found)
        sys.stdout.buffer.flush()


def _in_a_fork(base: MrT5ForConditionalGeneration, name: str, request: MemoryRequest) -> bytes:
    """A pickled `Memory`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(request.threads)
            found = _measure_here(base.to(request.device), name, request.build, request.shapes)
            os.write(writing, pickle.dumps(found))
            status = 0
        except Exception as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            os.write(writing, pickle.dumps(Memory(None, problem=problem)))
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        written = pipe.read()
    _, status = os.waitpid(child, 0)
    ended = Memory(None, problem=f"ended with {os.waitstatus_to_exitcode(status)}")
    return written or pickle.dumps(ended)


def _measure_here(base: MrT5ForConditionalGeneration, name: str, build: Builder, shapes: Shapes) -> Memory:
    small = replace(shapes, length=min(16, shapes.length), target=2)
    build(base, small).cases[name].call()  # what libraries set up at a first call is not the case's
    case = build(base, shapes).cases[name]
    gauge = Gauge(base.device)
    if case.loss is None:
        kept = case.call()
        del kept
        return Memory(gauge.peak())
    loss = case.loss()
    live = gauge.now()
    loss.backward()  # type: ignore[no-untyped-call]
    return Memory(gauge.peak(), live)


class Gauge:
    """Memory in use since it was made, and the most of it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        elif CLEAR.exists():
            CLEAR.write_text("5", encoding="ascii")  # the high-water mark starts again from here
        self.before = self._now()

    def now(self) -> int:
        """Bytes more than at the start."""
        return self._now() - self.before

    def peak(self) -> int:
        """The most that `now` was."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _status("VmHWM") - self.before

    def _now(self) -> int:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.memory_allocated(self.device)
        return _status("VmRSS")


def _status(name: str) -> int:
    """A number of /proc/self/status, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise OSError(f"{STATUS} has no {name}")
    return 1024 * int(found[1])
