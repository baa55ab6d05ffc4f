"""The base of delete gates: a value for every byte; low values are masked (soft) or removed (hard).

Legend: B batch, L input bytes, K kept slots, D model width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mrt5cli.models.deletion import compact, gather_rows, survivors
from mrt5cli.models.shorteners.base import Reference, Sequences, Shortener, Shortening, check_share

if TYPE_CHECKING:  # config imports shorteners
    from mrt5cli.models.config import MrT5Config

HIDDEN = -1e9
"""Gate value that hides a slot, whatever its attention score."""

FIELDS = (
    *("delete_gate_layer", "deletion_threshold", "deletion_type", "gate_layer_norm", "sigmoid_mask_scale"),
    *("use_gumbel_noise", "random_deletion_probability", "fixed_deletion_amount"),
)
GATE_OF_THE_REFERENCE = Reference("MrT5ForConditionalGeneration", "mrt5", FIELDS)
"""The authors have one class for all their gates."""


class Gate(Shortener):
    """Base of the gates: subclasses score bytes, and this class deletes them, softly or hard.

    Attributes:
        spares_padding: padding is scored and kept like any byte, as in the reference's gates without
            weights. This matters only to calls without a mask.
    """

    def __init__(self, config: MrT5Config) -> None:
        super().__init__()
        self.scale = float(config.sigmoid_mask_scale)
        self.config = config
        self.fallback = config.row_without_survivors
        self.spares_padding = False

    def score(
        self, states: Tensor, padding: Tensor, input_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Gate values (B, L) in float32, from `scale` (delete) to 0 (keep), and logits (B, L) or None."""
        raise NotImplementedError

    def forward(self, given: Sequences, *, hard: bool, threshold: float | Tensor | None) -> Shortening:
        states, mask, padding = given.states, given.mask, given.padding
        if self.spares_padding:
            padding = torch.zeros_like(padding)
        # Which bytes survive must not depend on the precision of the rest of the network.
        with torch.autocast(states.device.type, enabled=False):
            gate_BL, logits_BL = self.score(states, padding, given.input_ids)
        limit = self.config.threshold if threshold is None else threshold
        keep_BL = survivors((gate_BL > limit) & ~padding, gate_BL, ~padding, self.fallback)
        known: dict[str, Any] = {"delete_gate_output": gate_BL, "delete_gate_logits": logits_BL}
        known |= {"keep_mask": keep_BL, "kept_lengths": keep_BL.sum(dim=1)}
        if not hard:
            return Shortening(states, mask, None, key_gate=gate_BL.to(states.dtype), **known)
        positions_BK, valid_BK, count = compact(keep_BL, known["kept_lengths"], mask)
        mask = valid_BK.long() if mask is None else gather_rows(mask, positions_BK) * valid_BK
        return Shortening(gather_rows(states, positions_BK), mask, positions_BK, mask_count=count, **known)


class WeightlessGate(Gate):
    """Base of the paper's baselines without weights: subclasses implement `deleted`.

    Attributes:
        share: the configuration field with the fraction of bytes to delete.
    """

    share: ClassVar[str]
    reference = replace(GATE_OF_THE_REFERENCE, fixed=frozenset(("shortening_per", "hard_delete_positions")))

    @classmethod
    def check(cls, config: MrT5Config) -> None:
        check_share(config, cls.share)

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        self.per_row = config.shortening_per == "row"
        self.spares_padding = not self.per_row

    def deleted(self, padding: Tensor, input_ids: Tensor | None) -> Tensor:
        """(B, L) bool, the bytes to delete."""
        raise NotImplementedError

    def score(self, states: Tensor, padding: Tensor, input_ids: Tensor | None) -> tuple[Tensor, None]:
        values = torch.zeros(padding.shape, dtype=torch.float32, device=padding.device)
        return values.masked_fill(self.deleted(padding, input_ids) | padding, self.scale), None


def with_visible_fillers(shortening: Shortening, given: Sequences) -> Shortening:
    """The result of hard deletion, with the slots past a row's survivors as in the reference.

    There they contain the row's first byte, are as visible as that byte, and only the gate hides them.
    Outputs are the same, but the score loss, which ignores the gate, counts them. Any result but that of hard
    deletion is returned unchanged.
    """
    if shortening.positions is None or shortening.delete_gate_output is None:
        return shortening
    assert shortening.kept_lengths is not None  # set by every gate
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
