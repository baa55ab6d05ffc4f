"""softmax1 attention of one encoder layer with its bias, written out and fused, beside a large matmul."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from mrt5cli.benchmark.models import Shapes
from mrt5cli.benchmark.suite import Case, Parity, Suite
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.attention import IMPLEMENTATIONS
from mrt5cli.models.score_loss import ScorePenalty

Attention = Callable[..., tuple[Tensor, Any]]
BOTH_WAYS, SCORE_LOSS, LARGEST = "forward and backward", "with score loss", "large matmul"
LARGE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of a matrix product that shows what the machine can do."""


def implementations() -> dict[str, Attention]:
    """Our attention functions, by their names here; the first is the oracle."""
    registered: Mapping[str, Attention] = AttentionInterface()  # type: ignore[no-untyped-call]
    return {"eager": registered[IMPLEMENTATIONS["eager"]], "fused": registered[IMPLEMENTATIONS["packed"]]}


def attention(
    base: MrT5ForConditionalGeneration, shapes: Shapes, functions: Mapping[str, Attention] | None = None
) -> Suite:
    """Forward; forward and backward of queries, keys, values and bias; the same with the score loss.

    On a GPU with bf16, in bfloat16. Each function is compared with those before it.
    """
    config, suite, device = base.config, Suite("attention"), base.device
    functions = functions or implementations()
    half = shapes.bf16 and device.type == "cuda"
    dtype = torch.bfloat16 if half else torch.float32
    generator = torch.Generator().manual_seed(0)
    heads, width, length = config.num_heads, config.d_kv, shapes.length
    # Scores of a standard deviation of about 3, some above the ceiling of the score loss.
    sizes = [(shapes.batch, heads, length, width)] * 3 + [(1, heads, length, length)]
    q, k, v, bias = (torch.randn(size, generator=generator).to(device, dtype) for size in sizes)
    parts = q * (3 * width**-0.5), k, v, bias
    layer = base.get_submodule("encoder.block.0.layer.0.SelfAttention")
    product = 2 * shapes.batch * heads * length * length * width  # operations of one matmul

    def output(function: Attention, parts: Sequence[Tensor], **how: Any) -> Tensor:
        query, key, value, bias = parts
        return function(layer, query, key, value, None, 0.0, position_bias=bias, **how)[0]

    def forward(function: Attention) -> list[Tensor]:
        with torch.inference_mode():
            return [output(function, parts)]

    def both_ways(function: Attention, score_loss: bool) -> list[Tensor]:
        given = [part.detach().requires_grad_() for part in parts]
        penalty = ScorePenalty("row")
        result = output(function, given, **({"score_penalty": penalty} if score_loss else {}))
        total = result.float().square().sum()
        (total + 100 * penalty.mean() if score_loss else total).backward()  # type: ignore[no-untyped-call]
        return [part.grad for part in given if part.grad is not None]

    kinds: dict[str, tuple[Callable[[Attention], list[Tensor]], int]] = {
        "forward": (forward, 2),
        BOTH_WAYS: (partial(both_ways, score_loss=False), 6),
        f"{BOTH_WAYS} {SCORE_LOSS}": (partial(both_ways, score_loss=True), 6),
    }
    for place, (name, function) in enumerate(functions.items()):
        for kind, (call, products) in kinds.items():
            slower = [f"{other} {kind}" for other in list(functions)[:place]]
            operations = products * product
            suite.cases[f"{name} {kind}"] = Case(partial(call, function), slower, operations=operations)
    side = LARGE.get(device.type, LARGE["cpu"])
    square = torch.ones(side, side, device=device, dtype=dtype)
    suite.cases[LARGEST] = Case(lambda: torch.matmul(square, square), operations=2 * side**3)

    def checks() -> Iterator[tuple[str, Parity]]:
        oracle, *others = functions
        for kind in kinds:
            wanted = suite.cases[f"{oracle} {kind}"].call()
            for name in others:
                pairs = zip(wanted, suite.cases[f"{name} {kind}"].call(), strict=True)
                found = [_parity(one, other, kind != "forward", half) for one, other in pairs]
                yield f"{name} {kind}", max(found, key=lambda parity: parity.difference)

    suite.checks = checks
    return suite


def _parity(oracle: Tensor, other: Tensor, gradients: bool, half: bool) -> Parity:
    """Gradients are taken by their largest entry."""
    scale = oracle.float().abs().max() if gradients else 1.0
    parity = Parity.of(oracle.float() / scale, other.float() / scale)
    return Parity(parity.difference, parity.size, 5e-2 * max(1.0, parity.size)) if half else parity
