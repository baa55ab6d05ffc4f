"""MrT5's learned delete gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from mrt5cli.recipe.section import Coefficient, GateValue
from mrt5cli.recipe.shorteners.base import Configuration, Placed


class DeleteGate(Placed):
    """MrT5's learned delete gate."""

    deletion_types = ("scaled_sigmoid", "log_sigmoid")
    fields: ClassVar[Mapping[str, str]] = {
        "activation": "deletion_type",
        "threshold": "deletion_threshold",
        "bias_init": "gate_bias_init",
        "row_without_survivors": "row_without_survivors",
    }
    paper_name = "MrT5"
    called = "delete gate"
    about = (
        "MrT5: {model} that learned which bytes the rest of the network does not need and deletes them early "
        "in its encoder."
    )
    gates = True
    has_weights = True
    shaped_by = ("norm",)
    steered = True

    kind: Literal["delete_gate"]
    activation: Literal["scaled_sigmoid", "log_sigmoid"] = Field(
        "scaled_sigmoid",
        description="activation of the gate; 'scaled_sigmoid' is the paper's; 'log_sigmoid' is in the "
        "reference code but not in the paper",
    )
    scale: GateValue = Field(-30.0, description="gate value of a fully deleted byte")
    threshold: GateValue | None = Field(
        None,
        description="bytes with a gate value above it are kept; null: half the scale, or log 0.5 with "
        "log_sigmoid",
    )
    norm: Literal["rms", "layer", "none"] = Field(
        "rms", description="norm of the gate's input; 'rms' is the camera-ready's, 'layer' is v1's"
    )
    bias_init: Coefficient = Field(
        1.0,
        description="initial bias of the gate; above 0, every byte is kept at first; the paper's v1 used -1",
    )
    noise: Literal["none", "logistic", "gumbel"] = Field(
        "none",
        description="noise on the gate's logits in training; 'gumbel' is the reference's single, biased "
        "sample",
    )
    row_without_survivors: Literal["best", "first"] = Field(
        "best",
        description="the byte to keep if a row would lose all of them: 'best', the one with the highest gate "
        "value; 'first' is the reference's",
    )

    def misfits(self) -> Iterator[tuple[str, str]]:
        sigmoid = self.activation == "scaled_sigmoid"
        if sigmoid and self.threshold is not None and self.threshold <= self.scale:
            yield (
                "threshold",
                f"{self.threshold} is not above the scale {self.scale}; no byte would be deleted",
            )

    @classmethod
    def of_config(cls, config: Configuration) -> Self:
        noise = "gumbel" if config.gumbel_noise_law == "single" else "logistic"
        settings = {
            "norm": config.gate_layer_norm_type if config.gate_layer_norm else "none",
            "noise": noise if config.use_gumbel_noise else "none",
        }
        return super().of_config(config).model_copy(update=settings)

    def config_fields(self) -> dict[str, Any]:
        return super().config_fields() | {
            "gate_layer_norm": self.norm != "none",
            "gate_layer_norm_type": "layer" if self.norm == "layer" else "rms",
            "use_gumbel_noise": self.noise != "none",
            "gumbel_noise_law": "single" if self.noise == "gumbel" else "difference",
        }

    def phrase(self) -> str:
        return self.called if self.activation == "scaled_sigmoid" else f"{self.called} (log sigmoid)"

    def details(self) -> str:
        values = "gate values log sigmoid(z)"
        if self.activation == "scaled_sigmoid":
            values = f"gate values from {self.scale:g} (delete) to 0 (keep)"
        return f"; {values}; hard deletion keeps those above {self.threshold:g}"

    @property
    def lowest_gate_value(self) -> float:
        # The logarithm of a probability has no lower bound.
        return float("-inf") if self.activation == "log_sigmoid" else self.scale

    def share_deleted(self, target: float | None) -> float:
        return target or 0.0
