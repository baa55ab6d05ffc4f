"""Fair timing on a GPU (warm-up, cold caches, host waits), and the rates a device can reach."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mrt5cli.benchmark.models import DTYPES, Shapes, named, on_gpu
from mrt5cli.benchmark.suite import Case
from mrt5cli.evaluation.timing import seconds_of, wait
from mrt5cli.models import MrT5ForConditionalGeneration

FLUSHED = 2**29
"""Bytes written before a call, several times the last-level cache of any GPU."""
STEADY, MOST_CALLS = 0.1, 5
"""Warm-up ends when two consecutive calls differ by less than this share, or after this many calls."""
SHORT, MOST_TIMES = 0.02, 20
"""A measurement is the mean over as many calls as fill this many seconds, up to this many calls."""
LARGEST, LARGE = "large matmul", {"cpu": 2048, "cuda": 8192}
"""Name and number of rows of a square product that shows the machine's rate."""
COPIED = 2**28
"""Bytes of the copy that shows the memory's rate."""


def space(size: int, device: torch.device) -> Tensor:
    """Uninitialized memory of `size` bytes."""
    return torch.empty(size, dtype=torch.int8, device=device)


class Clock:
    """Times calls on a device.

    Before each call on a GPU its cache is overwritten, so that inputs come from memory; meanwhile the host
    prepares the call's first kernels.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._cache = device, space(FLUSHED if device.type == "cuda" else 0, device)

    def seconds(self, call: Callable[[], object], times: int = 1) -> float:
        """Mean seconds per call over `times` calls."""
        total = 0.0
        for _ in range(times):
            wait(self.device)
            self._cache.zero_()
            total += seconds_of(call, self.device)
        return total / times

    def warm_up(self, call: Callable[[], object]) -> int:
        """Call until compilation is done and times are steady; on a CPU, once.

        Returns:
            The number of calls per measurement.
        """
        taken = self.seconds(call)
        if self.device.type != "cuda":
            return 1
        for _ in range(MOST_CALLS - 1):
            before, taken = taken, self.seconds(call)
            if abs(taken - before) <= STEADY * before:
                break
        return max(1, min(MOST_TIMES, int(SHORT / max(taken, 1e-6))))


def host_waits(call: Callable[[], object], device: torch.device) -> int:
    """Number of times the host waits for the GPU during a call, as far as PyTorch notices."""
    wait(device)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing" in str(warning.message) for warning in seen)


def products(base: MrT5ForConditionalGeneration, shapes: Shapes) -> dict[str, Case]:
    """Matrix products in each precision: a large square one, and on a GPU those of a feed-forward layer.

    Values are random, because a GPU that multiplies zeros draws less power and runs faster.
    """
    rows, width, inner = shapes.batch * shapes.length, base.config.d_model, base.config.d_ff
    side = LARGE["cuda" if on_gpu(base) else "cpu"]
    sizes = {LARGEST: (side, side, side)}
    for m, k, n in ((rows, width, inner), (rows, inner, width)) if on_gpu(base) else ():
        sizes[f"matmul {m:,} x {k:,} x {n:,}"] = m, k, n
    cases = {}
    for precision in shapes.precisions:
        drawn = partial(torch.randn, device=base.device, dtype=DTYPES[precision])
        for name, (m, k, n) in sizes.items():
            call, operations = partial(F.linear, drawn(m, k), drawn(n, k)), 2 * m * k * n
            cases[named(name, precision)] = Case(call, (), None, operations, None, precision, yardstick=True)
    return cases


def copy(device: torch.device) -> Case:
    """A copy within memory."""
    return Case(partial(space(COPIED, device).copy_, space(COPIED, device)), moved=2 * COPIED, yardstick=True)
