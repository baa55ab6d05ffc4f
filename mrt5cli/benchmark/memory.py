"""Memory of a case, in a process of its own: what it takes at its peak beside the model.

A process that imported everything and built the weights forks once for each case, so that nobody pays for
what an earlier case left behind. It has one thread until then: threads do not survive a fork.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mrt5cli.benchmark.suite import Shapes
from mrt5cli.errors import RunFailed

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


def measure(
    kind: str,
    cases: Sequence[str],
    *,
    source: str | None,
    size: str,
    shapes: Shapes,
    device: torch.device,
    threads: int,
) -> Iterator[tuple[str, Memory]]:
    """The memory of each case of a kind's suite, one after the other.

    Raises:
        RunFailed: the measuring process died.
    """
    request = {
        "kind": kind,
        "cases": list(cases),
        "source": source,
        "size": size,
        "shapes": asdict(shapes),
        "device": str(device),
        "threads": threads,
    }
    command = [sys.executable, "-m", "mrt5cli.benchmark.memory"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        for name, line in zip(cases, process.stdout, strict=False):
            yield name, Memory(**json.loads(line))
    if process.returncode:
        raise RunFailed(f"the process that measures memory ended with {process.returncode}")


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


def _serve() -> None:
    """Read one request from stdin, write a line for each of its cases."""
    from mrt5cli.benchmark.models import base_model

    request = json.loads(sys.stdin.read())
    torch.set_num_threads(1)
    device = torch.device(request["device"])
    if device.type == "cpu" and not STATUS.exists():
        for _ in request["cases"]:
            print(json.dumps(asdict(Memory(None, problem="this system does not tell"))), flush=True)
        return
    base = base_model(request["source"], request["size"], torch.device("cpu"))
    for name in request["cases"]:
        print(_in_a_fork(base, name, request, device), flush=True)


def _in_a_fork(base: Any, name: str, request: dict[str, Any], device: torch.device) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(request["threads"])
            found = _measure_here(base.to(device), request["kind"], name, Shapes(**request["shapes"]))
            os.write(writing, json.dumps(asdict(found)).encode())
            status = 0
        except Exception as error:
            problem = Memory(None, problem=" ".join(f"{type(error).__name__}: {error}".split())[:500])
            os.write(writing, json.dumps(asdict(problem)).encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if told:
        return told
    return json.dumps(asdict(Memory(None, problem=f"ended with {os.waitstatus_to_exitcode(status)}")))


def _measure_here(base: Any, kind: str, name: str, shapes: Shapes) -> Memory:
    from mrt5cli.benchmark.kinds import BUILDERS

    small = replace(shapes, length=min(16, shapes.length), target=2)
    BUILDERS[kind](base, small).cases[name].call()  # what libraries set up at a first call is not the case's
    case = BUILDERS[kind](base, shapes).cases[name]
    gauge = Gauge(next(base.parameters()).device)
    if case.loss is None:
        kept = case.call()
        del kept
        return Memory(gauge.peak())
    loss = case.loss()
    live = gauge.now()
    loss.backward()  # type: ignore[no-untyped-call]
    return Memory(gauge.peak(), live)


if __name__ == "__main__":
    _serve()
