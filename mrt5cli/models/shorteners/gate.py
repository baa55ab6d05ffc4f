"""What delete gates share: something scores every byte, and low scores are masked (soft) or removed (hard).
Paper section 3.1.

Legend: B batch, L input bytes, K kept slots, D model width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mrt5cli.models.config import MrT5Config
from mrt5cli.models.deletion import compact, gather_rows, survivors
from mrt5cli.models.shorteners.base import Reference, Sequences, Shortener, Shortening

HIDDEN = -1e9
"""Gate value that hides a slot, whatever its score."""

GATE_OF_THE_REFERENCE = Reference(
    "MrT5ForConditionalGeneration",
    "mrt5",
    (
        "delete_gate_layer",
        "deletion_threshold",
        "deletion_type",
        "fixed_deletion_amount",
        "gate_layer_norm",
        "random_deletion_probability",
        "sigmoid_mask_scale",
        "use_gumbel_noise",
    ),
)
"""The authors' one class for all their gates."""


class Gate(Shortener):
    """Base of the gates: subclasses score the bytes, this class deletes them softly or for real.

    Attributes:
        spares_padding: padding is scored, and kept, like every other byte, as gates without parameters do in
            the reference. Only where nobody passes a mask does this show.
    """

    def __init__(self, config: MrT5Config) -> None:
        super().__init__()
        self.scale = float(config.sigmoid_mask_scale)
        self.threshold = config.threshold
        self.fallback = config.row_without_survivors
        self.spares_padding = False

    def score(
        self, states: Tensor, padding: Tensor, input_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Gate values (B, L) in float32, from `scale` (delete) to 0 (keep), and logits (B, L) or None."""
        raise TypeError(f"{type(self).__name__} does not say how it scores")

    def forward(self, given: Sequences, *, hard: bool, threshold: float | None) -> Shortening:
        states, mask, padding = given.states, given.mask, given.padding
        if self.spares_padding:
            padding = torch.zeros_like(padding)
        # Which bytes survive must not depend on the precision the rest of the network runs in.
        with torch.autocast(states.device.type, enabled=False):
            gate_BL, logits_BL = self.score(states, padding, given.input_ids)
        limit = self.threshold if threshold is None else threshold
        keep_BL = survivors((gate_BL > limit) & ~padding, gate_BL, ~padding, self.fallback)
        common: dict[str, Any] = {"gate_values": gate_BL, "gate_logits": logits_BL}
        if not hard:
            return Shortening(
                states=states,
                mask=mask,
                positions=None,
                kept_lengths=keep_BL.sum(dim=1),
                key_gate=gate_BL.to(states.dtype),
                keep_mask=keep_BL,
                **common,
            )
        positions_BK, valid_BK, lengths_B, count = compact(keep_BL, None if mask is None else mask != 0)
        kept_mask = valid_BK.long() if mask is None else gather_rows(mask, positions_BK) * valid_BK
        return Shortening(
            states=gather_rows(states, positions_BK),
            mask=kept_mask,
            mask_count=count,
            positions=positions_BK,
            kept_lengths=lengths_B,
            keep_mask=keep_BL,
            **common,
        )


def with_fillers_in_sight(shortening: Shortening, given: Sequences) -> Shortening:
    """What hard deletion left, with the slots past a row's survivors as the reference has them.

    There they hold the row's first byte, are as visible as it is, and are kept from being attended to by the
    gate alone. Outputs are the same, but its score loss, which looks before the gate, counts them. Anything
    else than a hard deletion is given back as it is.
    """
    if shortening.positions is None or shortening.gate_values is None:
        return shortening
    slots = torch.arange(shortening.positions.shape[1], device=shortening.positions.device)
    valid_BK = slots < shortening.kept_lengths[:, None]
    positions_BK = shortening.positions * valid_BK
    return replace(
        shortening,
        states=gather_rows(given.states, positions_BK),
        mask=None if given.mask is None else gather_rows(given.mask, positions_BK),
        mask_count=None,
        positions=positions_BK,
        key_gate=(~valid_BK).to(given.states.dtype) * HIDDEN,
    )
