"""Delete gates: something scores every byte, and low scores are masked (soft) or removed (hard). Paper
section 3.1.

Legend: B batch, L input bytes, K kept slots, D model width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

from mrt5cli.models.config import MrT5Config
from mrt5cli.models.packing import compact, gather_rows, survivors
from mrt5cli.models.shorteners.base import Sequences, Shortener, Shortening, norm_in_float32

HIDDEN = -1e9
"""Gate value that hides a slot, whatever its score."""


class Gate(Shortener):
    """Base of the gates: subclasses score the bytes, this class deletes them softly or for real.

    Attributes:
        spares_padding: padding is scored, and kept, like every other byte, as gates without parameters do in
            the reference. Only where nobody passes a mask does this show.
    """

    def __init__(self, config: MrT5Config) -> None:
        super().__init__()
        self.scale = float(config.sigmoid_mask_scale)
        self.threshold = float(config.deletion_threshold)
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
        common = {"gate_values": gate_BL, "gate_logits": logits_BL}
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


class DeleteGate(Gate):
    """MrT5's learned gate: logit z = w . norm(h) + b; value scale * sigmoid(-z), or log sigmoid(z)."""

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        self.log_sigmoid = config.deletion_type == "log_sigmoid"
        self.noise = config.gumbel_noise_law if config.use_gumbel_noise else None
        self.layer_norm: nn.Module | None = None
        if config.gate_layer_norm and config.gate_layer_norm_type == "layer":
            # PyTorch's epsilon, 1e-5, as in the first version of the authors' code.
            self.layer_norm = nn.LayerNorm(config.d_model)
        elif config.gate_layer_norm:
            self.layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.feed_forward = nn.Linear(config.d_model, 1)

    def score(self, states: Tensor, padding: Tensor, input_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        weight, bias = self.feed_forward.weight.float(), self.feed_forward.bias.float()
        states = states.float() if self.layer_norm is None else norm_in_float32(self.layer_norm, states)
        logits_BL = F.linear(states, weight, bias).squeeze(-1)
        if self.training and self.noise is not None:
            logits_BL = logits_BL + _gate_noise(logits_BL, self.noise)
        values_BL = F.logsigmoid(logits_BL) if self.log_sigmoid else self.scale * torch.sigmoid(-logits_BL)
        return values_BL.masked_fill(padding, self.scale), logits_BL


def _gate_noise(like: Tensor, law: str) -> Tensor:
    """Gumbel noise: a zero-mean difference of two samples, or the reference's one, whose mean is 0.58."""

    def sample() -> Tensor:
        return -torch.empty_like(like).exponential_().log()

    return sample() - sample() if law == "difference" else sample()
