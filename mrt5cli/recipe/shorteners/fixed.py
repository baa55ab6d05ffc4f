"""Fixed deletion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from mrt5cli.recipe.section import GateValue, Rate
from mrt5cli.recipe.shorteners.base import Placed


class FixedGate(Placed):
    """Baseline: deletes the end of every word; a word starts at white space, punctuation or EOS."""

    deletion_types = ("fixed",)
    fields: ClassVar[Mapping[str, str]] = {"amount": "fixed_deletion_amount"}
    paper_name = "Fixed"
    called = "fixed gate"
    about = "A baseline for MrT5: {model} that deletes the end of every word early in its encoder."
    baseline = True
    gates = True
    refuses_threshold = "deletes the ends of words, so its gate values are all or nothing"

    kind: Literal["fixed"]
    amount: Rate = Field(examples=[0.5], description="fraction of each word that is deleted, rounded down")
    per: Literal["batch", "row"] = Field(
        "row",
        description="'row': each row's own words; 'batch', the reference's: one mask for all rows, from word "
        "lengths summed over them",
    )
    scale: GateValue = Field(-30.0, description="gate value of a deleted byte")

    def phrase(self) -> str:
        return f"the last {100 * self.amount:g} % of every word deleted"

    def listed(self) -> str:
        return f"fixed {100 * self.amount:g} %"

    def share_deleted(self, target: float | None) -> float:
        return self.amount
