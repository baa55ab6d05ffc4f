"""What every shortener takes and gives. The encoder goes on with a `Shortening` and never asks who made it.

Legend: B batch, L input bytes, S positions after shortening, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class Shortening:
    """The sequence after the shortener.

    Attributes:
        states: (B, S, D).
        mask: (B, S), 1 where a position holds something, or None when all do.
        positions: (B, S) original positions, or None when nothing moved.
        kept_lengths: (B) int64, positions that hold something; in soft deletion the bytes a hard deletion
            would keep.
        key_gate: (B, S) to add to the attention scores of each key from here on, or None.
        gate_values: (B, L) from `scale` (delete) to 0 (keep), or None for shorteners without a gate.
        gate_logits: (B, L) or None.
        keep_mask: (B, L) bool or None.
        auxiliary_loss: scalar to add to the training loss, or None.
    """

    states: Tensor
    mask: Tensor | None
    positions: Tensor | None
    kept_lengths: Tensor
    key_gate: Tensor | None = None
    gate_values: Tensor | None = None
    gate_logits: Tensor | None = None
    keep_mask: Tensor | None = None
    auxiliary_loss: Tensor | None = None


class Shortener(nn.Module):
    """A module between two encoder blocks that leaves fewer positions, or marks those to ignore."""

    def forward(
        self,
        states: Tensor,
        mask: Tensor | None,
        padding: Tensor,
        input_ids: Tensor | None,
        *,
        hard: bool,
        threshold: float | None,
    ) -> Shortening:
        """Shorten.

        Args:
            states: (B, L, D).
            mask: (B, L) attention mask or None.
            padding: (B, L) bool, positions that hold no input.
            input_ids: (B, L) or None when the model was given embeddings.
            hard: really remove positions (inference), or only gate them (training).
            threshold: replaces the configured deletion threshold in hard deletion.
        """
        raise TypeError(f"{type(self).__name__} does not say how it shortens")
