"""What models are fed in a benchmark: random bytes without padding, of which so many are deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrt5cli.models import MrT5ForConditionalGeneration


@dataclass(frozen=True)
class Shapes:
    """Sizes of a benchmark's inputs.

    Attributes:
        batch: rows.
        length, target: source and target positions of a row.
        rates: deletion rates, 0 to below 1.
        spreads: "even", "wide" or both: how kept lengths are spread over the rows.
        bf16: whether bfloat16 autocast is timed too.
    """

    batch: int
    length: int
    target: int
    rates: Sequence[float] = ()
    spreads: Sequence[str] = ("even",)
    bf16: bool = False

    def deletions(self) -> Iterator[tuple[str, Sequence[int]]]:
        """(what to call it, positions kept of each row) of each deletion to time."""
        for rate in self.rates:
            for spread in self.spreads if rate else ():
                yield f"{100 * rate:g} % {spread}", kept_lengths(self.batch, self.length, rate, spread)


def batch(base: MrT5ForConditionalGeneration, shapes: Shapes) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (B, L), their mask, and labels (B, T), where the model lies; the same each time."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 259, (shapes.batch, shapes.length), generator=generator)
    labels = torch.randint(3, 259, (shapes.batch, shapes.target), generator=generator)
    return ids.to(base.device), torch.ones_like(ids).to(base.device), labels.to(base.device)


def kept_lengths(rows: int, length: int, deleted: float, spread: str) -> Sequence[int]:
    """Positions that each row keeps: all the same, or from few to many around the same mean.

    Args:
        deleted: mean share of positions, 0 to 1.
        spread: "even", or "wide": shares up to 0.3 below and above the mean, but at most two thirds of the
            way to nothing and to all: 20 to 80 % at a rate of 0.5, 10 to 50 % at 0.7.
    """
    kept = 1 - deleted
    room = 0.0 if spread == "even" or rows == 1 else min(0.3, 2 / 3 * min(kept, deleted))
    shares = [kept + room * (2 * row / max(1, rows - 1) - 1) for row in range(rows)]
    return [max(1, round(length * share)) for share in shares]
