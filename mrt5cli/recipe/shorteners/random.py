"""Random deletion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from mrt5cli.recipe.section import GateValue, Rate
from mrt5cli.recipe.shorteners.base import Placed


class RandomGate(Placed):
    """Baseline: deletes random positions, in training and evaluation."""

    deletion_types = ("random",)
    fields: ClassVar[Mapping[str, str]] = {"rate": "random_deletion_probability"}
    paper_name = "Random"
    called = "random gate"
    about = "A baseline for MrT5: {model} that deletes random bytes early in its encoder."
    baseline = True
    gates = True
    refuses_threshold = "deletes at random, so its gate values are all or nothing"

    kind: Literal["random"]
    rate: Rate = Field(examples=[0.5], description="expected fraction of positions to delete")
    per: Literal["batch", "row"] = Field(
        "row",
        description="'row': the rate applies to each row's non-pad bytes; 'batch', the reference's: one "
        "sample per batch, padding included",
    )
    scale: GateValue = Field(-30.0, description="gate value of a deleted byte")

    def phrase(self) -> str:
        return f"{100 * self.rate:g} % deleted at random"

    def listed(self) -> str:
        return f"random {100 * self.rate:g} %"

    def share_deleted(self, target: float | None) -> float:
        return self.rate
