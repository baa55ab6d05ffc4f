"""Compiled blocks against plain ones: what the first call costs, how often it recompiles, what it brings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mrt5cli.benchmark.inputs import batch
from mrt5cli.benchmark.models import ours, steer
from mrt5cli.benchmark.rounds import kept_lengths, wait
from mrt5cli.benchmark.suite import Case, Parity, Shapes, Suite
from mrt5cli.models.compiling import compile_blocks
from mrt5cli.runtime import check_compiler

LENGTHS = 10
"""Source lengths that compiled blocks must serve without compiling again."""


@dataclass(frozen=True)
class Costs:
    """What compiling cost.

    Attributes:
        first_call_seconds: of the first call.
        graphs: compiled in it.
        recompiled: graphs compiled when the same was called on `LENGTHS` other lengths.
    """

    first_call_seconds: float
    graphs: int
    recompiled: int

    def sentence(self) -> str:
        return (
            f"the first call compiles {self.graphs} graphs in {self.first_call_seconds:,.1f} s; {LENGTHS} "
            f"other lengths compile {self.recompiled} more"
        )


def compiled(base: Any, shapes: Shapes) -> tuple[Suite, dict[str, Costs]]:
    """Forward passes and training steps, dense and deleted, plain and with compiled blocks.

    Compiling happens here, before anything is timed.

    Returns:
        The suite, and of each compiled case what compiling cost.

    Raises:
        UserError: there is no compiler.
    """
    check_compiler(next(base.parameters()).device, "--what compile")
    suite, costs = Suite("compile"), {}
    calls: dict[str, Callable[[int], Any]] = {}
    tags: list[tuple[str, float | None, str]] = [("dense", None, "even")]
    tags += [(f"packed {tag}", rate, spread) for tag, rate, spread in list(shapes.deletions())[:1]]
    for training in (False, True):
        for name, rate, spread in tags:
            step = f"{name}, {'training step' if training else 'forward'}"
            for how in ("", ", compiled"):
                model = ours(base, "packed", dropout_rate=0.0)
                if how:
                    compile_blocks(model)
                call = _call(base, model, shapes, training, rate, spread)
                calls[step + how] = call
                suite.cases[step + how] = Case(partial(call, shapes.length), [step] if how else [])
            costs[f"{step}, compiled"] = compiling_costs(calls[f"{step}, compiled"], shapes.length)

    def checks() -> Iterator[tuple[str, Parity]]:
        for name, _, _ in tags:
            plain, other = (calls[f"{name}, forward{how}"](shapes.length) for how in ("", ", compiled"))
            yield f"{name}, compiled", Parity.of(plain, other)

    suite.checks = checks
    return suite, costs


def _call(
    base: Any, model: Any, shapes: Shapes, training: bool, rate: float | None, spread: str
) -> Callable[[int], Any]:
    """A forward pass, or a training step, on sources of a given length."""
    hard = rate is not None
    model.train(training)

    def call(length: int) -> Tensor:
        ids, mask, labels = batch(base, Shapes(shapes.batch, length, shapes.target, ()))
        steer(model, kept_lengths(shapes.batch, length, rate or 0.0, spread), length)
        given = {"attention_mask": mask, "labels": labels, "hard_delete": hard, "use_cache": False}
        if not training:
            with torch.inference_mode():
                return model(ids, **given).logits
        out = model(ids, output_score_loss=not hard, **given)
        loss = out.loss if hard else out.loss + 0.5 * out.score_loss
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return call


def compiling_costs(call: Callable[[int], Any], length: int) -> Costs:
    """Call a compiled case for the first time, and then at many lengths."""
    from torch._dynamo.utils import counters

    def graphs() -> int:
        return int(counters["stats"]["unique_graphs"])

    before, start = graphs(), time.perf_counter()
    device = call(length).device
    wait(device)
    seconds, first = time.perf_counter() - start, graphs()
    for number in range(LENGTHS):
        call(length - 1 - number if length > 2 * LENGTHS else length + 1 + number)
    return Costs(seconds, first - before, graphs() - first)
