"""A delete gate conditioned on a target rate: one model for every deletion rate. Not in the paper.

Legend: B batch, L input bytes, D model width, K knots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from mrt5cli.models.shorteners.base import Sequences, Shortening
from mrt5cli.models.shorteners.delete_gate import DeleteGate

if TYPE_CHECKING:  # config imports shorteners
    from mrt5cli.models.config import MrT5Config

KNOTS = 21
"""Number of learned quantiles, from the lowest score to the highest; the cut is interpolated between two."""


class QuantileGate(DeleteGate):
    """MrT5's gate with a bias set by the requested rate r: logit z = w . norm(h) - q(r).

    q(r) is the quantile of the scores w . norm(h) of all bytes below which a fraction r of them lies.

    The rate is an input, not the result of a controller. Training samples it for each micro-batch, uniformly
    between `lowest_rate` and `highest_rate`; in evaluation the threshold sets it. The K quantiles are learned
    from their pinball losses over the scores, each of which is minimal at its quantile; sorting makes q
    monotone. Cross-entropy alone moves w, which ranks the bytes. A gate loss would have no effect: the
    quantiles follow a push on all bytes.

    The gate value is scale * (1 - u), where u is the lowest rate at which the byte is deleted, according to
    the learned quantiles. So the threshold for rate r is scale * (1 - r), without calibration. In soft
    deletion attention sees scale * sigmoid(-z), as with MrT5's gate.
    """

    deletion_types = ("quantile",)
    reference = None
    own_fields: ClassVar[Mapping[str, Any]] = {"lowest_rate": 0.0, "highest_rate": 0.8}

    @classmethod
    def check(cls, config: MrT5Config) -> None:
        if not 0 <= config.lowest_rate <= config.highest_rate < 1:
            raise ValueError(
                f"lowest_rate is {config.lowest_rate} and highest_rate is {config.highest_rate}; expected "
                "0 <= lowest_rate <= highest_rate < 1"
            )

    @classmethod
    def threshold_at(cls, config: MrT5Config, rate: float) -> float | None:
        # Rate 0 needs a threshold below every gate value, and the lowest one is `scale` itself.
        return config.sigmoid_mask_scale * (1 - rate) if rate else config.sigmoid_mask_scale - 1

    @classmethod
    def rate_at(cls, config: MrT5Config, threshold: float) -> float | None:
        return max(0.0, 1 - threshold / config.sigmoid_mask_scale)

    @classmethod
    def default_threshold(cls, config: MrT5Config) -> float:
        threshold = cls.threshold_at(config, 0.5 if config.deletion_rate is None else config.deletion_rate)
        assert threshold is not None
        return threshold

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        self.feed_forward = nn.Linear(config.d_model, 1, bias=False)
        self.knots = nn.Parameter(torch.empty(KNOTS))
        # Adam moves each weight by about the learning rate, and a score by the sum over D weights. The
        # parameters are knots / D, so that knots keep up with scores.
        self.gain = float(config.d_model)

    def initialise(self, config: MrT5Config) -> None:
        init.xavier_uniform_(self.feed_forward.weight)
        # The quantiles of a normal distribution with the variance that fresh weights give a normalized state.
        spread = math.sqrt(2 * config.d_model / (config.d_model + 1))
        levels = torch.linspace(0, 1, KNOTS).clamp(0.5 / KNOTS, 1 - 0.5 / KNOTS)
        init.copy_(self.knots, spread * torch.special.ndtri(levels) / self.gain)

    def score(self, states: Tensor, padding: Tensor, input_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        scores_BL = F.linear(self.read(states), self.feed_forward.weight.float()).squeeze(-1)
        knots = self._quantiles().detach()
        # Remove the gradient that moves all scores together, which the quantiles would have to follow.
        mean = scores_BL.masked_fill(padding, 0.0).sum() / (~padding).sum()
        scores_BL = scores_BL - (mean - mean.detach())
        above_BL = torch.bucketize(scores_BL.detach(), knots).clamp(1, KNOTS - 1)
        low_BL, high_BL = knots[above_BL - 1], knots[above_BL]
        within_BL = ((scores_BL - low_BL) / (high_BL - low_BL).clamp(min=1e-6)).clamp(0, 1)
        rates_BL = (above_BL - 1 + within_BL) / (KNOTS - 1)
        return (self.scale * (1 - rates_BL)).masked_fill(padding, self.scale), scores_BL

    def forward(self, given: Sequences, *, hard: bool, threshold: float | Tensor | None) -> Shortening:
        if self.training and threshold is None:
            low, high = float(self.config.lowest_rate), float(self.config.highest_rate)
            rate = low + (high - low) * torch.rand((), device=given.states.device)
            threshold = self.scale * (1 - rate)
        shortening = super().forward(given, hard=hard, threshold=threshold)
        scores_BL, key_gate, loss = shortening.delete_gate_logits, shortening.key_gate, None
        assert scores_BL is not None  # set by `score`
        if not hard:
            limit = self.config.threshold if threshold is None else threshold
            cut = self._cut(1 - torch.as_tensor(limit, device=scores_BL.device) / self.scale)
            key_gate = self.scale * torch.sigmoid(cut - scores_BL)
            key_gate = key_gate.masked_fill(given.padding, self.scale).to(given.states.dtype)
        if self.training:
            loss = self._pinball(scores_BL.detach(), ~given.padding)
        return replace(shortening, key_gate=key_gate, auxiliary_loss=loss)

    def _quantiles(self) -> Tensor:
        """(K,) float32, ascending."""
        return self.gain * self.knots.float().sort().values

    def _cut(self, rate: Tensor) -> Tensor:
        """The score below which bytes are deleted at a rate, 0-dim; -inf at rate 0 or less."""
        places = torch.arange(KNOTS, device=rate.device)
        shares = (1 - (rate * (KNOTS - 1) - places).abs()).clamp(min=0)
        cut = (shares * self._quantiles().detach()).sum()
        return torch.where(rate > 0, cut, -math.inf)

    def _pinball(self, scores_BL: Tensor, real_BL: Tensor) -> Tensor:
        """The mean pinball loss over bytes and knots."""
        levels = torch.linspace(0, 1, KNOTS, device=scores_BL.device)
        above_BLK = scores_BL[..., None] - self._quantiles()
        each_BL = torch.maximum(levels * above_BLK, (levels - 1) * above_BLK).mean(dim=-1)
        return (each_BL * real_BL).sum() / real_BL.sum()
