"""softmax1 attention with T5's additive biases, registered with transformers under four names.

`mrt5_eager` writes every step out and is the oracle; `mrt5_sdpa` runs a fused kernel; `mrt5_packed` does so
on batches without padding on a CPU, and `mrt5_triton` on a GPU, too. Where a kernel cannot do what is wanted
(dropping attention weights, returning them), the written-out steps take its place: results never depend on
the name. Each is registered together with its mask function: an attention function without one gets no mask
at all.

Legend: B batch, N heads, Q queries, K keys, H head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from mrt5cli.models.config import MrT5Config
from mrt5cli.models.fast.fused import fused, has_fused
from mrt5cli.models.score_loss import SCORE_CEILING, ScorePenalty, score_excess, scores_of


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


class T5AttentionModule(Protocol):
    """What our functions read of the T5Attention they run in."""

    config: MrT5Config
    is_decoder: bool
    is_cross_attention: bool


def _sum_biases(*biases: Tensor | None) -> Tensor | None:
    total = None
    for bias in biases:
        if bias is not None:
            total = bias if total is None else total + bias
    return total


@dataclass(frozen=True)
class AttentionOptions:
    """How attention is computed, and what is wanted beside the output.

    Attributes:
        softmax1: in place of softmax.
        dropout: probability of dropping an attention weight.
        weights: return the attention weights.
        excess: return the sum of max(score - 5, 0), scores with bias and before the gate.
        queries: (B, Q) bool, those whose scores are in that sum; None for all.
    """

    softmax1: bool
    dropout: float = 0.0
    weights: bool = False
    excess: bool = False
    queries: Tensor | None = None


class AttentionResult(NamedTuple):
    """What attention returns.

    Attributes:
        output: (B, N, Q, H).
        weights: (B, N, Q, K), or None where they are not wanted.
        excess: scalar, or None where it is not wanted.
    """

    output: Tensor
    weights: Tensor | None
    excess: Tensor | None


class Rows(Protocol):
    """Where the rows of a packed batch lie, with all that is added to their attention scores."""

    def as_source(self) -> Rows:
        """The same rows for cross-attention, which has no position bias."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: AttentionOptions,
        penalty: ScorePenalty | None,
        *,
        cross: bool,
    ) -> Tensor:
        """Attention within each row; queries of cross-attention are not packed.

        Args:
            query: (1, N, all positions, H), or (B, N, Q, H) in cross-attention.
            key, value: (1, N, all positions, H).
            penalty: collects the score loss.

        Returns:
            (1, all positions, N, H), or (B, Q, N, H) in cross-attention.
        """


Attention = Callable[
    [Tensor, Tensor, Tensor, Tensor | None, Tensor | None, AttentionOptions], AttentionResult
]


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    options: AttentionOptions,
) -> AttentionResult:
    """The oracle: every step written out.

    Args:
        query: (B, N, Q, H).
        key, value: (B, N, K, H).
        bias: additive, broadcasting to (B, N, Q, K), or None.
        gate: (B, K) added to every score of a key, or None.
    """
    excess = score_excess(query, key, bias, options.queries) if options.excess else None
    scores = scores_of(
        query, key, _sum_biases(bias, None if gate is None else gate[:, None, None, :])
    ).float()
    weights = (softmax1(scores) if options.softmax1 else scores.softmax(dim=-1)).to(value.dtype)
    weights = F.dropout(weights, p=options.dropout, training=options.dropout > 0)
    return AttentionResult(torch.matmul(weights, value), weights, excess)


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    options: AttentionOptions,
) -> AttentionResult:
    """The same by a fused kernel where there is one for what is wanted; see `eager`."""
    if options.weights:
        return eager(query, key, value, bias, gate, options)
    if not options.dropout and has_fused(query):
        if bias is not None:
            bias = bias.expand(*bias.shape[:2], query.shape[2], key.shape[2])
        ceiling = SCORE_CEILING if options.excess else None
        output, excess = fused(
            query, key, value, bias, options.softmax1, gate=gate, ceiling=ceiling, queries=options.queries
        )
        return AttentionResult(output, None, excess)
    if query.device.type == "cpu":  # the kernel there drops no weights, and its substitute is slow
        return eager(query, key, value, bias, gate, options)
    excess = score_excess(query, key, bias, options.queries) if options.excess else None
    bias = _sum_biases(bias, None if gate is None else gate[:, None, None, :])
    if options.softmax1:
        # softmax1 is a softmax over one more key, whose score and value are 0.
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
        if bias is not None:
            bias = F.pad(bias.expand(*bias.shape[:-1], key.shape[2] - 1), (0, 1))
    bias = None if bias is None else bias.to(query.dtype)
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=options.dropout, scale=1.0
    )
    return AttentionResult(output, None, excess)


def _attention(core: Attention) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function that transformers calls, around one that knows one additive bias."""

    def attention(
        module: T5AttentionModule,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        position_bias: Tensor | None = None,
        key_gate: Tensor | None = None,
        encoder_key_gate: Tensor | None = None,
        score_penalty: ScorePenalty | None = None,
        rows: Rows | None = None,
        encoder_rows: Rows | None = None,
        need_weights: bool = False,
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
            rows: of a packed batch; then Q and K are all positions of all rows, B is 1, and what is added
                to the scores is in here.
            encoder_rows: of a packed source; then keys and values of cross-attention are so.
            need_weights: return the attention weights, whatever the implementation.

        Returns:
            Output (B, Q, N, H), and attention weights (B, N, Q, K) or None.
        """
        cross = module.is_cross_attention
        if module.is_decoder and not cross:
            score_penalty = None
        options = AttentionOptions(
            softmax1=module.config.use_softmax1,
            dropout=dropout,
            weights=need_weights,
            excess=score_penalty is not None,
            queries=None if score_penalty is None else score_penalty.queries(cross=cross),
        )
        packed = encoder_rows if cross else rows
        if packed is not None:
            return packed.attend(query, key, value, options, score_penalty, cross=cross), None
        gate = encoder_key_gate if cross else key_gate
        bias = _sum_biases(position_bias, attention_mask)
        output, weights, excess = core(query, key, value, bias, gate, options)
        if excess is not None and score_penalty is not None:
            score_penalty.add(excess, query, key, cross=cross)
        return output.transpose(1, 2).contiguous(), weights

    return attention


IMPLEMENTATIONS = {
    "eager": "mrt5_eager",
    "sdpa": "mrt5_sdpa",
    "packed": "mrt5_packed",
    "triton": "mrt5_triton",
}
"""`attn_implementation` as users write it, and the name it is registered under."""


def register() -> None:
    """Make the attention functions known to transformers, each with an additive moptions."""
    for name in IMPLEMENTATIONS.values():
        core = eager if name == "mrt5_eager" else sdpa
        AttentionInterface.register(name, _attention(core))
        AttentionMaskInterface.register(name, eager_mask)


register()
