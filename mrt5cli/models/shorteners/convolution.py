"""CP, convolutional pooling: a strided convolution (the paper's baseline, after CANINE, Clark et al. 2022).

Legend: B batch, L input bytes, S windows, D model width, R the stride.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from mrt5cli.models.shorteners.base import Pooling, Reference, Sequences, Shortening, pooled

if TYPE_CHECKING:  # config imports shorteners
    from mrt5cli.models.config import MrT5Config


class Convolution(Pooling):
    """Pools every R positions into one: norm, convolution of width and stride R, GELU.

    Per row, padding counts as zero and the last window may be partly empty: a row keeps ceil(length / R)
    positions. Per batch, the reference's mode, windows cover the padded batch, pad states included, and drop
    a tail shorter than R unless there is nothing else.
    """

    deletion_types = ("convolution",)
    name = "downsampling_module"
    reference = Reference(
        "CanineT5ForConditionalGeneration",
        "t5",
        ("downsampling_rate",),
        {"downsampling_layer": "delete_gate_layer"},
        frozenset(("shortening_per", "hard_delete_positions", "learned_positions")),
    )

    @classmethod
    def check(cls, config: MrT5Config) -> None:
        if config.downsampling_rate < 2:
            raise ValueError(f"downsampling_rate is {config.downsampling_rate}; expected 2 or more")

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        self.rate = config.downsampling_rate
        self.conv = nn.Conv1d(config.d_model, config.d_model, self.rate, stride=self.rate)

    def initialise(self, config: MrT5Config) -> None:
        # PyTorch's default, which the reference keeps.
        bound = (self.conv.in_channels * self.rate) ** -0.5
        init.uniform_(self.conv.weight, -bound, bound)
        assert self.conv.bias is not None
        init.uniform_(self.conv.bias, -bound, bound)

    def pool(self, given: Sequences, normed: Tensor) -> Shortening:
        states, real_BL, length = normed, given.real, normed.shape[1]
        if self.per_row:
            states = states * real_BL[..., None]
            states = F.pad(states, (0, 0, 0, -length % self.rate))
        elif length < self.rate:
            # The reference fails here; the source-removed comparison, whose source is one EOS, must not.
            states = F.pad(states, (0, 0, 0, self.rate - length))
        # Autocast computes the convolution in half precision; the residual stream keeps its precision.
        convolved = self.conv(states.transpose(1, 2).to(self.conv.weight.dtype))
        states = F.gelu(convolved.to(given.states.dtype)).transpose(1, 2)
        positions = torch.arange(0, length, self.rate, device=states.device)[: states.shape[1]]
        positions = positions.expand(states.shape[0], -1)
        self_mask = None
        if self.per_row:
            valid = self._any_in_window(real_BL)
        elif given.mask is None:
            valid = torch.ones_like(positions, dtype=torch.bool)
        else:
            valid = self._any_in_window(given.mask != 0)[:, : states.shape[1]]
            if self.hidden_once:  # a window is hidden if its first byte is
                self_mask = given.mask.gather(1, positions)
        return pooled(given, states, positions, valid, self_mask)

    def _any_in_window(self, real_BL: Tensor) -> Tensor:
        """(B, S) bool, windows with at least one real byte, the last and partial one included."""
        return F.pad(real_BL, (0, -real_BL.shape[1] % self.rate)).unflatten(1, (-1, self.rate)).any(dim=2)
