"""BP, the boundary predictor, which pools learned segments (the paper's baseline, after Nawrot et al. 2023).

A segment is a run of bytes that ends at a boundary. It becomes the mean of its states, at the position of its
first byte.

Legend: B batch, L input bytes, S segments of the longest row, D model width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from mrt5cli.models.deletion import last_position
from mrt5cli.models.shorteners.base import Pooling, Reference, Sequences, Shortening, check_share, pooled

if TYPE_CHECKING:  # config imports shorteners
    from mrt5cli.models.config import MrT5Config


class BoundaryPredictor(Pooling):
    """Linear, GELU, linear on normed states: the logit of a segment ending at each byte.

    "gumbel" samples boundaries from a relaxed Bernoulli with straight-through gradients, and the binomial
    likelihood of the number of boundaries pulls it toward a rate. "entropy" and "unigram" learn from labels:
    in training, segments end where the labels do, and the predictor learns to reproduce them. In evaluation a
    segment ends where the logit is positive, for every type, unless `boundary_sampling` is "always". The last
    byte of a row always ends a segment.
    """

    deletion_types = ("boundary_predictor",)
    name = "boundary_predictor"
    reference = Reference(
        "BPT5ForConditionalGeneration",
        "t5",
        ("boundary_predictor_type", "prior"),
        # transformers would treat a field named `temperature` as a generation setting.
        {"boundary_predictor_layer": "delete_gate_layer", "temperature": "boundary_temperature"},
        frozenset(("shortening_per", "hard_delete_positions", "learned_positions", "boundary_sampling")),
    )

    @classmethod
    def check(cls, config: MrT5Config) -> None:
        check_share(config, "prior")
        if config.boundary_temperature <= 0:
            raise ValueError(f"boundary_temperature is {config.boundary_temperature}; expected more than 0")

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        self.boundary_predictor = nn.Sequential(
            nn.Linear(config.d_model, config.d_ff), nn.GELU(), nn.Linear(config.d_ff, 1)
        )
        self.kind = config.boundary_predictor_type
        self.prior = float(config.prior)
        self.temperature = float(config.boundary_temperature)
        self.always_draw = config.boundary_sampling == "always"

    @property
    def sees_batch(self) -> bool:
        return super().sees_batch or (self.kind == "gumbel" and self.always_draw)

    def initialise(self, config: MrT5Config) -> None:
        for linear in self._linears():
            init.xavier_uniform_(linear.weight)
            init.constant_(linear.bias, -1.0)

    def pool(self, given: Sequences, normed: Tensor) -> Shortening:
        real_BL = given.real
        if not self.per_row:
            real_BL = torch.ones_like(given.padding) if given.mask is None else given.mask != 0
        # Segments must not depend on the precision of the rest of the network.
        with torch.autocast(given.states.device.type, enabled=False):
            logits_BL = self._logits(normed)
            ends_BL, loss = self._ends(logits_BL, real_BL, given.segment_ends)
            states, positions, valid = self._mean(given.states, ends_BL, real_BL)
        # The reference computes this mask before pooling, where no slot is hidden yet.
        self_mask = torch.ones_like(valid) if self.hidden_once else None
        shortening = pooled(given, states, positions, valid, self_mask)
        return replace(shortening, boundary_logits=logits_BL, auxiliary_loss=loss)

    def _linears(self) -> tuple[nn.Linear, nn.Linear]:
        first, _, last = self.boundary_predictor
        return cast(nn.Linear, first), cast(nn.Linear, last)

    def _logits(self, normed: Tensor) -> Tensor:
        first, last = self._linears()
        hidden = F.gelu(F.linear(normed, first.weight.float(), first.bias.float()))
        return F.linear(hidden, last.weight.float(), last.bias.float()).squeeze(-1)

    def _ends(
        self, logits_BL: Tensor, real_BL: Tensor, labels_BL: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """1.0 where a segment ends, with straight-through gradients if sampled; and the training loss."""
        if self.kind != "gumbel" and self.training:
            if labels_BL is None:
                raise ValueError(
                    f"a boundary predictor of type {self.kind!r} learns from segment_ends: pass them in "
                    "training, (batch, length), true at the last byte of each segment"
                )
            ends_BL = _close_rows(labels_BL.to(logits_BL.dtype), real_BL)
            return ends_BL, F.binary_cross_entropy_with_logits(logits_BL[real_BL], ends_BL[real_BL])
        if self.kind != "gumbel" or not (self.training or self.always_draw):
            return _close_rows((logits_BL > 0).to(logits_BL.dtype), real_BL), None
        tiny = torch.finfo(logits_BL.dtype).eps
        uniform = torch.rand(logits_BL.shape, device=logits_BL.device).clamp(tiny, 1 - tiny)
        soft_BL = torch.sigmoid((torch.logit(uniform) + logits_BL) / self.temperature)
        ends_BL = (soft_BL > 0.5).to(soft_BL.dtype) - soft_BL.detach() + soft_BL
        ends_BL = _close_rows(ends_BL, real_BL)
        return ends_BL, self._binomial_loss(ends_BL, real_BL) if self.training else None

    def _binomial_loss(self, ends_BL: Tensor, real_BL: Tensor) -> Tensor:
        """Mean over rows of -log Binomial(number of boundaries; length, prior) / length."""
        length = (real_BL if self.per_row else torch.ones_like(real_BL)).sum(dim=1).to(ends_BL.dtype)
        ends = ends_BL.sum(dim=1)
        prior = ends.new_tensor(self.prior)
        log_likelihood = (
            torch.lgamma(length + 1)
            - torch.lgamma(ends + 1)
            - torch.lgamma(length - ends + 1)
            + torch.xlogy(ends, prior)
            + torch.xlogy(length - ends, 1 - prior)
        )
        return -(log_likelihood / length.clamp(min=1)).mean()

    def _mean(self, states: Tensor, ends_BL: Tensor, real_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled states (B, S, D), segment starts (B, S), non-empty slots (B, S) bool."""
        # The comparison maps NaN to False; as an integer it could be anything.
        hard_BL = (ends_BL.detach() > 0.5).long()
        counts = hard_BL.sum(dim=1)
        longest = max(1, int(counts.max()))  # the only device sync of a forward pass
        slots = torch.arange(longest, device=states.device)
        valid = slots < counts[:, None]
        segment_BL = hard_BL.cumsum(dim=1) - hard_BL
        # Every byte has weight 1, but a gradient: moving an earlier boundary moves it to another segment.
        before_BL = ends_BL.cumsum(dim=1) - ends_BL
        weight_BL = 1 + before_BL - before_BL.detach()
        member = segment_BL[:, None, :] == slots[:, None]  # [B, S, L]
        if self.per_row:
            member = member & real_BL[:, None, :]
        weight = member * weight_BL[:, None, :]
        weight = weight / (weight.sum(dim=2, keepdim=True) + 1e-9)
        # A matrix product, not a scatter: scatters on GPUs add in a different order each time.
        pooled = torch.bmm(weight, states.float()).to(states.dtype)
        starts = member.to(torch.uint8).argmax(dim=2) * valid
        return pooled, starts, valid


def _close_rows(ends_BL: Tensor, real_BL: Tensor) -> Tensor:
    """Remove boundaries outside the input, and add one at each row's last position."""
    return (ends_BL * real_BL).masked_fill(last_position(real_BL), 1.0)
