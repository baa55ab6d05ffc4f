"""A model as the reference computes it: in attention every step a tensor of its own, and scores handed out
for the loss; norms, feed-forward and linear layers are transformers' and PyTorch's.

What attention and training steps are compared with. Our own eager path computes the same, but keeps less for
the backward pass and returns no scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from mrt5cli.benchmark.attention import LARGEST, attention, implementations
from mrt5cli.benchmark.models import Shapes, Variant, ours
from mrt5cli.benchmark.suite import Case, Parity, Suite
from mrt5cli.benchmark.training_step import (
    SCORE_COEFFICIENT,
    gradient_parity,
    gradients,
    scored,
    soft_loss,
    step,
    train,
)
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.fast.parts import FAST
from mrt5cli.models.score_loss import SCORE_CEILING

NAME = "mrt5_bench_written_out"
REFERENCE, WRITTEN_OUT = "reference-like", "written out"


def softmax1(scores: Tensor) -> Tensor:
    """exp(x_i) / (1 + sum_j exp(x_j)) over the last dimension, differentiated step by step."""
    peak = scores.max(dim=-1, keepdim=True).values.clamp(min=0)
    shifted = torch.exp(scores - peak)
    return shifted / (torch.exp(-peak) + shifted.sum(dim=-1, keepdim=True))


def written_out(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    key_gate: Tensor | None = None,
    encoder_key_gate: Tensor | None = None,
    score_penalty: Any = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """What transformers calls; returns the scores before the gate where others return weights.

    Args:
        query, key, value: (B, N, Q or K, H).
        attention_mask, position_bias: additive, broadcasting to (B, N, Q, K).
        key_gate, encoder_key_gate: (B, K).

    Returns:
        Output (B, Q, N, H) and scores (B, N, Q, K).
    """
    scores = torch.matmul(query, key.transpose(-1, -2))
    for bias in (position_bias, attention_mask):
        scores = scores if bias is None else scores + bias
    if score_penalty is not None:
        score_penalty.add_mean(scores.clamp(min=SCORE_CEILING).mean() - SCORE_CEILING, cross=False)
    gate = encoder_key_gate if module.is_cross_attention else key_gate
    gated = scores if gate is None else scores + gate[:, None, None, :]
    config: Any = module.config
    weights = softmax1(gated.float()) if config.use_softmax1 else gated.float().softmax(dim=-1)
    weights = F.dropout(weights.to(value.dtype), p=dropout, training=dropout > 0)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), scores


AttentionInterface.register(NAME, written_out)
AttentionMaskInterface.register(NAME, eager_mask)


def reference_like(base: MrT5ForConditionalGeneration, **fields: Any) -> MrT5ForConditionalGeneration:
    """A model of the same weights that computes so."""
    model = ours(base, "eager", **fields)
    plain = {twin: own for own, twin in FAST.items()}
    for module in model.modules():
        module.__class__ = plain.get(type(module), type(module))
    for config in (model.config, model.encoder.config, model.decoder.config):
        config._attn_implementation = NAME
    return model


def attention_beside_reference(base: MrT5ForConditionalGeneration, shapes: Shapes) -> Suite:
    """The suite of `mrt5 bench --what attention`, its oracle written out, and what bounds a fused core: its
    matrix products, and an exponential a score."""
    suite = attention(base, shapes, {WRITTEN_OUT: written_out, **implementations()})
    heads, width = base.config.num_heads, base.config.d_kv
    dtype = torch.bfloat16 if shapes.bf16 and base.device.type == "cuda" else torch.float32
    q, k, v = torch.randn(3, shapes.batch, heads, shapes.length, width, device=base.device).to(dtype)
    scores = torch.matmul(q, k.transpose(-1, -2))
    space, result, weights = torch.empty_like(scores), torch.empty_like(q), torch.empty_like(scores)

    def matmuls() -> None:
        torch.matmul(q, k.transpose(-1, -2), out=space)
        torch.matmul(scores, v, out=result)

    suite.cases["its two matmuls"] = Case(matmuls, operations=4 * scores.numel() * width)
    suite.cases["exp of its scores"] = Case(lambda: torch.exp(scores, out=weights))
    suite.cases[LARGEST] = suite.cases.pop(LARGEST)
    return suite


def train_beside_reference(base: MrT5ForConditionalGeneration, shapes: Shapes) -> Suite:
    """The suite of `mrt5 bench --what train`, and a step that returns the scores of all layers to compute the
    score loss, as the authors' does."""
    suite, model = train(base, shapes), reference_like(base, dropout_rate=0.0)

    def returned_scores(variant: Variant) -> Tensor:
        out = variant(output_attentions=True)
        layers = (*out.encoder_attentions[base.config.delete_gate_layer :], *out.cross_attentions)
        excess = [scores.clamp(min=SCORE_CEILING).mean() - SCORE_CEILING for scores in layers]
        return soft_loss(out) + SCORE_COEFFICIENT * torch.stack(excess).mean()

    cases = {REFERENCE: step(Variant(model, shapes), returned_scores)}
    if shapes.bf16:
        half = Variant(model, shapes, half=True)
        cases[f"{REFERENCE} bf16"] = step(half, returned_scores, [REFERENCE])
    for name, case in suite.cases.items():
        other = f"{REFERENCE} bf16" if name.endswith("bf16") else REFERENCE
        cases[name] = replace(case, against=[*case.against, other])
    suite.cases, checks = cases, suite.checks

    def with_reference() -> Iterator[tuple[str, Parity]]:
        yield from checks()
        eager = ours(base, "eager", dropout_rate=0.0)
        mine = gradients(eager, step(Variant(eager, shapes), scored))
        yield f"gradients of {REFERENCE}", gradient_parity(mine, gradients(model, cases[REFERENCE]))

    suite.checks = with_reference
    return suite
