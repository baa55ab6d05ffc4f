"""CP, convolutional pooling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mrt5cli import bounds
from mrt5cli.recipe.shorteners.base import Placed


class Convolution(Placed):
    """Baseline CP: a strided convolution pools a fixed number of positions into one (after CANINE)."""

    deletion_types = ("convolution",)
    fields: ClassVar[Mapping[str, str]] = {"stride": "downsampling_rate"}
    paper_name = "CP"
    called = "strided convolution"
    about = (
        "CP, a baseline for MrT5: {model} that shortens its input early in its encoder with a strided "
        "convolution."
    )
    baseline = True
    pools = True
    has_weights = True
    shaped_by = ("stride",)
    refuses_threshold = "pools every {stride} positions, regardless of their content"

    kind: Literal["convolution"]
    stride: Annotated[int, Field(ge=2, le=bounds.LENGTH)] = Field(
        examples=[4], description="number of positions that become one"
    )
    per: Literal["batch", "row"] = Field(
        "row",
        description="'row': windows over a row's own bytes, of which the last may be incomplete; 'batch', "
        "the reference's: windows over the padded batch, without its remainder",
    )

    def phrase(self) -> str:
        return f"convolution with stride {self.stride}"

    def listed(self) -> str:
        return f"{self.paper_name} stride {self.stride}"

    @property
    def window(self) -> int | None:
        return self.stride

    def share_deleted(self, target: float | None) -> float:
        return 1 - 1 / self.stride

    def smallest(self) -> dict[str, int]:
        return {"stride": 4}
