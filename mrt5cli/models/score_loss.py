"""The score loss (paper, appendix D), collected layer by layer.

Legend: B batch, N heads, Q queries, K keys, H head width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

SCORE_CEILING = 5.0
"""Attention scores above this are penalized by the score loss (paper, appendix D)."""


class ScorePenalty:
    """Collects the score loss over the layers of one forward pass, without keeping any score tensor.

    The loss is the mean over layers of mean(max(score, 5)) - 5, where scores include position bias and mask
    but not the gate (paper, appendix D). It covers the encoder from the gated block on and all
    cross-attention.

    Args:
        per: the query-key pairs that the mean is over. "row": each row's own pairs, so padding does not
            change what a row contributes. "batch": every pair of slots in the batch, as in the reference:
            padding counts, and so do the filler slots of rows in which hard deletion keeps fewer bytes.
        targets: (B, T) bool, the queries of cross-attention that are not padding; None for all.

    Attributes:
        source: (B, S) bool, encoder positions that contain input; None for all.
    """

    def __init__(self, per: Literal["row", "batch"], targets: Tensor | None = None) -> None:
        self.per, self.targets = per, targets if per == "row" else None
        self.source: Tensor | None = None
        self._summed = False
        self._means: dict[bool, list[Tensor]] = {False: [], True: []}  # by whether it is cross-attention

    @property
    def layer_means(self) -> list[Tensor]:
        """Each layer's mean, the encoder's first."""
        return self._means[False] + self._means[True]

    def count_in(self, mask: Tensor | None) -> None:
        """From here on, count only the encoder positions that a mask (B, S) leaves; None for all."""
        if self.per == "row":
            self.source = None if mask is None else mask != 0

    def queries(self, *, cross: bool) -> Tensor | None:
        """(B, Q) bool, a layer's queries that count; None for all."""
        return self.targets if cross else self.source

    def add_scores(self, query: Tensor, key: Tensor, bias: Tensor | None, *, cross: bool) -> None:
        """Add one layer, computing its scores from query, key and bias without keeping them."""
        given = query.float(), key.float(), None if bias is None else bias.float()
        with torch.autocast(query.device.type, enabled=False):
            excess = _ScoreExcess.apply(*given, self.queries(cross=cross))
        self.add(excess, query, key, cross=cross)

    def add(self, excess: Tensor, query: Tensor, key: Tensor, *, cross: bool) -> None:
        """Add one layer's sum of max(score - 5, 0) over queries (B, N, Q, H) and keys (B, N, K, H)."""
        rows, heads, queries, _ = query.shape
        counted, keys = self.queries(cross=cross), self.source
        if counted is None and keys is None:
            self.add_mean(excess / (rows * heads * queries * key.shape[2]), cross=cross)
            return
        # Empty keys are hidden, and a hidden score never exceeds the ceiling.
        pairs = torch.ones(rows, dtype=torch.long, device=query.device)
        pairs = pairs * (queries if counted is None else counted.sum(dim=1))
        pairs = pairs * (key.shape[2] if keys is None else keys.sum(dim=1))
        self.add_of_pairs(excess, heads, pairs, cross=cross)

    def add_of_pairs(self, excess: Tensor, heads: int, pairs: Tensor, *, cross: bool) -> None:
        """Add one layer's sum over all heads, where each row has `pairs` (B) pairs."""
        # Without any target, no query of cross-attention counts.
        self.add_mean(excess / (heads * pairs.sum().clamp(min=1)), cross=cross)

    def add_mean(self, mean: Tensor, *, cross: bool) -> None:
        """Add one layer's mean over its pairs."""
        # Recomputed blocks call this again in backward; keeping those tensors would leak memory.
        if not self._summed:
            self._means[cross].append(mean)

    def parts(self) -> Tensor:
        """(2,), the contributions to the mean of the encoder's layers and of cross-attention's, which a mean
        over several batches weighs by different numbers of pairs."""
        self._summed = True
        nothing = torch.zeros_like(self.layer_means[0])
        sums = [torch.stack([nothing, *means]).sum() for means in self._means.values()]
        return torch.stack(sums) / len(self.layer_means)

    def mean(self) -> Tensor:
        """The score loss, a scalar of 0 or more."""
        return self.parts().sum()


class _ScoreExcess(torch.autograd.Function):
    """Sum of max(score, ceiling) - ceiling over the queries that count; backward recomputes the scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, bias: Tensor | None, queries: Tensor | None) -> Tensor:
        ctx.save_for_backward(query, key, bias, queries)
        excess = (scores_of(query, key, bias) - SCORE_CEILING).clamp_(min=0)
        return (excess if queries is None else excess * queries[:, None, :, None]).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        query, key, bias, queries = ctx.saved_tensors
        exceeds = scores_of(query, key, bias) > SCORE_CEILING
        if queries is not None:
            exceeds &= queries[:, None, :, None]
        above = exceeds.to(query.dtype) * grad
        bias_grad = above.sum_to_size(bias.shape) if bias is not None and ctx.needs_input_grad[2] else None
        return above @ key, above.transpose(-1, -2) @ query, bias_grad, None


def scores_of(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """(B, N, Q, K): T5's unscaled scores with an additive bias."""
    scores = torch.matmul(query, key.transpose(-1, -2))
    return scores if bias is None else scores + bias
