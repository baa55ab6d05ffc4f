"""softmax1 attention with T5's additive biases, registered with transformers under two names.

`mrt5_eager` writes every step out and is the oracle; `mrt5_sdpa` hands the same sum of biases to PyTorch's
fused kernel. Each is registered together with its mask function: an attention function without one gets no
mask at all.

Legend: B batch, N heads, Q queries, K keys, H head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

SCORE_CEILING = 5.0
"""Attention scores above this are penalised by the score loss (paper, appendix D)."""


class _Softmax1(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        # The implicit extra logit is 0, so the stabilising maximum is never below 0.
        peak = scores.amax(dim=-1, keepdim=True).clamp_(min=0)
        weights = (scores - peak).exp_()
        weights.div_(weights.sum(dim=-1, keepdim=True) + (-peak).exp_())
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # softmax1 is a softmax with one more logit held at 0, so the Jacobian among the others is the
        # softmax's.
        (weights,) = ctx.saved_tensors
        weighted = grad * weights
        return weighted.sub_(weights * weighted.sum(dim=-1, keepdim=True))


def softmax1(scores: Tensor) -> Tensor:
    """exp(x_i) / (1 + sum_j exp(x_j)) over the last dimension; sums to 0 where nothing is visible."""
    return _Softmax1.apply(scores)


class _ScoreExcess(torch.autograd.Function):
    """Sum of max(score, ceiling) - ceiling over all scores, recomputing the scores in backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(query, key, bias)
        return (_scores(query, key, bias) - SCORE_CEILING).clamp_(min=0).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        query, key, bias = ctx.saved_tensors
        above = (_scores(query, key, bias) > SCORE_CEILING).to(query.dtype) * grad
        bias_grad = above.sum_to_size(bias.shape) if bias is not None and ctx.needs_input_grad[2] else None
        return above @ key, above.transpose(-1, -2) @ query, bias_grad


class ScorePenalty:
    """Collects the score loss over the layers of one forward pass, without keeping any score tensor.

    The loss is the mean over layers of mean(max(score, 5)) - 5, with scores taken after position bias and
    mask and before the gate (paper, appendix D; it covers the encoder from the gated block on and all
    cross-attention).
    """

    def __init__(self) -> None:
        self.layer_means: list[Tensor] = []

    def add(self, query: Tensor, key: Tensor, bias: Tensor | None) -> None:
        """Add one layer's (B, N, Q, H) queries and (B, N, K, H) keys."""
        entries = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
        with torch.autocast(query.device.type, enabled=False):
            excess = _ScoreExcess.apply(query.float(), key.float(), None if bias is None else bias.float())
        self.layer_means.append(excess / entries)

    def mean(self) -> Tensor:
        """The score loss, a scalar at least 0."""
        return torch.stack(self.layer_means).mean()


def _scores(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    scores = torch.matmul(query, key.transpose(-1, -2))  # [B, N, Q, K]
    return scores if bias is None else scores + bias


def _sum_biases(*biases: Tensor | None) -> Tensor | None:
    total = None
    for bias in biases:
        if bias is not None:
            total = bias if total is None else total + bias
    return total


Core = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, float], tuple[Tensor, Tensor | None]]


def _eager(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, one: bool, dropout: float
) -> tuple[Tensor, Tensor]:
    scores = _scores(query, key, bias).float()
    weights = (softmax1(scores) if one else scores.softmax(dim=-1)).to(value.dtype)
    weights = F.dropout(weights, p=dropout, training=dropout > 0)
    return torch.matmul(weights, value), weights


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, one: bool, dropout: float
) -> tuple[Tensor, None]:
    if one:
        # softmax1 is a softmax over one more key, whose score and value are 0.
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
        if bias is not None:
            bias = F.pad(bias.expand(*bias.shape[:-1], key.shape[2] - 1), (0, 1))
    bias = None if bias is None else bias.to(query.dtype)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=1.0)
    return output, None


def _attention(core: Core) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function that transformers calls, around a core that knows one additive bias."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        position_bias: Tensor | None = None,
        key_gate: Tensor | None = None,
        encoder_key_gate: Tensor | None = None,
        score_penalty: ScorePenalty | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """T5 attention, unscaled, with softmax1 where the configuration asks for it.

        Args:
            module: the T5Attention it runs in.
            query, key, value: (B, N, Q or K, H).
            attention_mask: additive, broadcasting to (B, N, Q, K).
            dropout: probability of dropping an attention weight; 0 outside training.
            position_bias: additive, broadcasting to (B, N, Q, K).
            key_gate: (B, K) soft delete gate, added to every score of a key in encoder self-attention.
            encoder_key_gate: the same for cross-attention.
            score_penalty: collects the score loss.

        Returns:
            Output (B, Q, N, H), and attention weights (B, N, Q, K) or None.
        """
        bias = _sum_biases(position_bias, attention_mask)
        decoder_self = module.is_decoder and not module.is_cross_attention
        if score_penalty is not None and not decoder_self:
            score_penalty.add(query, key, bias)  # the score loss looks at scores before the gate joins
        gate = encoder_key_gate if module.is_cross_attention else key_gate
        bias = _sum_biases(bias, None if gate is None else gate[:, None, None, :])
        output, weights = core(query, key, value, bias, module.config.use_softmax1, dropout)
        return output.transpose(1, 2).contiguous(), weights

    return attention


IMPLEMENTATIONS = {"eager": "mrt5_eager", "sdpa": "mrt5_sdpa"}
"""`attn_implementation` as users write it, and the name it is registered under."""


def register() -> None:
    """Make both attention functions known to transformers, each with an additive mask."""
    for name, core in (("mrt5_eager", _eager), ("mrt5_sdpa", _sdpa)):
        AttentionInterface.register(name, _attention(core))
        AttentionMaskInterface.register(name, eager_mask)


register()
