"""Benchmark of compiled against plain blocks: cost of the first call, recompilations, speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from mrt5cli.benchmark.forward import logits
from mrt5cli.benchmark.models import Shapes, Variant, implementations, kept_lengths, ours
from mrt5cli.benchmark.suite import OTHER_LENGTHS, Case, Checks, Costs, Parity, Suite
from mrt5cli.benchmark.training_step import scored
from mrt5cli.evaluation.timing import wait
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.compiling import compile_blocks

COMPILED = ", compiled"


def compiled(base: MrT5ForConditionalGeneration, shapes: Shapes) -> Suite:
    """Forward passes and training steps, plain and compiled, at the first deletion rate and precision.

    Compilation happens here, before anything is timed.
    """
    suite = Suite("compile")
    kinds: dict[str, float | None] = {"dense": None}
    if rates := [rate for rate in shapes.rates if rate]:
        kinds[f"packed {100 * rates[0]:g} % {shapes.spreads[0]}"] = rates[0]
    for training in (False, True):
        for name, rate in kinds.items():
            plain = f"{name}, {'training step' if training else 'forward'}"
            for how in ("", COMPILED):
                model = ours(base, implementations(base)[0], dropout_rate=0.0).train(training)
                call, costs = partial(_call, model, shapes, rate), None
                if how:
                    compile_blocks(model)
                    costs = compiling_costs(call, shapes.length)
                against = [plain] if how else []
                call, precision = partial(call, shapes.length), shapes.precisions[0]
                suite.cases[plain + how] = Case(call, against, precision=precision, compiling=costs)

    def parity(name: str, rate: float | None) -> Parity:
        exact = replace(shapes, precisions=["fp32"])
        oracle = _call(ours(base, implementations(base)[0]), exact, rate, shapes.length)
        rounded, found = (suite.cases[f"{name}, forward{how}"].run() for how in ("", COMPILED))
        return Parity.of(oracle, found, rounded)

    def checks() -> Checks:
        for name, rate in kinds.items():
            yield f"{name}{COMPILED}", partial(parity, name, rate)

    suite.checks = checks
    return suite


def _call(model: MrT5ForConditionalGeneration, shapes: Shapes, rate: float | None, length: int) -> Tensor:
    """The logits of a forward pass, or in training mode the loss of a step, which is soft without a rate."""
    kept = None if rate is None else kept_lengths(shapes.batch, length, rate, shapes.spreads[0])
    variant = Variant(model, replace(shapes, length=length), kept, shapes.precisions[0])
    if not model.training:
        return logits(variant)
    loss: Tensor = scored(variant) if rate is None else variant().loss
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    return loss.detach()


def compiling_costs(call: Callable[[int], Tensor], length: int) -> Costs:
    """The costs of calling a compiled case for the first time, and then at other lengths."""
    from torch._dynamo.utils import counters

    def graphs() -> int:
        return int(counters["stats"]["unique_graphs"])

    before, start = graphs(), time.perf_counter()
    wait(call(length).device)
    seconds, first = time.perf_counter() - start, graphs()
    for number in range(OTHER_LENGTHS):
        call(length - 1 - number if length > 2 * OTHER_LENGTHS else length + 1 + number)
    return Costs(seconds, first - before, graphs() - first)
