"""What the data loader gives, against what training takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from mrt5cli.benchmark.models import ours
from mrt5cli.benchmark.rounds import wait
from mrt5cli.benchmark.suite import Shapes
from mrt5cli.recipe import EmbeddedSource, SpanCorruptionTask
from mrt5cli.tasks.base import build_task
from mrt5cli.text import byte_size

SECONDS = 2.0
STEPS = 3


def loader_rates(base: Any, shapes: Shapes, done: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Source bytes a second: span corruption made on the fly by one process, and a training step.

    The step is the quickest there is, on the loader's own batches: a soft step without score loss, whose
    optimizer costs nothing. A real one takes less, and so the factor is a lower bound.
    """
    length = max(64, shapes.length)  # shorter inputs have no room for a corrupted span
    section = SpanCorruptionTask(
        kind="span_corruption", source=EmbeddedSource(kind="embedded"), input_length=length
    )
    stream = iter(build_task(section).train_stream(batch_size=shapes.batch, seed=0))
    batch = next(stream)
    taken, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        taken += int(next(stream)["input_ids"].ne(0).sum())
    gives = taken / (time.perf_counter() - start)
    done("data", 1, STEPS + 2)

    device = next(base.parameters()).device
    model = ours(base, "packed", dropout_rate=0.0).train()
    rates = []
    for number in range(STEPS + 1):
        batch = {name: tensor.to(device) for name, tensor in next(stream).items()}
        wait(device)
        start = time.perf_counter()
        model(**batch, use_cache=False).loss.backward()
        wait(device)
        if number:  # the first one warms up
            rates.append(int(batch["input_ids"].ne(0).sum()) / (time.perf_counter() - start))
        model.zero_grad(set_to_none=True)
        done("data", number + 2, STEPS + 2)
    takes = median(rates)
    return {
        "what": "data",
        "cases": [
            {"name": name, "bytes_per_second": rate, "shown": f"{byte_size(rate)}/s", "ratios": []}
            for name, rate in (("loader gives", gives), ("training takes", takes))
        ],
        "parity": {},
        "notes": [f"the loader, one process, gives {gives / takes:,.0f} times what training takes"],
        "factor": gives / takes,
    }
