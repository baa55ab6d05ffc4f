"""Time of a forward pass, by the paper's protocol.

Synchronise, run the same teacher-forced forward pass several times, synchronise, divide. A pass before
it warms up. Times of different machines, batch sizes or dtypes are not comparable, so each result names them.
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
"""Consecutive forward passes a batch."""


@dataclass
class Stopwatch:
    """Adds up the time of batches.

    Attributes:
        seconds: of one pass over each batch timed so far.
        rows: rows of each of those batches.
    """

    device: torch.device
    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    def time(self, forward: Callable[[], object], rows: int) -> None:
        """Time one batch; the caller has run it once before, as warm-up."""

        def passes() -> None:
            for _ in range(PASSES):
                forward()

        wait(self.device)
        self.seconds.append(seconds_of(passes, self.device) / PASSES)
        self.rows.append(rows)

    @property
    def ms_per_example(self) -> float | None:
        """Milliseconds an example: time of all batches by number of examples, as the paper counts."""
        return 1000 * sum(self.seconds) / sum(self.rows) if self.rows else None

    @property
    def median_ms_per_example(self) -> float | None:
        """The median batch's milliseconds an example, which a disturbed batch does not move."""
        shares = [1000 * seconds / rows for seconds, rows in zip(self.seconds, self.rows, strict=True)]
        return median(shares) if shares else None


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """How long a call takes until the device has done its part: on a GPU between two events in its queue.

    What is in the queue already is not counted, and while the GPU works on it the host may go ahead.
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
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def conditions(model: MrT5ForConditionalGeneration) -> dict[str, str | int]:
    """What a time or a rounding depends on: device, its name, dtype of the weights, threads, attention."""
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
