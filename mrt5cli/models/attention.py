"""softmax1 attention with T5's additive biases, registered with transformers under four names.

`mrt5_eager` writes every step out and is the oracle; `mrt5_sdpa` runs a fused kernel; `mrt5_packed` does so
on batches without padding on a CPU, and `mrt5_triton` on a GPU, too. Where a kernel cannot do what is asked
(dropping attention weights, returning them), the written-out steps take its place: results never depend on
the name. Each is registered together with its mask function: an attention function without one gets no mask
at all.

Legend: B batch, N heads, Q queries, K keys, H head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from mrt5cli.models.fast.fused import fused, has_fused
from mrt5cli.models.fast.kernels.rows import DeviceRows, attend_rows
from mrt5cli.models.packing import Group
from mrt5cli.models.softmax1 import softmax1

SCORE_CEILING = 5.0
"""Attention scores above this are penalised by the score loss (paper, appendix D)."""


class ScorePenalty:
    """Collects the score loss over the layers of one forward pass, without keeping any score tensor.

    The loss is the mean over layers of mean(max(score, 5)) - 5, with scores taken after position bias and
    mask and before the gate (paper, appendix D; it covers the encoder from the gated block on and all
    cross-attention).

    Args:
        per: which pairs of a query and a key the mean is over. "row": each row's own, so that a row counts
            for the same whatever it is padded with. "batch": all that the batch has room for, as in the
            reference: padding counts, and so do the slots that hard deletion fills up in rows that keep
            fewer bytes.
        targets: (B, T) bool, queries of cross-attention that are no padding; None for all.

    Attributes:
        source: (B, S) bool, encoder positions that hold something; None for all.
    """

    def __init__(self, per: Literal["row", "batch"], targets: Tensor | None = None) -> None:
        self.per, self.targets = per, targets if per == "row" else None
        self.source: Tensor | None = None
        self._of_encoder: list[Tensor] = []
        self._of_cross: list[Tensor] = []

    @property
    def layer_means(self) -> list[Tensor]:
        """Each layer's mean, those of the encoder first."""
        return self._of_encoder + self._of_cross

    def look_at(self, mask: Tensor | None) -> None:
        """Count pairs among what a mask (B, S) leaves of the encoder's positions from here on."""
        if self.per == "row":
            self.source = None if mask is None else mask != 0

    def queries(self, *, cross: bool) -> Tensor | None:
        """(B, Q) bool, the queries of a layer that count; None for all."""
        return self.targets if cross else self.source

    def add(self, excess: Tensor, query: Tensor, key: Tensor, *, cross: bool) -> None:
        """Add one layer's sum of max(score - 5, 0) over the pairs of its (B, N, Q, H) and (B, N, K, H)."""
        rows, heads, queries, _ = query.shape
        counted, keys = self.queries(cross=cross), self.source
        if counted is None and keys is None:
            self.add_mean(excess / (rows * heads * queries * key.shape[2]), cross=cross)
            return
        # Keys that hold nothing are hidden, and hidden scores exceed nothing.
        of_row = queries if counted is None else counted.sum(dim=1)
        pairs = of_row * (key.shape[2] if keys is None else keys.sum(dim=1))
        # Where no row has a target, no query of cross-attention counts.
        self.add_mean(excess / (heads * pairs.sum().clamp(min=1)), cross=cross)

    def add_mean(self, mean: Tensor, *, cross: bool) -> None:
        """Add one layer's mean over its pairs."""
        (self._of_cross if cross else self._of_encoder).append(mean)

    def parts(self) -> Tensor:
        """(2,), what the encoder's layers and cross-attention's add to the mean over all: their pairs are of
        different numbers, and so are their shares in a mean over several batches."""
        nothing = torch.zeros_like(self.layer_means[0])
        sums = [torch.stack([nothing, *means]).sum() for means in (self._of_encoder, self._of_cross)]
        return torch.stack(sums) / len(self.layer_means)

    def mean(self) -> Tensor:
        """The score loss, a scalar at least 0."""
        return self.parts().sum()


