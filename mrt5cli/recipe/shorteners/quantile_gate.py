"""A delete gate that is told how much to delete."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from mrt5cli.recipe.section import DropProbability, GateValue
from mrt5cli.recipe.shorteners.base import Placed


class QuantileGate(Placed):
    """A delete gate that is told how much to delete: one model for every deletion rate. Not in the paper."""

    deletion_types = ("quantile",)
    fields: ClassVar[Mapping[str, str]] = {
        "lowest": "lowest_rate",
        "highest": "highest_rate",
        "rate": "deletion_rate",
    }
    paper_name = "any rate"
    called = "quantile gate"
    about = (
        "MrT5 at any rate: {model} that learned in which order the rest of the network can do without the "
        "bytes, and deletes the share that it is told early in its encoder."
    )
    gates = True
    has_weights = True

    kind: Literal["quantile_gate"]
    lowest: DropProbability = Field(0.0, description="least rate that training draws, uniformly, for a batch")
    highest: DropProbability = Field(0.8, description="greatest rate that training draws")
    rate: DropProbability = Field(0.5, description="rate of a model that is told no other")
    scale: GateValue = Field(-30.0, description="gate value of a fully deleted byte")

    def misfits(self) -> Iterator[tuple[str, str]]:
        if self.lowest > self.highest:
            yield "lowest", f"{self.lowest:g} is above highest {self.highest:g}"
        elif self.beyond_training(self.rate):
            drawn = f"lowest {self.lowest:g} to highest {self.highest:g}"
            yield "rate", f"{self.rate:g} is outside the range that training draws from, {drawn}"

    def phrase(self) -> str:
        return f"{self.called}, trained to delete {100 * self.lowest:g} to {100 * self.highest:g} %"

    def details(self) -> str:
        return f"; the rate r that it is told is the threshold {self.scale:g} * (1 - r)"

    def beyond_training(self, rate: float) -> str | None:
        if self.lowest <= rate <= self.highest:
            return None
        return f"was trained to delete {100 * self.lowest:g} to {100 * self.highest:g} %"

    @property
    def own_loss_per_position(self) -> bool:
        return True

    @property
    def own_loss(self) -> str | None:
        return "quantile"

    @property
    def lowest_gate_value(self) -> float:
        return self.scale

    def share_deleted(self, target: float | None) -> float:
        return self.rate
