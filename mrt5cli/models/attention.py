"""softmax1 attention with T5's additive biases, registered with transformers under three names.

`mrt5_eager` writes every step out and is the oracle; `mrt5_sdpa` hands the same sum of biases to PyTorch's
fused kernel; `mrt5_packed` does so row by row of a batch without padding. Each is registered together with
its mask function: an attention function without one gets no mask at all.

Legend: B batch, N heads, Q queries, K keys, H head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


# Returns (output, log of the sum of exponentials) of softmax attention with an additive bias and no scaling.
_FLASH_ON_CPU = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


class _Fused(torch.autograd.Function):
    """Attention that keeps no score: softmax1 from the stock kernel's output and log-sum-exp.

    softmax1(s) = softmax(s) * sigmoid(lse(s)), and as a softmax its log-sum-exp is softplus(lse(s)). The
    backward pass recomputes one row of the batch at a time, which gives the bias its gradient too; the stock
    backward gives it none.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, one: bool
    ) -> Tensor:
        output, lse = _FLASH_ON_CPU(query, key, value, 0.0, False, attn_mask=bias, scale=1.0)
        if one:
            output = output * torch.sigmoid(lse)[..., None].to(output.dtype)
            lse = F.softplus(lse)
        ctx.save_for_backward(query, key, value, bias, output, lse)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, output, lse = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in (query, key, value)]
        bias_grad = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[3] else None
        for row in range(query.shape[0]):
            q, k, v, g, o = (tensor[row].float() for tensor in (query, key, value, grad, output))
            scores = torch.matmul(q, k.transpose(-1, -2))  # [N, Q, K]
            if bias is not None:
                scores += bias[row if bias.shape[0] > 1 else 0]
            weights = scores.sub_(lse[row][..., None]).exp_()
            grads[2][row] = torch.matmul(weights.transpose(-1, -2), g)
            through = torch.matmul(g, v.transpose(-1, -2)).sub_((g * o).sum(dim=-1, keepdim=True))
            through.mul_(weights)
            grads[0][row] = torch.matmul(through, k)
            grads[1][row] = torch.matmul(through.transpose(-1, -2), q)
            if bias_grad is not None:
                place = bias_grad[row if bias.shape[0] > 1 else 0]
                place += through.sum_to_size(place.shape).to(place.dtype)
        return (*grads, bias_grad, None)


def fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, one: bool) -> Tensor:
    """(B, N, Q, H) attention of queries (B, N, Q, H) over keys and values (B, N, K, H); see `_Fused`."""
    return _Fused.apply(query, key, value, bias, one)


def has_fused(tensor: Tensor) -> bool:
    """Whether `fused` runs where a tensor lies, in its precision."""
    known = tensor.dtype in (torch.float32, torch.bfloat16)
    return _FLASH_ON_CPU is not None and tensor.device.type == "cpu" and known


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
    if not dropout and has_fused(query):
        return fused(query, key, value, bias, one), None
    if one:
        # softmax1 is a softmax over one more key, whose score and value are 0.
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
        if bias is not None:
            bias = F.pad(bias.expand(*bias.shape[:-1], key.shape[2] - 1), (0, 1))
    bias = None if bias is None else bias.to(query.dtype)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=1.0)
    return output, None


@dataclass
class Rows:
    """Where the rows of a packed batch lie, and what is added to their attention scores.

    Attributes:
        bounds: B + 1 offsets into the packed positions.
        biases: of each row (1, N, n, n), position bias and key gate, or None where both are; None as a whole
            for cross-attention.
        gates: of each row (n) key gate, for cross-attention; or None.
    """

    bounds: list[int]
    biases: list[Tensor | None] | None = None
    gates: list[Tensor] | None = None

    def __iter__(self) -> Iterator[slice]:
        return (slice(start, stop) for start, stop in itertools.pairwise(self.bounds))


def _by_row(
    query: Tensor, key: Tensor, value: Tensor, rows: Rows, one: bool, dropout: float, *, cross: bool
) -> Tensor:
    """Attention within each row of a packed batch; queries of cross-attention are not packed.

    Args:
        query: (1, N, all positions, H), or (B, N, Q, H) in cross-attention.
        key, value: (1, N, all positions, H).
    """
    outputs = []
    for number, place in enumerate(rows):
        if place.stop == place.start:  # a row of which nothing is left attends to nothing
            outputs.append(torch.zeros_like(query[number : number + 1] if cross else query[:, :, place]))
            continue
        q = query[number : number + 1] if cross else query[:, :, place]
        if not cross:
            bias = rows.biases[number]
        else:
            bias = None if rows.gates is None else rows.gates[number][None, None, None, :]
            bias = None if bias is None else bias.expand(1, 1, q.shape[2], -1)
        outputs.append(_sdpa(q, key[:, :, place], value[:, :, place], bias, one, dropout)[0])
    return torch.cat(outputs, dim=0 if cross else 2)


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
        rows: Rows | None = None,
        encoder_rows: Rows | None = None,
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

        Returns:
            Output (B, Q, N, H), and attention weights (B, N, Q, K) or None.
        """
        one = module.config.use_softmax1
        packed = encoder_rows if module.is_cross_attention else rows
        if packed is not None:
            output = _by_row(query, key, value, packed, one, dropout, cross=module.is_cross_attention)
            return output.transpose(1, 2).contiguous(), None
        bias = _sum_biases(position_bias, attention_mask)
        decoder_self = module.is_decoder and not module.is_cross_attention
        if score_penalty is not None and not decoder_self:
            score_penalty.add(query, key, bias)  # the score loss looks at scores before the gate joins
        gate = encoder_key_gate if module.is_cross_attention else key_gate
        bias = _sum_biases(bias, None if gate is None else gate[:, None, None, :])
        output, weights = core(query, key, value, bias, one, dropout)
        return output.transpose(1, 2).contiguous(), weights

    return attention


IMPLEMENTATIONS = {"eager": "mrt5_eager", "sdpa": "mrt5_sdpa", "packed": "mrt5_packed"}
"""`attn_implementation` as users write it, and the name it is registered under."""


def register() -> None:
    """Make the attention functions known to transformers, each with an additive mask."""
    for name, core in (("mrt5_eager", _eager), ("mrt5_sdpa", _sdpa), ("mrt5_packed", _sdpa)):
        AttentionInterface.register(name, _attention(core))
        AttentionMaskInterface.register(name, eager_mask)


register()
