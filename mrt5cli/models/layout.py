"""How the states of a batch lie while encoder blocks run, and what attention adds to their scores.

A layout is one of three: padded, which is here and serves every case; packed on a CPU (fast/packed_rows.py);
packed on a GPU (fast/kernels/device_layout.py). The encoder never asks which.

Legend: B batch, L input bytes, S positions of the longest row, N heads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from mrt5cli.models.attention import IMPLEMENTATIONS, Rows
from mrt5cli.models.deletion import distance_bias, hides_nothing, hiding
from mrt5cli.models.fast.fused import STEP, bias_dtype
from mrt5cli.models.shorteners.base import Shortening


class Layout:
    """Where the positions of a batch lie: here, padded, every row as wide as the longest."""

    def lay_out(self, padded: Tensor) -> Tensor:
        """(B, S, ...) as blocks get it."""
        return padded

    def restore(self, states: Tensor) -> Tensor:
        """What blocks return, as (B, S, ...), with zeros where nothing was laid down."""
        return states

    def bias(self, attention: T5Attention, length: int, shortening: Shortening) -> tuple[Tensor, Rows | None]:
        """What a block's attention adds to its scores.

        Args:
            attention: whose relative bias it is.
            length: L, before anything was removed: no two positions are further apart.

        Returns:
            Position bias, broadcasting to (B, N, S, S), as fast/fused.py wants it: one for all rows, unless
            rows have positions of their own; or a lone 0 in a packed batch. And the rows of a packed batch,
            with all that is added to their scores, or None.
        """
        by_distance = relative_bias(attention, length)
        if by_distance is None:
            return shortening.states.new_zeros(1, 1, 1, 1), None
        if attention.config._attn_implementation == IMPLEMENTATIONS["eager"]:
            return distance_bias(by_distance, shortening.positions, length), None
        by_distance = by_distance.to(bias_dtype(shortening.states) or by_distance.dtype)
        return distance_bias(by_distance, shortening.positions, length, STEP), None

    def mask(self, shortening: Shortening) -> Tensor | None:
        """(B, 1, 1, S) to add to scores where there are no rows of a packed batch, or None."""
        mask = shortening.mask if shortening.self_mask is None else shortening.self_mask
        return None if mask is None or hides_nothing(mask) else hiding(mask, shortening.states.dtype)

    def after(self, shortening: Shortening) -> Layout:
        """The layout of what a shortener left; this one, where nothing moved."""
        if shortening.positions is None:
            return self
        # A rule of the reference lets rows see each other's slots: then all of them stay.
        if shortening.self_mask is not None or shortening.mask is None:
            return Layout()
        return self.of_survivors(shortening, shortening.mask != 0)

    def of_survivors(self, shortening: Shortening, valid: Tensor) -> Layout:
        """The layout of a shorter sequence, of which slots (B, S) are `valid`."""
        return self


def relative_bias(attention: T5Attention, length: int) -> Tensor | None:
    """(N, 2 length - 1), T5's bias of every signed distance below `length`; None with learned positions. In a
    decoder those of keys that lie ahead mean nothing."""
    if not attention.has_relative_attention_bias:
        return None
    distance = torch.arange(-(length - 1), length, device=attention.relative_attention_bias.weight.device)
    bucket = attention._relative_position_bucket(
        distance,
        bidirectional=not attention.is_decoder,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    bias: Tensor = attention.relative_attention_bias(bucket).t()
    return bias
