"""Products with the weights of one encoder block: by PyTorch's linear layers, and as our models make them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mrt5cli.benchmark.models import Shapes, ours
from mrt5cli.benchmark.suite import Case, Checks, Parity, Suite
from mrt5cli.models import MrT5ForConditionalGeneration

BOTH_WAYS = "forward and backward"
PYTORCH, OURS = "PyTorch", "ours"
Layer = Callable[[Tensor], Tensor]


def products(base: MrT5ForConditionalGeneration, shapes: Shapes) -> Suite:
    """The feed-forward layer and one projection of attention, on as many rows as source and target have.

    Both sides compute the activation in one kernel: what differs is who multiplies, and where it is applied.
    """
    suite = Suite("products")
    model: Any = ours(base, "packed", deletion_type="none")
    block = model.encoder.block[0]
    inner, query = block.layer[-1].DenseReluDense, block.layer[0].SelfAttention.q
    generator = torch.Generator().manual_seed(0)
    weights = [inner.wi_0.weight, inner.wi_1.weight, inner.wo.weight]

    def gated(states: Tensor) -> Tensor:
        gate, factor, outer = weights
        active = F.gelu(F.linear(states, gate), approximate="tanh")
        return F.linear(active * F.linear(states, factor), outer)

    def projected(states: Tensor) -> Tensor:
        return F.linear(states, query.weight)

    layers: dict[str, tuple[Layer, Layer, list[Tensor]]] = {
        "feed-forward": (gated, inner, weights),
        "projection": (projected, query, [query.weight]),
    }
    for rows in dict.fromkeys((shapes.batch * shapes.length, shapes.batch * shapes.target)):
        states = torch.randn(rows, base.config.d_model, generator=generator).to(query.weight.device)
        for name, (plain, layer, of_layer) in layers.items():
            for who, called in ((PYTORCH, plain), (OURS, layer)):
                _add(suite, f"{name}, {rows:,} rows", who, called, states, of_layer)

    def parity(case: Case) -> Parity:
        pairs = zip(suite.cases[case.against[0]].call(), case.call(), strict=True)
        found = [Parity.of(one / one.abs().max(), other / one.abs().max()) for one, other in pairs]
        return max(found, key=lambda parity: parity.difference)

    def checks() -> Checks:
        for name, case in suite.cases.items():
            if case.against:
                yield name, partial(parity, case)

    suite.checks = checks
    return suite


def _add(suite: Suite, name: str, who: str, layer: Layer, states: Tensor, weights: list[Tensor]) -> None:
    def forward() -> list[Tensor]:
        with torch.inference_mode():
            return [layer(states)]

    def both_ways() -> list[Tensor]:
        given = states.detach().requires_grad_()
        output = layer(given)
        slopes = torch.ones_like(output)
        return [output.detach(), *torch.autograd.grad(output, [given, *weights], slopes)]

    operations = 2 * len(states) * sum(weight.numel() for weight in weights)
    for how, call, times in (("", forward, 1), (f", {BOTH_WAYS}", both_ways, 3)):
        against = [] if who == PYTORCH else [f"{name}{how}, {PYTORCH}"]
        suite.cases[f"{name}{how}, {who}"] = Case(call, against, operations=times * operations)
