"""What the data loader gives, against what training takes."""

from __future__ import annotations

import time
from typing import Any

import torch

from mrt5cli.benchmark.cases import Shapes
from mrt5cli.recipe import EmbeddedSource, SpanCorruptionTask
from mrt5cli.tasks.base import build_task

SECONDS = 3.0


def loader_rates(base: Any, shapes: Shapes, done: Any) -> dict[str, Any]:
    """Source bytes a second: span corruption made on the fly by one process, and forward with backward."""
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
    done("data", 1, 2)

    device = next(base.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    base.train()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        base(**batch, use_cache=False).loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    base.train(False)
    base.zero_grad(set_to_none=True)
    done("data", 2, 2)
    takes = int(batch["input_ids"].ne(0).sum()) / min(seconds)
    return {
        "what": "data",
        "cases": [
            {"name": name, "bytes_per_second": rate, "shown": f"{rate / 1e6:,.3f} MB/s", "ratios": []}
            for name, rate in (("loader gives", gives), ("training takes", takes))
        ],
        "parity": {},
        "notes": [f"the loader, one process, gives {gives / takes:,.0f} times what training takes"],
    }
