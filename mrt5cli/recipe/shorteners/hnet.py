"""The router of H-Net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mrt5cli import bounds
from mrt5cli.recipe.section import GateValue, NonNegative
from mrt5cli.recipe.shorteners.base import Placed


class HNet(Placed):
    """H-Net's router: keeps a byte that differs from the one before (Hwang et al. 2025)."""

    deletion_types = ("hnet",)
    fields: ClassVar[Mapping[str, str]] = {"ratio": "router_ratio", "ratio_weight": "router_ratio_weight"}
    paper_name = "H-Net"
    called = "H-Net router"
    about = (
        "H-Net's router in an encoder: {model} that learned where a byte differs enough from the one before "
        "to start a chunk, and keeps the first byte of each chunk early in its encoder."
    )
    gates = True
    has_weights = True

    kind: Literal["hnet"]
    ratio: Annotated[float, Field(gt=1.0, le=bounds.LENGTH)] = Field(
        examples=[2.0],
        description="target of the ratio loss: bytes per chunk, of which one is kept",
    )
    ratio_weight: NonNegative = Field(0.03, description="weight of the ratio loss; 0.03 is the H-Net paper's")
    scale: GateValue = Field(-30.0, description="gate value of a byte that is certainly not a boundary")

    def phrase(self) -> str:
        return f"{self.called} with a target of one in {self.ratio:g} bytes,"

    def listed(self) -> str:
        return f"{self.paper_name} ratio {self.ratio:g}"

    @property
    def own_loss(self) -> str | None:
        return f"{self.ratio_weight:g} * ratio"

    def share_deleted(self, target: float | None) -> float:
        return 1 - 1 / self.ratio
