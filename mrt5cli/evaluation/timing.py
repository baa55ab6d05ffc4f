"""The time of a forward pass, measured by the paper's protocol.

After a warm-up pass: synchronize, run the same teacher-forced forward pass several times, synchronize, and
divide. Times on different machines, batch sizes or dtypes are not comparable, so each result records them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch

from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.fast.choice import choose
from mrt5cli.runtime import device_name

PASSES = 5
"""Consecutive forward passes per batch."""


@dataclass
class Stopwatch:
    """Accumulates the times of batches.

    Attributes:
        seconds: time of one pass over each batch.
        rows: number of rows of each batch.
    """

    device: torch.device
    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def time(self, forward: Callable[[], object], rows: int) -> None:
        """Time one batch; the caller has run it once as a warm-up."""

        def passes() -> None:
            for _ in range(PASSES):
                forward()

        wait(self.device)
        self.seconds.append(seconds_of(passes, self.device) / PASSES)
        self.rows.append(rows)

    @property
    def ms_per_example(self) -> float | None:
        """Milliseconds per example: time of all batches divided by all examples, as in the paper."""
        return 1000 * sum(self.seconds) / sum(self.rows) if self.rows else None

    @property
    def median_ms_per_example(self) -> float | None:
        """The median batch's milliseconds per example, robust to a disturbed batch."""
        shares = [1000 * seconds / rows for seconds, rows in zip(self.seconds, self.rows, strict=True)]
        return median(shares) if shares else None


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, device work included; on a GPU measured between two events in its queue.

    Earlier work in the queue is not counted, and the host can queue the call while the GPU is busy.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    queue = torch.cuda.current_stream(device)
    begin.record(queue)
    call()
    end.record(queue)
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def wait(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def conditions(model: MrT5ForConditionalGeneration) -> dict[str, str | int]:
    """What times and rounding depend on: device and its name, dtype, threads, attention."""
    weight = next(model.parameters())
    device = weight.device
    attention = choose(model.config, device, weight.dtype, drops=False, score_per=None, trains=False)
    return {
        "device": str(device),
        "device_name": device_name(device),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "attention": attention.implementation,
    }
