"""BP, the boundary predictor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mrt5cli import bounds
from mrt5cli.recipe.section import HeldExamples
from mrt5cli.recipe.shorteners.base import Placed


class BoundaryPredictor(Placed):
    """Baseline BP: learned segments, each pooled into one position (after Nawrot et al. 2023)."""

    deletion_types = ("boundary_predictor",)
    fields: ClassVar[Mapping[str, str]] = {
        "type": "boundary_predictor_type",
        "prior": "prior",
        "temperature": "boundary_temperature",
        "sampling": "boundary_sampling",
    }
    paper_name = "BP"
    called = "boundary predictor"
    about = (
        "BP, a baseline for MrT5: {model} that learned to split its input into segments and pools each into "
        "one position early in its encoder."
    )
    baseline = True
    pools = True
    has_weights = True
    refuses_threshold = "pools segments, whose ends do not depend on gate values"

    kind: Literal["boundary_predictor"]
    type: Literal["gumbel", "entropy", "unigram"] = Field(
        "gumbel",
        description="what boundaries are learned from: 'gumbel', the loss and a prior; 'entropy', peaks in "
        "the entropy of a byte model; 'unigram', the tokens of a unigram tokenizer; byte model and tokenizer "
        "are fitted to the training text before the first step",
    )
    prior: Annotated[float, Field(ge=1e-6, le=0.999999)] = Field(
        0.2, description="expected fraction of positions to keep; only with type: gumbel"
    )
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = Field(
        0.5, description="temperature of boundary sampling; only with type: gumbel"
    )
    sampling: Literal["training", "always"] = Field(
        "training",
        description="when boundaries are sampled rather than thresholded; 'always' is the reference's",
    )
    per: Literal["batch", "row"] = Field(
        "row",
        description="'row': a row attends to its own segments; 'batch', the reference's: it also attends to "
        "empty positions of shorter rows",
    )
    label_examples: HeldExamples = Field(
        2000, description="source texts to fit the byte model or tokenizer to; not with type: gumbel"
    )
    vocabulary: Annotated[int, Field(ge=257, le=bounds.VOCABULARY)] = Field(
        8000, description="size of the tokenizer's vocabulary, 256 bytes included; only with type: unigram"
    )

    def misfits(self) -> Iterator[tuple[str, str]]:
        only = {
            "gumbel": ("prior", "temperature", "sampling"),
            "entropy": ("label_examples",),
            "unigram": ("label_examples", "vocabulary"),
        }
        foreign = {key for keys in only.values() for key in keys} - set(only[self.type])
        for key in sorted(foreign & self.model_fields_set):
            if not self.is_default(key):
                yield key, f"has no effect with type: {self.type}; leave it out"

    def phrase(self) -> str:
        return f"{self.called} ({self.type})"

    def listed(self) -> str:
        return f"{self.paper_name} {f'prior {self.prior:g}' if self.type == 'gumbel' else self.type}"

    @property
    def own_loss_per_position(self) -> bool:
        return self.type != "gumbel"  # one label per position

    @property
    def own_loss(self) -> str | None:
        return "binomial" if self.type == "gumbel" else "boundary"

    @property
    def labels(self) -> str | None:
        return None if self.type == "gumbel" else self.type

    def share_deleted(self, target: float | None) -> float:
        return 1 - self.prior if self.type == "gumbel" else 0.0

    def smallest(self) -> dict[str, int]:
        # Settings without effect for a type are refused, so they keep their defaults.
        limits = {} if self.labels is None else {"label_examples": 64}
        return limits | ({"vocabulary": 300} if self.type == "unigram" else {})
