"""softmax1 attention of one encoder layer with its bias, written out and fused, beside a large matmul."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Core:
    """Attention of one encoder layer with its bias, to be computed by one function or another.

    Attributes:
        layer: whose configuration the functions read.
        parts: queries, keys and values (B, heads, L, width) and the bias (1, heads, L, L).
    """

    layer: torch.nn.Module
    parts: Sequence[Tensor]

    @classmethod
    def of(cls, base: MrT5ForConditionalGeneration, shapes: Shapes, dtype: torch.dtype) -> Core:
        """Random scores of a standard deviation of about 3, some above the ceiling of the score loss."""
        generator = torch.Generator().manual_seed(0)
        heads, width, length = base.config.num_heads, base.config.d_kv, shapes.length
        sizes = [(shapes.batch, heads, length, width)] * 3 + [(1, heads, length, length)]
        q, *others = (torch.randn(size, generator=generator).to(base.device, dtype) for size in sizes)
        layer = base.get_submodule("encoder.block.0.layer.0.SelfAttention")
        return cls(layer, [q * (3 * width**-0.5), *others])

    def forward(self, function: Attention) -> list[Tensor]:
        with torch.inference_mode():
            return [self._output(function, self.parts)]

    def both_ways(self, function: Attention, *, score_loss: bool) -> list[Tensor]:
        """The gradients of the parts."""
        given = [part.detach().requires_grad_() for part in self.parts]
        penalty = ScorePenalty("row") if score_loss else None
        total = self._output(function, given, penalty).float().square().sum()
        (total if penalty is None else total + 100 * penalty.mean()).backward()  # type: ignore[no-untyped-call]
        return [part.grad for part in given if part.grad is not None]

    def _output(
        self, function: Attention, parts: Sequence[Tensor], penalty: ScorePenalty | None = None
    ) -> Tensor:
        *states, bias = parts
        return function(self.layer, *states, None, 0.0, position_bias=bias, score_penalty=penalty)[0]


def attention(
    base: MrT5ForConditionalGeneration, shapes: Shapes, functions: Mapping[str, Attention] | None = None
) -> Suite:
    """Forward; forward and backward of queries, keys, values and bias; the same with the score loss.

    On a GPU with bf16, in bfloat16. Each function is compared with those before it.
    """
    suite, device, functions = Suite("attention"), base.device, functions or implementations()
    half = shapes.bf16 and device.type == "cuda"
    dtype = torch.bfloat16 if half else torch.float32
    core = Core.of(base, shapes, dtype)
    product = 2 * core.parts[0].numel() * shapes.length  # operations of one matmul
    kinds: dict[str, tuple[Callable[[Attention], list[Tensor]], int]] = {
        "forward": (core.forward, 2),
        BOTH_WAYS: (partial(core.both_ways, score_loss=False), 6),
        f"{BOTH_WAYS} {SCORE_LOSS}": (partial(core.both_ways, score_loss=True), 6),
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
