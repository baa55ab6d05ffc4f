"""H-Net's router (Hwang et al. 2025, arXiv 2507.07955): boundaries are where neighboring bytes differ.

Legend: B batch, L input bytes, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from mrt5cli.models.shorteners.base import Sequences, Shortening
from mrt5cli.models.shorteners.gate import Gate

if TYPE_CHECKING:  # config imports shorteners
    from mrt5cli.models.config import MrT5Config


class Router(Gate):
    """Byte t begins a chunk with probability p_t = (1 - cos(W_q h_t, W_k h_{t-1})) / 2; a row's first with 1.

    It is a gate and not a pooling, because H-Net's chunking keeps the state of each chunk's first byte
    unchanged and drops the others; its later stages serve a decoder that predicts every next byte. Hard
    deletion keeps the bytes with p_t above 0.5. The gate value is scale * (1 - p_t).

    The choice is straight-through. In the forward pass of soft deletion, a byte that is not a boundary is
    hidden by the full scale and a boundary is not hidden at all, which is what hard deletion computes. In the
    backward pass the gate is p_t: H-Net multiplies the states of boundaries by a confidence of value 1 and
    gradient p_t, and a gate is the logarithm of such a factor. No gradient reaches a hidden key; those are
    moved by the ratio loss of H-Net's paper, N / (N - 1) * ((N - 1) F G + (1 - F) (1 - G)) for each row,
    where F is its fraction of boundaries, G the mean of its p_t, and 1 / N the target fraction.
    """

    deletion_types = ("hnet",)
    name = "router"
    own_fields: ClassVar[Mapping[str, Any]] = {"router_ratio": 2.0, "router_ratio_weight": 0.03}

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        self.ratio = float(config.router_ratio)
        self.ratio_weight = float(config.router_ratio_weight)
        self.query = nn.Linear(config.d_model, config.d_model, bias=False)
        self.key = nn.Linear(config.d_model, config.d_model, bias=False)

    @classmethod
    def check(cls, config: MrT5Config) -> None:
        if config.router_ratio <= 1:
            raise ValueError(f"router_ratio is {config.router_ratio}; expected more than 1")
        if config.router_ratio_weight < 0:
            raise ValueError(f"router_ratio_weight is {config.router_ratio_weight}; expected 0 or more")

    def initialise(self, config: MrT5Config) -> None:
        for projection in (self.query, self.key):
            init.eye_(projection.weight)

    def score(self, states: Tensor, padding: Tensor, input_ids: Tensor | None) -> tuple[Tensor, None]:
        states = states.float()
        query = F.linear(states[:, 1:], self.query.weight.float())
        key = F.linear(states[:, :-1], self.key.weight.float())
        rest_BL = (1 - F.cosine_similarity(query, key, dim=-1)) / 2
        probability_BL = F.pad(rest_BL, (1, 0), value=1.0)
        real = ~padding
        first = real & (real.long().cumsum(dim=1) == 1)
        probability_BL = probability_BL.masked_fill(first, 1.0)
        return (self.scale * (1 - probability_BL)).masked_fill(padding, self.scale), None

    def forward(self, given: Sequences, *, hard: bool, threshold: float | Tensor | None) -> Shortening:
        shortening = super().forward(given, hard=hard, threshold=threshold)
        values_BL, keep_BL = shortening.delete_gate_output, shortening.keep_mask
        assert values_BL is not None and keep_BL is not None  # set by every gate
        loss = self._ratio_loss(values_BL, keep_BL, ~given.padding) if self.training else None
        key_gate = shortening.key_gate
        if not hard:
            chosen = torch.zeros_like(values_BL).masked_fill(~keep_BL, self.scale)
            probability = -values_BL / self.scale
            key_gate = (chosen + probability - probability.detach()).to(given.states.dtype)
        return replace(shortening, key_gate=key_gate, auxiliary_loss=loss)

    def _ratio_loss(self, values_BL: Tensor, keep_BL: Tensor, real_BL: Tensor) -> Tensor:
        """The weighted mean over rows; 1 at the target ratio, before the weight."""
        length = real_BL.sum(dim=1).clamp(min=1)
        actual = keep_BL.sum(dim=1) / length
        mean = ((1 - values_BL / self.scale) * real_BL).sum(dim=1) / length
        rate = self.ratio
        loss = rate / (rate - 1) * ((rate - 1) * actual * mean + (1 - actual) * (1 - mean))
        return self.ratio_weight * loss.mean()
