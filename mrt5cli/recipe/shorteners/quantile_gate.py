"""A delete gate conditioned on a target rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from mrt5cli.recipe.section import DropProbability, GateValue
from mrt5cli.recipe.shorteners.base import Placed


class QuantileGate(Placed):
    """A delete gate conditioned on a target rate: one model for every deletion rate. Not in the paper."""

    deletion_types = ("quantile",)
    fields: ClassVar[Mapping[str, str]] = {
        "lowest": "lowest_rate",
        "highest": "highest_rate",
        "rate": "deletion_rate",
    }
    paper_name = "any rate"
    called = "quantile gate"
    about = (
        "MrT5 at any rate: {model} that learned to rank bytes by how much the rest of the network needs "
        "them, and deletes the requested fraction early in its encoder."
    )
    gates = True
    has_weights = True

    kind: Literal["quantile_gate"]
    lowest: DropProbability = Field(
        0.0, description="lowest target rate; training samples one uniformly for each batch"
    )
    highest: DropProbability = Field(0.8, description="highest target rate in training")
    rate: DropProbability = Field(0.5, description="default target rate of the model")
    scale: GateValue = Field(-30.0, description="gate value of a fully deleted byte")

    def misfits(self) -> Iterator[tuple[str, str]]:
        if self.lowest > self.highest:
            yield "lowest", f"{self.lowest:g} is above highest {self.highest:g}"
        elif self.beyond_training(self.rate):
            yield (
                "rate",
                f"{self.rate:g} is outside the range of training, {self.lowest:g} to {self.highest:g}",
            )

    def phrase(self) -> str:
        return f"{self.called}, trained to delete {100 * self.lowest:g} to {100 * self.highest:g} %"

    def details(self) -> str:
        return f"; a requested rate r is the threshold {self.scale:g} * (1 - r)"

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
