"""Random deletion, the paper's baseline: a gate without weights.

Legend: B batch, L input bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mrt5cli.models.shorteners.gate import WeightlessGate

if TYPE_CHECKING:  # config imports shorteners
    from mrt5cli.models.config import MrT5Config

RATE_SPREAD = 0.05
"""Standard deviation of the deletion rate, which is sampled around the configured one."""


class RandomGate(WeightlessGate):
    """Deletes random bytes, in training and in evaluation.

    Per row, a rate is sampled around the configured one for each row's non-pad bytes. In evaluation the
    random numbers are a function of the row's own bytes, so results are reproducible and do not depend on the
    batch. Per batch, the reference's mode, samples one rate, and positions among all of the batch, padding
    included.
    """

    deletion_types = ("random",)
    share = "random_deletion_probability"

    def __init__(self, config: MrT5Config) -> None:
        super().__init__(config)
        self.rate = float(config.random_deletion_probability)

    def deleted(self, padding: Tensor, input_ids: Tensor | None) -> Tensor:
        if not self.per_row:
            return delete_over_batch(self.rate + RATE_SPREAD * torch.randn(()).item(), padding)
        if input_ids is None and not self.training:
            raise ValueError(
                "random deletion in evaluation derives its random numbers from input_ids, so that results "
                "are reproducible; it cannot run on inputs_embeds"
            )
        return self._delete_by_row(padding, None if self.training else input_ids)

    def _delete_by_row(self, padding: Tensor, input_ids: Tensor | None) -> Tensor:
        if input_ids is None:
            spread = torch.randn(padding.shape[0], device=padding.device)
            order = torch.rand(padding.shape, device=padding.device)
        else:
            uniform = _uniform_from_bytes(input_ids.masked_fill(padding, 0))
            order, first, second = uniform[:, :-2], uniform[:, -2], uniform[:, -1]
            spread = torch.sqrt(-2 * torch.log(first)) * torch.cos(2 * torch.pi * second)  # Box-Muller
        lengths = (~padding).sum(dim=1)
        rate = (self.rate + RATE_SPREAD * spread).clamp(0, 1)
        count = (rate * lengths).round().long()
        # Stable, because random numbers may tie, and padding must not decide the order.
        rank = order.masked_fill(padding, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
        return rank < count[:, None]


def delete_over_batch(draw: float, padding: Tensor) -> Tensor:
    """The reference's random deletion: (B, L) bool, a sampled fraction of all positions of the batch."""
    # In the reference a negative sample wraps around and deletes nearly everything; nothing depends on that.
    count = int(min(max(draw, 0.0), 1.0) * padding.numel())
    deleted = torch.zeros(padding.numel(), dtype=torch.bool, device=padding.device)
    deleted[torch.randperm(padding.numel(), device=padding.device)[:count]] = True
    return deleted.view(padding.shape)


def _uniform_from_bytes(ids: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), (B, L + 2), from ids (B, L): independent of the padding behind a row."""
    position = torch.arange(1, ids.shape[1] + 3, device=ids.device)
    key = _mix(ids * 1_000_003 + position[:-2] * ids.ne(0)).mul(ids.ne(0)).sum(dim=1, keepdim=True)
    # The last two columns must not depend on the length of the padding, so they get negative numbers.
    position[-2:] = torch.tensor([-1, -2], device=ids.device)
    return (_mix(key + position * 7_919).bitwise_and(0xFFFFFF).float() + 0.5) / 0x1000000


def _mix(value: Tensor) -> Tensor:
    """A 31-bit integer hash in int64 arithmetic that never overflows."""
    value = value.bitwise_and(0x7FFFFFFF)
    for _ in range(2):
        value = value.bitwise_xor(value >> 15)
        value = (value * 0x2C1B3C6D).bitwise_and(0x7FFFFFFF)
        value = value.bitwise_xor(value >> 12)
    return value
