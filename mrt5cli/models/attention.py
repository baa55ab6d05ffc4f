"""softmax1 attention with T5's additive biases, registered with transformers under four names.

`mrt5_eager` writes every step out and is the oracle; `mrt5_sdpa` runs a fused kernel; `mrt5_packed` does so
on batches without padding on a CPU, and `mrt5_triton` on a GPU, too. Where a kernel cannot do what is wanted
(dropping attention weights, returning them), the written-out steps take its place: results never depend on
the name.

Legend: B batch, N heads, Q queries, K keys, H head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from mrt5cli.models.config import MrT5Config
from mrt5cli.models.fast.fused import fused, has_fused
from mrt5cli.models.score_loss import SCORE_CEILING, ScorePenalty, scores_of


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
    """What `attend` reads of the T5Attention it runs in."""

    config: MrT5Config
    is_decoder: bool
    is_cross_attention: bool


@dataclass(frozen=True)
class AttentionOptions:
    """How attention is computed, and what is wanted besides the output.

    Attributes:
        softmax1: in place of softmax.
        dropout: probability of dropping an attention weight.
        weights: return the attention weights.
        penalty: collects the score loss, from scores with bias and before the gate.
        cross: queries are the decoder's, keys the encoder's.
        bias: additive, broadcasting to (B, N, Q, K), or None.
        gate: (B, K) added to every score of a key, or None.
    """

    softmax1: bool
    dropout: float = 0.0
    weights: bool = False
    penalty: ScorePenalty | None = None
    cross: bool = False
    bias: Tensor | None = None
    gate: Tensor | None = None


class Rows(Protocol):
    """Where the rows of a packed batch lie, with all that is added to their attention scores."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """Attention within each row; queries of cross-attention are not packed.

        Args:
            query: (1, N, all positions, H), or (B, N, Q, H) in cross-attention.
            key, value: (1, N, all positions, H).

        Returns:
            (1, all positions, N, H), or (B, Q, N, H) in cross-attention.
        """


Attended = tuple[Tensor, Tensor | None]


def eager(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Attended:
    """The oracle: every step written out.

    Args:
        query: (B, N, Q, H).
        key, value: (B, N, K, H).

    Returns:
        Output (B, N, Q, H), and the attention weights (B, N, Q, K), or None where they are not at hand.
    """
    if options.penalty is not None:
        options.penalty.look_at(query, key, options.bias, cross=options.cross)
    scores = scores_of(query, key, _with_gate(options)).float()
    weights = (softmax1(scores) if options.softmax1 else scores.softmax(dim=-1)).to(value.dtype)
    weights = F.dropout(weights, p=options.dropout, training=options.dropout > 0)
    return torch.matmul(weights, value), weights


def sdpa(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Attended:
    """The same by a fused kernel where there is one for what is wanted; see `eager`."""
    penalty, bias = options.penalty, options.bias
    if not options.weights and not options.dropout and has_fused(query):
        if bias is not None:
            bias = bias.expand(*bias.shape[:2], query.shape[2], key.shape[2])
        ceiling = None if penalty is None else SCORE_CEILING
        counted = None if penalty is None else penalty.queries(cross=options.cross)
        output, excess = fused(
            query, key, value, bias, options.softmax1, gate=options.gate, ceiling=ceiling, queries=counted
        )
        if penalty is not None:
            penalty.add(excess, query, key, cross=options.cross)
        return output, None
    if options.weights or query.device.type == "cpu":
        # The CPU's kernel drops no weights, and its substitute is slow.
        return eager(query, key, value, options)
    if penalty is not None:
        penalty.look_at(query, key, bias, cross=options.cross)
    bias = _with_gate(options)
    if options.softmax1:
        # softmax1 is a softmax over one more key, whose score and value are 0.
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
        if bias is not None:
            bias = F.pad(bias.expand(*bias.shape[:-1], key.shape[2] - 1), (0, 1))
    bias = None if bias is None else bias.to(query.dtype)
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=options.dropout, scale=1.0
    )
    return output, None


def _with_gate(options: AttentionOptions) -> Tensor | None:
    bias, gate = options.bias, options.gate
    if gate is None:
        return bias
    return gate[:, None, None, :] if bias is None else bias + gate[:, None, None, :]


def attend(
    core: Callable[[Tensor, Tensor, Tensor, AttentionOptions], Attended],
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
    **given: object,
) -> Attended:
    """What transformers calls: T5 attention, unscaled, with softmax1 where the configuration has it.

    Args:
        core: `eager` or `sdpa`.
        module: the T5Attention it runs in.
        query, key, value: (B, N, Q or K, H).
        attention_mask, position_bias: additive, broadcasting to (B, N, Q, K).
        key_gate: (B, K) soft delete gate, added to every score of a key in encoder self-attention.
        encoder_key_gate: the same for cross-attention.
        rows: of a packed batch; then Q and K are all positions of all rows, B is 1, and what is added to the
            scores is in here.
        encoder_rows: of a packed source; then keys and values of cross-attention are so.

    Returns:
        Output (B, Q, N, H), and attention weights (B, N, Q, K) or None.
    """
    cross = module.is_cross_attention
    penalty = None if module.is_decoder and not cross else score_penalty
    bias, gate = position_bias, encoder_key_gate if cross else key_gate
    if attention_mask is not None:
        bias = attention_mask if bias is None else bias + attention_mask
    options = AttentionOptions(
        softmax1=module.config.use_softmax1,
        dropout=dropout,
        weights=module.config.wants("output_attentions", given),
        penalty=penalty,
        cross=cross,
        bias=bias,
        gate=gate,
    )
    packed = encoder_rows if cross else rows
    if packed is not None:
        return packed.attend(query, key, value, options), None
    output, weights = core(query, key, value, options)
    return output.transpose(1, 2).contiguous(), weights


IMPLEMENTATIONS = {
    "auto": "mrt5_auto",
    "eager": "mrt5_eager",
    "sdpa": "mrt5_sdpa",
    "packed": "mrt5_packed",
    "triton": "mrt5_triton",
}
"""`attn_implementation` as users write it, and the name it is registered under."""
DEFAULT = "auto"

for _name in IMPLEMENTATIONS.values():
    AttentionInterface.register(_name, partial(attend, eager if _name == IMPLEMENTATIONS["eager"] else sdpa))
    # An attention function without a mask function gets no mask at all.
    AttentionMaskInterface.register(_name, eager_mask)
