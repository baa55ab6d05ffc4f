"""softmax1 attention with T5's additive biases, registered with transformers under five names.

`mrt5_eager` writes every step out and is the reference of all tests; `mrt5_sdpa` runs PyTorch's kernel, with
our gradients, score loss and dropout (fast/fused.py); `mrt5_packed` does the same on batches without padding,
on a CPU; `mrt5_triton` runs our kernels on a GPU; `mrt5_auto`, the default, chooses the best of these for the
device (fast/choice.py). Returning attention weights requires the written-out steps. Results do not depend on
the name, except for which weights dropout drops.

Legend: B batch, N heads, Q queries, K keys, H head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from mrt5cli.models.config import MrT5Config
from mrt5cli.models.deletion import HIDES, hiding
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
        # softmax1 is a softmax with one more logit fixed at 0, so the other logits have softmax's Jacobian.
        (weights,) = ctx.saved_tensors
        weighted = grad * weights
        return weighted.sub_(weights * weighted.sum(dim=-1, keepdim=True))


def softmax1(scores: Tensor) -> Tensor:
    """exp(x_i) / (1 + sum_j exp(x_j)) over the last dimension; all zeros where everything is hidden."""
    return _Softmax1.apply(scores)


class T5AttentionModule(Protocol):
    """The attributes of T5Attention that `attend` reads."""

    config: MrT5Config
    is_decoder: bool
    is_cross_attention: bool


@dataclass(frozen=True)
class AttentionOptions:
    """How attention is computed, and which results are wanted besides the output.

    Attributes:
        softmax1: use softmax1 instead of softmax.
        dropout: probability of dropping an attention weight.
        weights: return the attention weights.
        penalty: collects the score loss, from scores that include the bias but not the gate.
        cross: queries are the decoder's, keys the encoder's.
        bias: additive, broadcasting to (B, N, Q, K), or None.
        gate: (B, K), added to every score of a key, or None.
        hidden: (1 or B, K), likewise: 0, or so low that nothing attends to the key; or None.
    """

    softmax1: bool
    dropout: float = 0.0
    weights: bool = False
    penalty: ScorePenalty | None = None
    cross: bool = False
    bias: Tensor | None = None
    gate: Tensor | None = None
    hidden: Tensor | None = None

    def added(self, *, gate: bool) -> Tensor | None:
        """Everything that is added to scores, with or without the gate, in one tensor; None for nothing."""
        of_keys = (self.hidden, self.gate if gate else None)
        parts = [self.bias, *(None if part is None else part[:, None, None, :] for part in of_keys)]
        return functools.reduce(_plus, parts)


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


class Rows(Protocol):
    """Where the rows of a packed batch lie, and everything that is added to their attention scores."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """Attend within each row; queries of cross-attention are not packed.

        Args:
            query: (1, N, all positions, H), or (B, N, Q, H) in cross-attention.
            key, value: (1, N, all positions, H).

        Returns:
            (1, all positions, N, H), or (B, Q, N, H) in cross-attention.
        """


Attended = tuple[Tensor, Tensor | None]


def eager(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Attended:
    """Attention with every step written out: the reference of all tests.

    Args:
        query: (B, N, Q, H).
        key, value: (B, N, K, H).

    Returns:
        Output (B, N, Q, H), and the attention weights (B, N, Q, K); other cores return None for them.
    """
    if options.penalty is not None:
        options.penalty.add_scores(query, key, options.added(gate=False), cross=options.cross)
    scores = scores_of(query, key, options.added(gate=True)).float()
    weights = (softmax1(scores) if options.softmax1 else scores.softmax(dim=-1)).to(value.dtype)
    weights = F.dropout(weights, p=options.dropout, training=options.dropout > 0)
    return torch.matmul(weights, value), weights


def sdpa(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Attended:
    """`eager`, by a fused kernel if one supports the options."""
    penalty = options.penalty
    if _suits_fused(query, options):
        ceiling = None if penalty is None else SCORE_CEILING
        counted = None if penalty is None else penalty.queries(cross=options.cross)
        output, excess = fused(
            query, key, value, options.bias, options.softmax1, gate=options.gate, hidden=options.hidden,
            ceiling=ceiling, queries=counted, dropout=options.dropout,
        )  # fmt: skip
        if penalty is not None:
            penalty.add(excess, query, key, cross=options.cross)
        return output, None
    if options.weights or query.device.type == "cpu":
        # Where a CPU's kernel does not apply, the public function's fallback is slower than these steps.
        return eager(query, key, value, options)
    if penalty is not None:
        penalty.add_scores(query, key, options.added(gate=False), cross=options.cross)
    bias = options.added(gate=True)
    if options.softmax1:
        # softmax1 is a softmax over one more key with score and value 0.
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
        if bias is not None:
            bias = F.pad(bias.expand(*bias.shape[:-1], key.shape[2] - 1), (0, 1))
    bias = None if bias is None else bias.to(query.dtype)
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=options.dropout, scale=1.0
    )
    return output, None


def _suits_fused(query: Tensor, options: AttentionOptions) -> bool:
    if options.weights or not has_fused(query):
        return False
    return not options.dropout or (options.dropout < 1 and not torch.compiler.is_compiling())


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
    """The attention function that transformers calls: T5's unscaled attention, with softmax or softmax1.

    Args:
        core: `eager` or `sdpa`.
        module: the calling T5Attention.
        query, key, value: (B, N, Q or K, H).
        attention_mask, position_bias: additive, broadcasting to (B, N, Q, K). T5 has no position bias in
            cross-attention: transformers passes zeros for all heads and queries, which are not used.
        key_gate: (B, K) soft delete gate, added to every score of a key in encoder self-attention.
        encoder_key_gate: the same for cross-attention.
        rows: the rows of a packed batch; Q and K are then all positions of all rows, B is 1, and `rows`
            contains everything that is added to scores.
        encoder_rows: the rows of a packed source, for keys and values of cross-attention.

    Returns:
        Output (B, Q, N, H), and attention weights (B, N, Q, K) or None.
    """
    cross = module.is_cross_attention
    penalty = None if module.is_decoder and not cross else score_penalty
    bias, hidden = (None, _of_keys(position_bias)) if cross else (position_bias, None)
    # For a single query the bias is smaller than the keys, which an extra feature would copy.
    if _of_keys(attention_mask) is None or (not torch.compiler.is_exporting() and query.shape[2] == 1):
        bias = _plus(bias, attention_mask)
    else:
        hidden = _plus(hidden, _of_keys(attention_mask))
    options = AttentionOptions(
        softmax1=module.config.use_softmax1,
        dropout=dropout,
        weights=module.config.wants("output_attentions", given),
        penalty=penalty,
        cross=cross,
        bias=bias,
        gate=encoder_key_gate if cross else key_gate,
        hidden=hidden,
    )
    packed = encoder_rows if cross else rows
    if packed is not None:
        return packed.attend(query, key, value, options), None
    output, weights = core(query, key, value, options)
    return output.transpose(1, 2).contiguous(), weights


def _of_keys(added: Tensor | None) -> Tensor | None:
    """(1 or B, K) if a tensor adds the same to all scores of a key, i.e. is (1 or B, 1, 1, K); else None."""
    return added[:, 0, 0] if added is not None and added.shape[1:3] == (1, 1) else None


def mask(*, batch_size: int, attention_mask: Tensor | None = None, **how: Any) -> Tensor | None:
    """The mask function that transformers calls for a decoder: as small a tensor as possible.

    Args:
        attention_mask: (B, K), 0 at hidden positions, or None.

    Returns:
        (B, 1, 1, K), or (1 or B, 1, Q, K) if causal, to add to scores; None if it hides nothing.
    """
    if not how.get("allow_is_bidirectional_skip"):
        # Without padding, all rows share one mask; transformers would make one for each.
        mask: Tensor = eager_mask(
            batch_size=1 if attention_mask is None else batch_size, attention_mask=attention_mask, **how
        )
        return mask.clamp_(min=HIDES)
    # transformers would read whether it hides anything, and wait for the GPU.
    return None if attention_mask is None else hiding(attention_mask, how["dtype"])


IMPLEMENTATIONS = {
    "auto": "mrt5_auto",
    "eager": "mrt5_eager",
    "sdpa": "mrt5_sdpa",
    "packed": "mrt5_packed",
    "triton": "mrt5_triton",
}
"""`attn_implementation` as users write it -> the name it is registered under."""
DEFAULT = "auto"

for _name in IMPLEMENTATIONS.values():
    AttentionInterface.register(
        _name, functools.partial(attend, eager if _name == IMPLEMENTATIONS["eager"] else sdpa)
    )
    # transformers passes no mask at all to an attention function without a mask function.
    AttentionMaskInterface.register(_name, mask)
