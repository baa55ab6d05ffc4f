"""A model that computes like the authors': attention materializes every step and returns scores for the loss;
norms, feed-forward and linear layers are transformers' and PyTorch's.

It is the baseline of attention and training steps. Our eager path computes the same but keeps less for the
backward pass and returns no scores.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from mrt5cli.benchmark.models import ours
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.fast.parts import FAST
from mrt5cli.models.score_loss import SCORE_CEILING

NAME = "mrt5_bench_written_out"


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
    """An attention function for transformers; returns scores before the gate instead of weights.

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
    """A model that shares the weights and computes like the authors'."""
    model = ours(base, "eager", **fields)
    plain = {twin: own for own, twin in FAST.items()}
    for module in model.modules():
        module.__class__ = plain.get(type(module), type(module))
    for config in (model.config, model.encoder.config, model.decoder.config):
        config._attn_implementation = NAME
    return model
