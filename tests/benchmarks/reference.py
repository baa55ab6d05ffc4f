"""Attention as the authors' code computes it, and what bounds it, beside the suite of `mrt5 bench`."""

from __future__ import annotations

from dataclasses import replace

import torch

from mrt5cli.benchmark.attention import attention, implementations
from mrt5cli.benchmark.card import LARGEST
from mrt5cli.benchmark.models import Shapes
from mrt5cli.benchmark.reference import written_out
from mrt5cli.benchmark.suite import Case, Suite
from mrt5cli.models import MrT5ForConditionalGeneration

WRITTEN_OUT = "written out"


def attention_beside_reference(base: MrT5ForConditionalGeneration, shapes: Shapes) -> Suite:
    """The suite of `mrt5 bench --what attention`, its oracle written out, and what bounds a fused core: its
    matrix products, and an exponential a score. Of a CPU, in float32."""
    shapes = replace(shapes, precisions=["fp32"])
    suite = attention(base, shapes, {WRITTEN_OUT: written_out, **implementations(base)})
    heads, width = base.config.num_heads, base.config.d_kv
    q, k, v = torch.randn(3, shapes.batch, heads, shapes.length, width)
    scores = torch.matmul(q, k.transpose(-1, -2))
    space, result, weights = torch.empty_like(scores), torch.empty_like(q), torch.empty_like(scores)

    def matmuls() -> None:
        torch.matmul(q, k.transpose(-1, -2), out=space)
        torch.matmul(scores, v, out=result)

    suite.cases["its two matmuls"] = Case(matmuls, operations=4 * scores.numel() * width)
    suite.cases["exp of its scores"] = Case(lambda: torch.exp(scores, out=weights))
    suite.cases[LARGEST] = suite.cases.pop(LARGEST)
    return suite
