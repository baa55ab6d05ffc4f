"""What the data loader gives, against what training takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from mrt5cli.benchmark.models import Shapes, ours
from mrt5cli.benchmark.suite import Case, Ratio, Suite
from mrt5cli.evaluation.timing import wait
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.recipe import EmbeddedSource, SpanCorruptionTask
from mrt5cli.tasks.base import build_task

GIVES, TAKES = "loader gives 1 MB in", "training takes 1 MB in"
SECONDS = 2.0
STEPS = 3


def loader_rates(
    base: MrT5ForConditionalGeneration, shapes: Shapes, done: Callable[[str, int, int], None]
) -> Suite:
    """Seconds a megabyte of source: span corruption made on the fly by one process, and a training step.

    The step is the quickest there is, on the loader's own batches: a soft step without score loss, whose
    optimizer costs nothing. A real one takes less, and so the factor is a lower bound.
    """
    length = max(64, shapes.length)  # shorter inputs have no room for a corrupted span
    section = SpanCorruptionTask(
        kind="span_corruption", source=EmbeddedSource(kind="embedded"), input_length=length
    )
    stream = iter(build_task(section).train_stream(batch_size=shapes.batch, seed=0))
    next(stream)
    made, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        made += int(next(stream)["input_ids"].ne(0).sum())
    gives = 1e6 * (time.perf_counter() - start) / made
    done("data", 1, STEPS + 2)

    model = ours(base, "packed", dropout_rate=0.0).train()
    seconds = []
    for number in range(STEPS + 1):
        batch = {name: tensor.to(base.device) for name, tensor in next(stream).items()}
        wait(base.device)
        start = time.perf_counter()
        model(**batch, use_cache=False).loss.backward()
        wait(base.device)
        if number:  # the first one warms up
            seconds.append(1e6 * (time.perf_counter() - start) / int(batch["input_ids"].ne(0).sum()))
        model.zero_grad(set_to_none=True)
        done("data", number + 2, STEPS + 2)
    takes = median(seconds)
    factor = Ratio(TAKES, *[takes / gives] * 3, fastest=min(seconds) / gives)
    nothing = lambda: None  # both are timed above
    return Suite(
        "data",
        {
            TAKES: Case(nothing, rounds=seconds),
            GIVES: Case(nothing, [TAKES], rounds=[gives], ratios=[factor]),
        },
    )
