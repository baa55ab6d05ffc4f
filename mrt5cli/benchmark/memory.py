"""Peak memory of a case in addition to the model; on a CPU it is measured in a separate process.

A GPU's allocator knows what is in use. On a CPU each case runs in a fork of a process that has built the
weights, itself a fork of a server that has imported everything, so that no case pays for another's leftovers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from mrt5cli.benchmark.models import Shapes, float32_products
from mrt5cli.benchmark.suite import Builder, Case, Memory
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.stopping import end_with_parent
from mrt5cli.text import first_line

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ENVIRONMENT = {
    # glibc returns freed blocks of this size at once, so that resident memory equals memory in use.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}

_base: MrT5ForConditionalGeneration
"""The weights, in the forking process and its forks."""


def measure(
    build: Builder,
    make_base: Callable[[], MrT5ForConditionalGeneration],
    shapes: Shapes,
    names: Sequence[str],
    threads: int,
) -> Iterator[tuple[str, Memory]]:
    """Measure the memory of cases of a suite on a CPU, one at a time.

    Args:
        build: builds the suite.
        make_base: builds the weights.
        shapes: input sizes.
        names: names of the cases.
        threads: number of CPU threads.

    Yields:
        A case's name and its memory.
    """
    os.environ.update(ENVIRONMENT)  # for the server, which starts with the first process
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, context, _keep_base, (make_base,)) as process:
        for name in names:
            try:
                yield name, process.submit(_fork, build, shapes, name, threads).result()
            except Exception as error:  # the case failed, or its process was killed
                yield name, Memory(None, problem=f"{type(error).__name__}: {first_line(error)}")


def _keep_base(make_base: Callable[[], MrT5ForConditionalGeneration]) -> None:
    """Build the weights once, in a single thread, because OpenMP's threads do not survive a fork."""
    global _base
    end_with_parent()
    torch.set_num_threads(1)
    _base = make_base()


def _fork(*case: Any) -> Memory:
    with ProcessPoolExecutor(1, get_context("fork"), end_with_parent) as process:
        return process.submit(_measure_here, *case).result()


def _measure_here(build: Builder, shapes: Shapes, name: str, threads: int) -> Memory:
    torch.set_num_threads(threads)
    small = replace(shapes, length=min(16, shapes.length), target=2)
    build(_base, small).cases[name].run()  # exclude what libraries allocate at their first call
    return memory_of(build(_base, shapes).cases[name], _base.device)


def memory_of(case: Case, device: torch.device) -> Memory:
    """The memory of a call in this process, after a first call; a training step leaves its gradients."""
    gauge = Gauge(device)
    if case.loss is None:
        kept = case.run()
        del kept
        return Memory(gauge.peak())
    with float32_products(case.precision):
        loss = case.loss()
        live = gauge.now()
        loss.backward()  # type: ignore[no-untyped-call]
    return Memory(gauge.peak(), live)


class Gauge:
    """Memory in use since this object was created, and its peak.

    Raises:
        OSError: the system does not report memory in use.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif CLEAR.exists():
            CLEAR.write_text("5", encoding="ascii")  # the high-water mark starts again from here
        self.before = self.now()

    def now(self) -> int:
        """Bytes in use, relative to the start."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.memory_allocated(self.device) - self.before
        return _status("VmRSS") - self.before

    def peak(self) -> int:
        """The maximum of `now` so far, in bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _status("VmHWM") - self.before


def _status(name: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii").splitlines())
    return 1024 * int(lines[name].removesuffix("kB"))
