"""Compiled blocks against plain ones: what the first call costs, how often it recompiles, what it brings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mrt5cli.benchmark.cases import Case, Parity, Suite
from mrt5cli.benchmark.inputs import Shapes, batch, kept_lengths
from mrt5cli.benchmark.models import ours, steer
from mrt5cli.benchmark.rounds import wait
from mrt5cli.benchmark.training_step import SCORE_COEFFICIENT
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.compiling import compile_blocks

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


def compiled(base: MrT5ForConditionalGeneration, shapes: Shapes) -> tuple[Suite, dict[str, Costs]]:
    """Forward passes and training steps, dense and at the first of the deletion rates, plain and compiled.

    Compiling happens here, before anything is timed.

    Returns:
        The suite, and of each compiled case what compiling cost.
    """
    suite, costs = Suite("compile"), {}
    kinds: dict[str, float | None] = {"dense": None}
    if rates := [rate for rate in shapes.rates if rate]:
        kinds[f"packed {100 * rates[0]:g} % {shapes.spreads[0]}"] = rates[0]
    for training in (False, True):
        for name, rate in kinds.items():
            plain = f"{name}, {'training step' if training else 'forward'}"
            for how in ("", ", compiled"):
                model = ours(base, "packed", dropout_rate=0.0).train(training)
                call = partial(_step if training else _forward, model, shapes, rate)
                if how:
                    compile_blocks(model)
                    costs[plain + how] = compiling_costs(call, shapes.length)
                suite.cases[plain + how] = Case(partial(call, shapes.length), [plain] if how else [])

    def checks() -> Iterator[tuple[str, Parity]]:
        for name in kinds:
            plain, other = (suite.cases[f"{name}, forward{how}"].call() for how in ("", ", compiled"))
            yield f"{name}, compiled", Parity.of(plain, other)

    suite.checks = checks
    return suite, costs


def _forward(model: MrT5ForConditionalGeneration, shapes: Shapes, rate: float | None, length: int) -> Tensor:
    with torch.inference_mode():
        return _output(model, shapes, rate, length).logits


def _step(model: MrT5ForConditionalGeneration, shapes: Shapes, rate: float | None, length: int) -> Tensor:
    """A soft training step with score loss, or a hard one."""
    out = _output(model, shapes, rate, length, output_score_loss=rate is None)
    loss: Tensor = out.loss + SCORE_COEFFICIENT * out.score_loss if rate is None else out.loss
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    return loss.detach()


def _output(
    model: MrT5ForConditionalGeneration, shapes: Shapes, rate: float | None, length: int, **how: Any
) -> Any:
    if rate is not None:
        steer(model, kept_lengths(shapes.batch, length, rate, shapes.spreads[0]), length)
    ids, mask, labels = batch(model, replace(shapes, length=length))
    hard = rate is not None
    return model(ids, attention_mask=mask, labels=labels, use_cache=False, hard_delete=hard, **how)


def compiling_costs(call: Callable[[int], Tensor], length: int) -> Costs:
    """Call a compiled case for the first time, and then at many lengths."""
    from torch._dynamo.utils import counters

    def graphs() -> int:
        return int(counters["stats"]["unique_graphs"])

    before, start = graphs(), time.perf_counter()
    wait(call(length).device)
    seconds, first = time.perf_counter() - start, graphs()
    for number in range(LENGTHS):
        call(length - 1 - number if length > 2 * LENGTHS else length + 1 + number)
    return Costs(seconds, first - before, graphs() - first)