class _ScoreExcess(torch.autograd.Function):
    """Sum of max(score, ceiling) - ceiling over the scores of the queries that count, recomputing the scores
    in backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, bias: Tensor | None, queries: Tensor | None) -> Tensor:
        ctx.save_for_backward(query, key, bias, queries)
        excess = (_scores(query, key, bias) - SCORE_CEILING).clamp_(min=0)
        return (excess if queries is None else excess * queries[:, None, :, None]).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        query, key, bias, queries = ctx.saved_tensors
        exceeds = _scores(query, key, bias) > SCORE_CEILING
        if queries is not None:
            exceeds &= queries[:, None, :, None]
        above = exceeds.to(query.dtype) * grad
        bias_grad = above.sum_to_size(bias.shape) if bias is not None and ctx.needs_input_grad[2] else None
        return above @ key, above.transpose(-1, -2) @ query, bias_grad, None


def _score_excess(query: Tensor, key: Tensor, bias: Tensor | None, queries: Tensor | None) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):
        excess: Tensor = _ScoreExcess.apply(
            query.float(), key.float(), None if bias is None else bias.float(), queries
        )
    return excess


def _scores(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    scores = torch.matmul(query, key.transpose(-1, -2))  # [B, N, Q, K]
    return scores if bias is None else scores + bias


def _sum_biases(*biases: Tensor | None) -> Tensor | None:
    total = None
    for bias in biases:
        if bias is not None:
            total = bias if total is None else total + bias
    return total


@dataclass(frozen=True)
class Ask:
    """What is asked of a core beside the output.

    Attributes:
        one: softmax1 instead of softmax.
        dropout: probability of dropping an attention weight.
        weights: return the attention weights.
        excess: return the sum of max(score - 5, 0), scores with bias and before the gate.
        queries: (B, Q) bool, those whose scores are in that sum; None for all.
    """

    one: bool
    dropout: float = 0.0
    weights: bool = False
    excess: bool = False
    queries: Tensor | None = None


Answer = tuple[Tensor, Tensor | None, Tensor | None]
"""Output (B, N, Q, H); weights (B, N, Q, K) or None; excess or None."""
Core = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Ask], Answer]


def eager(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, gate: Tensor | None, ask: Ask
) -> Answer:
    """The oracle: every step written out.

    Args:
        query: (B, N, Q, H).
        key, value: (B, N, K, H).
        bias: additive, broadcasting to (B, N, Q, K), or None.
        gate: (B, K) added to every score of a key, or None.
    """
    excess = _score_excess(query, key, bias, ask.queries) if ask.excess else None
    scores = _scores(query, key, _sum_biases(bias, None if gate is None else gate[:, None, None, :])).float()
    weights = (softmax1(scores) if ask.one else scores.softmax(dim=-1)).to(value.dtype)
    weights = F.dropout(weights, p=ask.dropout, training=ask.dropout > 0)
    return torch.matmul(weights, value), weights, excess


def kernel(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, gate: Tensor | None, ask: Ask
) -> Answer:
    """The same by a fused kernel where there is one for what is asked; see `eager`."""
    if ask.weights:
        return eager(query, key, value, bias, gate, ask)
    if not ask.dropout and has_fused(query):
        if bias is not None:
            bias = bias.expand(*bias.shape[:2], query.shape[2], key.shape[2])
        ceiling = SCORE_CEILING if ask.excess else None
        output, excess = fused(
            query, key, value, bias, ask.one, gate=gate, ceiling=ceiling, queries=ask.queries
        )
        return output, None, excess
    if query.device.type == "cpu":  # the kernel there drops no weights, and its substitute is slow
        return eager(query, key, value, bias, gate, ask)
    excess = _score_excess(query, key, bias, ask.queries) if ask.excess else None
    bias = _sum_biases(bias, None if gate is None else gate[:, None, None, :])
    if ask.one:
        # softmax1 is a softmax over one more key, whose score and value are 0.
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
        if bias is not None:
            bias = F.pad(bias.expand(*bias.shape[:-1], key.shape[2] - 1), (0, 1))
    bias = None if bias is None else bias.to(query.dtype)
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=ask.dropout, scale=1.0
    )
    return output, None, excess


@dataclass
class Rows:
    """Where the rows of a packed batch lie, and what is added to their attention scores.

    Attributes:
        groups: of rows that are gone through at once, r rows of at most n positions each.
        biases: of each group (1 or r, 1 or N, 1 or n, n): position bias, and what hides padding; or None.
        gates: of each group (r, n) key gate; or None after hard deletion.
    """

    groups: list[Group]
    biases: list[Tensor | None]
    gates: list[Tensor] | None = None

    def as_source(self) -> Rows:
        """The same rows for cross-attention, which has no position bias."""
        return Rows(self.groups, [group.hidden(torch.float32) for group in self.groups], self.gates)


def _by_row(query: Tensor, key: Tensor, value: Tensor, rows: Rows, ask: Ask, *, cross: bool) -> Tensor:
    """Attention within each row of a packed batch; queries of cross-attention are not packed.

    Args:
        query: (1, N, all positions, H), or (B, N, Q, H) in cross-attention.
        key, value: (1, N, all positions, H).

    Returns:
        (1, all positions, N, H), or (B, Q, N, H) in cross-attention.
    """
    outputs = []
    for number, group in enumerate(rows.groups):
        if group.longest == 0:  # of whose rows nothing is left, attends to nothing
            nothing = query[group.rows] if cross else query[0, :, group.place]
            outputs.append(torch.zeros_like(nothing).transpose(-3, -2))
            continue
        # (positions, N, H) -> (r, N, n, H)
        k, v = (group.pad(part[0].transpose(0, 1)).transpose(1, 2) for part in (key, value))
        q = query[group.rows] if cross else group.pad(query[0].transpose(0, 1)).transpose(1, 2)
        gate = rows.gates[number] if rows.gates is not None else None
        output = kernel(q, k, v, rows.biases[number], gate, ask)[0].transpose(1, 2)
        outputs.append(output if cross else group.unpad(output))
    joined = torch.cat(outputs)
    return joined if cross else joined[None]


def _by_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: DeviceRows,
    ask: Ask,
    penalty: ScorePenalty | None,
    *,
    cross: bool,
) -> tuple[Tensor, None]:
    """The same on a GPU by one kernel: (1, all positions, N, H), or (B, Q, N, H) in cross-attention."""
    ceiling = SCORE_CEILING if ask.excess else None
    output, excess = attend_rows(query, key, value, rows, one=ask.one, ceiling=ceiling, cross=cross)
    if excess is not None:
        queries = query.shape[2] if cross else rows.packed.longest
        penalty.add_mean(excess / (query.shape[1] * rows.pairs(queries)), cross=cross)
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
        rows: Rows | DeviceRows | None = None,
        encoder_rows: Rows | DeviceRows | None = None,
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
        ask = Ask(
            one=module.config.use_softmax1,
            dropout=dropout,
            weights=need_weights,
            excess=score_penalty is not None,
            queries=None if score_penalty is None else score_penalty.queries(cross=cross),
        )
        packed = encoder_rows if cross else rows
        if isinstance(packed, DeviceRows):
            return _by_kernel(query, key, value, packed, ask, score_penalty, cross=cross)
        if packed is not None:
            output = _by_row(query, key, value, packed, ask, cross=cross)
            return output.contiguous(), None
        gate = encoder_key_gate if cross else key_gate
        bias = _sum_biases(position_bias, attention_mask)
        output, weights, excess = core(query, key, value, bias, gate, ask)
        if excess is not None:
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
    """Make the attention functions known to transformers, each with an additive mask."""
    for name in IMPLEMENTATIONS.values():
        core = eager if name == "mrt5_eager" else kernel
        AttentionInterface.register(name, _attention(core))
        AttentionMaskInterface.register(name, eager_mask)


register()
