"""MrT5's learned delete gate.

Legend: B batch, L input bytes, D model width.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.t5.modeling_t5 import T5LayerNorm

from mrt5cli.models.shorteners.base import Reference, norm_in_float32
from mrt5cli.models.shorteners.gate import GATE_OF_THE_REFERENCE, Gate

if TYPE_CHECKING:  # config imports shorteners
    from mrt5cli.models.config import MrT5Config


class DeleteGate(Gate):
    """MrT5's learned gate: logit z = w . norm(h) + b, value G = scale * sigmoid(-z), or log sigmoid(z)."""

    deletion_types: ClassVar[tuple[str, ...]] = ("scaled_sigmoid", "log_sigmoid")
    reference: ClassVar[Reference | None] = replace(
        GATE_OF_THE_REFERENCE,
        fixed=frozenset(
            ("gate_layer_norm_type", "gumbel_noise_law", "row_without_survivors", "hard_delete_positions")
        ),
    )

    @classmethod
    def default_threshold(cls, config: MrT5Config) -> float:
        if config.deletion_type == "log_sigmoid":
            return math.log(0.5)
        return super().default_threshold(config)

    def initialise(self, config: MrT5Config) -> None:
        init.xavier_uniform_(self.feed_forward.weight)
        init.constant_(self.feed_forward.bias, float(config.gate_bias_init))

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        self.log_sigmoid = config.deletion_type == "log_sigmoid"
        self.noise = config.gumbel_noise_law if config.use_gumbel_noise else None
        self.layer_norm: T5LayerNorm | nn.LayerNorm | None = None
        if config.gate_layer_norm and config.gate_layer_norm_type == "layer":
            # PyTorch's epsilon, 1e-5, as in the first version of the authors' code.
            self.layer_norm = nn.LayerNorm(config.d_model)
        elif config.gate_layer_norm:
            self.layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.feed_forward = nn.Linear(config.d_model, 1)

    def read(self, states: Tensor) -> Tensor:
        """(B, L, D) in float32, the input of its linear layer."""
        return states.float() if self.layer_norm is None else norm_in_float32(self.layer_norm, states)

    def score(self, states: Tensor, padding: Tensor, input_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        weight, bias = self.feed_forward.weight.float(), self.feed_forward.bias.float()
        logits_BL = F.linear(self.read(states), weight, bias).squeeze(-1)
        if self.training and self.noise is not None:
            # The difference of two samples has mean 0; the reference's single one has mean 0.58.
            noise_BL = _gumbel(logits_BL)
            noise_BL = noise_BL - _gumbel(logits_BL) if self.noise == "difference" else noise_BL
            logits_BL = logits_BL + noise_BL
        values_BL = F.logsigmoid(logits_BL) if self.log_sigmoid else self.scale * torch.sigmoid(-logits_BL)
        return values_BL.masked_fill(padding, self.scale), logits_BL


def _gumbel(like: Tensor) -> Tensor:
    return -torch.empty_like(like).exponential_().log()
