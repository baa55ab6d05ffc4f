"""How the states of a batch lie while encoder blocks run, and what attention adds to their scores.

A layout is one of three: padded, which is here and serves every case; packed on a CPU (fast/packed_rows.py);
packed on a GPU (fast/kernels/device_layout.py). The encoder never asks which.

Legend: B batch, L input bytes, S positions of the longest row, N heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mrt5cli.models.attention import Rows
from mrt5cli.models.deletion import distance_bias, hides_nothing
from mrt5cli.models.shorteners.base import Shortening


class RelativeAttention(Protocol):
    """What a self-attention of transformers' T5 has for its relative bias."""

    n_heads: int
    has_relative_attention_bias: bool
    relative_attention_bias: nn.Embedding
    relative_attention_num_buckets: int
    relative_attention_max_distance: int

    def _relative_position_bucket(
        self, relative_position: Tensor, bidirectional: bool, num_buckets: int, max_distance: int
    ) -> Tensor: ...


@dataclass(frozen=True)
class RelativeBias:
    """T5's position bias of a block.

    Attributes:
        attention: whose table of biases it is.
        length: L, before anything was removed: no two positions are further apart.
    """

    attention: RelativeAttention
    length: int

    def by_distance(self, length: int | None = None) -> Tensor | None:
        """(N, 2 length - 1), the bias of every signed distance, by default of all there are; None with
        learned positions."""
        attention, length = self.attention, length or self.length
        if not attention.has_relative_attention_bias:
            return None
        distance = torch.arange(-(length - 1), length, device=attention.relative_attention_bias.weight.device)
        bucket = attention._relative_position_bucket(
            distance,
            bidirectional=True,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        bias: Tensor = attention.relative_attention_bias(bucket).t()
        return bias


@dataclass(frozen=True)
class BlockBias:
    """What a block's attention adds to its scores.

    Attributes:
        position_bias: position bias and mask, broadcasting to (B, N, S, S); a lone 0 in a packed batch.
        rows: of a packed batch, with all that is added to their scores; None for a padded one.
    """

    position_bias: Tensor
    rows: Rows | None = None


class Layout(Protocol):
    """Where the positions of a batch lie."""

    def lay_out(self, padded: Tensor) -> Tensor:
        """(B, S, ...) as blocks get it."""

    def restore(self, states: Tensor) -> Tensor:
        """What blocks return, as (B, S, ...), with zeros where nothing was laid down."""

    def bias(self, relative: RelativeBias, shortening: Shortening) -> BlockBias:
        """What attention adds to its scores of the sequences that are laid out."""

    def after(self, shortening: Shortening) -> Layout:
        """The layout of what a shortener left; this one, where nothing moved."""


class PaddedLayout:
    """Every row as wide as the longest."""

    def lay_out(self, padded: Tensor) -> Tensor:
        return padded

    def restore(self, states: Tensor) -> Tensor:
        return states

    def bias(self, relative: RelativeBias, shortening: Shortening) -> BlockBias:
        by_distance = relative.by_distance()
        if by_distance is None:
            bias = shortening.states.new_zeros(1, 1, 1, 1)
        else:
            bias = distance_bias(by_distance, shortening.positions, relative.length)
        mask = shortening.mask if shortening.self_mask is None else shortening.self_mask
        if mask is not None and not hides_nothing(mask):
            bias = bias.masked_fill(mask[:, None, None, :] == 0, torch.finfo(bias.dtype).min)
        return BlockBias(bias)

    def after(self, shortening: Shortening) -> Layout:
        return self
