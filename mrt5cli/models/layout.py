"""How the states of a batch lie in memory while encoder blocks run, and what attention adds to scores.

There are three layouts: padded, defined here, which supports everything; packed on a CPU
(fast/packed_rows.py); packed on a GPU (fast/kernels/device_layout.py). The encoder never asks which it has.

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

PADDING_ALONE = "the source batch has no positions: every id is padding, or the mask hides all of them"


class Layout:
    """The padded layout: every row is as wide as the longest. Base of the packed ones."""

    def lay_out(self, padded: Tensor) -> Tensor:
        """Convert (B, S, ...) to the layout that blocks work on."""
        return padded

    def restore(self, states: Tensor) -> Tensor:
        """Convert what blocks return to (B, S, ...), with zeros at positions that were not laid out."""
        return states

    def bias(self, attention: T5Attention, length: int, shortening: Shortening) -> tuple[Tensor, Rows | None]:
        """What a block's attention adds to its scores.

        Args:
            attention: the module whose relative bias to use.
            length: L, the length before anything was removed, which bounds every distance.

        Returns:
            Position bias, broadcasting to (B, N, S, S), in the form fast/fused.py requires: shared by all
            rows unless they have different positions; a single 0 in a packed batch. And the rows of a packed
            batch with everything that is added to their scores, or None.
        """
        by_distance = relative_bias(attention, length)
        if by_distance is None:
            return shortening.states.new_zeros(1, 1, 1, 1), None
        if attention.config._attn_implementation == IMPLEMENTATIONS["eager"]:
            return distance_bias(by_distance, shortening.positions, length), None
        by_distance = by_distance.to(bias_dtype(shortening.states) or by_distance.dtype)
        return distance_bias(by_distance, shortening.positions, length, STEP), None

    def mask(self, shortening: Shortening) -> Tensor | None:
        """(B, 1, 1, S) to add to the scores of a padded batch, or None."""
        mask = shortening.mask if shortening.self_mask is None else shortening.self_mask
        return None if mask is None or hides_nothing(mask) else hiding(mask, shortening.states.dtype)

    def after(self, shortening: Shortening) -> Layout:
        """The layout for the output of a shortener; this one if nothing moved."""
        if shortening.positions is None:
            return self
        # In a mode of the reference, rows see each other's slots, so that none may be left out.
        if shortening.self_mask is not None or shortening.mask is None:
            return Layout()
        return self.of_survivors(shortening, shortening.mask != 0)

    def of_survivors(self, shortening: Shortening, valid: Tensor) -> Layout:
        """The layout of a shorter sequence whose non-empty slots are `valid` (B, S)."""
        return self


def relative_bias(attention: T5Attention, length: int) -> Tensor | None:
    """(N, 2 length - 1), T5's bias by signed distance; None with learned positions. In a decoder, entries of
    keys ahead of the query are meaningless."""
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
