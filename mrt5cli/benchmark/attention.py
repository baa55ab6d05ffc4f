"""softmax1 attention of one encoder layer with its bias: written out, eager, fused; and what bounds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from mrt5cli.benchmark import written_out
from mrt5cli.benchmark.rounds import Timing
from mrt5cli.benchmark.suite import Case, Parity, Shapes, Suite
from mrt5cli.models.attention import IMPLEMENTATIONS
from mrt5cli.models.score_loss import SCORE_CEILING, ScorePenalty

LARGE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of a matrix product that shows what the machine can do."""
MATMULS, EXP, LARGEST = "its two matmuls", "exp of its scores", "large matmul"
FUNCTIONS = {
    "written out": written_out.NAME,
    "eager": IMPLEMENTATIONS["eager"],
    "fused": IMPLEMENTATIONS["packed"],
}
BOTH_WAYS, SCORE_LOSS = "forward and backward", "with score loss"


def attention(base: Any, shapes: Shapes) -> Suite:
    """Forward; forward and backward of queries, keys, values and bias; the same with the score loss.

    On a GPU with bf16, in bfloat16.
    """
    config, suite = base.config, Suite("attention")
    device = next(base.parameters()).device
    half = shapes.bf16 and device.type == "cuda"
    dtype = torch.bfloat16 if half else torch.float32
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    heads, width, length = config.num_heads, config.d_kv, shapes.length
    # Scores of a standard deviation of about 3, some above the ceiling of the score loss.
    q, k, v = (drawn(shapes.batch, heads, length, width) for _ in range(3))
    q = q * (3 * width**-0.5)
    bias = drawn(1, heads, length, length)
    layer = base.encoder.block[0].layer[0].SelfAttention
    product = 2 * shapes.batch * heads * length * length * width  # operations of one matmul
    registered: Any = AttentionInterface()  # type: ignore[no-untyped-call]
    functions = {name: registered[key] for name, key in FUNCTIONS.items()}

    def output(function: Any, *parts: Tensor, **how: Any) -> tuple[Tensor, Any]:
        query, key, value, added = parts
        result: tuple[Tensor, Any] = function(layer, query, key, value, None, 0.0, position_bias=added, **how)
        return result

    def forward(function: Any) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.inference_mode():
                return output(function, q, k, v, bias)[0]

        return call

    def both_ways(function: Any, score: str | None) -> Callable[[], list[Tensor]]:
        def call() -> list[Tensor]:
            parts = [part.detach().requires_grad_() for part in (q, k, v, bias)]
            penalty = ScorePenalty("row") if score == "collected" else None
            result, scores = output(
                function, *parts, **({} if penalty is None else {"score_penalty": penalty})
            )
            total = result.float().square().sum()
            if penalty is not None:
                total = total + 100 * penalty.mean()
            elif score == "returned":
                total = total + 100 * (scores.clamp(min=SCORE_CEILING).mean() - SCORE_CEILING)
            total.backward()  # type: ignore[no-untyped-call]
            return [part.grad for part in parts if part.grad is not None]

        return call

    for name, function in functions.items():

        def against(what: str, name: str = name) -> list[str]:
            order = list(FUNCTIONS)
            return [f"{slower} {what}" for slower in order[: order.index(name)]]

        suite.cases[f"{name} forward"] = Case(forward(function), against("forward"), operations=2 * product)
        for what, score in ((BOTH_WAYS, None), (f"{BOTH_WAYS} {SCORE_LOSS}", _score_loss_of(name))):
            suite.cases[f"{name} {what}"] = Case(
                both_ways(function, score), against(what), operations=6 * product
            )
    _add_bounds(suite, q, k, v, product)

    def checks() -> Iterator[tuple[str, Parity]]:
        oracle = suite.cases["written out forward"].call()
        for name in ("eager", "fused"):
            yield f"{name} forward", _parity(oracle, suite.cases[f"{name} forward"].call(), half)
        for what in (BOTH_WAYS, f"{BOTH_WAYS} {SCORE_LOSS}"):
            wanted = suite.cases[f"written out {what}"].call()
            for name in ("eager", "fused"):
                pairs = zip(wanted, suite.cases[f"{name} {what}"].call(), strict=True)
                found = [
                    _parity(grad / grad.abs().max(), other / grad.abs().max(), half) for grad, other in pairs
                ]
                yield f"{name} {what}", max(found, key=lambda parity: parity.difference)

    suite.checks, suite.notes = checks, lambda timings: _notes(suite, timings)
    return suite


def _score_loss_of(name: str) -> str:
    return "returned" if name == "written out" else "collected"


def _parity(oracle: Tensor, other: Tensor, half: bool) -> Parity:
    parity = Parity.of(oracle.float(), other.float())
    return Parity(parity.difference, parity.size, 5e-2 * max(1.0, parity.size)) if half else parity


def _add_bounds(suite: Suite, q: Tensor, k: Tensor, v: Tensor, product: int) -> None:
    """What no fused core can be faster than: its matrix products, and an exponential a score."""
    with torch.inference_mode():
        scores = torch.matmul(q, k.transpose(-1, -2))
        number = LARGE.get(q.device.type, LARGE["cpu"])
        square = torch.ones(number, number, device=q.device, dtype=q.dtype)
        space, result, weights = torch.empty_like(scores), torch.empty_like(q), torch.empty_like(scores)

    def matmuls() -> None:
        with torch.inference_mode():
            torch.matmul(q, k.transpose(-1, -2), out=space)
            torch.matmul(scores, v, out=result)

    def exponentials() -> None:
        with torch.inference_mode():
            torch.exp(scores, out=weights)

    def large() -> None:
        with torch.inference_mode():
            torch.matmul(square, square)

    suite.cases[MATMULS] = Case(matmuls, operations=2 * product)
    suite.cases[EXP] = Case(exponentials)
    suite.cases[LARGEST] = Case(large, operations=2 * number**3)


def _notes(suite: Suite, timings: Mapping[str, Timing]) -> list[str]:
    """Where the time of the fused forward pass goes, by the times of its parts in the same rounds."""

    def rate(name: str) -> float:
        return (suite.cases[name].operations or 0) / timings[name].median

    fused, parts = timings["fused forward"].median, [timings[name].median for name in (MATMULS, EXP)]
    peak = rate(LARGEST)
    least = (suite.cases["fused forward"].operations or 0) / peak
    possible = timings["written out forward"].median / least
    here, forth, both = (100 * rate(name) / peak for name in (MATMULS, "fused forward", f"fused {BOTH_WAYS}"))
    return [
        f"a large matmul reaches {peak / 1e9:,.0f} GFLOP/s, matmuls of these shapes {here:.0f} % of that, "
        f"the fused forward pass {forth:.0f} %, with its backward pass {both:.0f} %",
        f"one after the other and through memory, its two matmuls take {1000 * parts[0]:,.2f} ms and an exp "
        f"a score {1000 * parts[1]:,.2f} ms; the fused forward pass takes {1000 * fused:,.2f} ms",
        f"with its matmuls as fast as a large one and the rest for nothing it would take {1000 * least:,.2f} "
        f"ms, {possible:.1f} times faster than written out",
    ]
