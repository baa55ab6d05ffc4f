"""The options of an evaluation: one value from the command line down to the loop over batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from mrt5cli.metrics.answers import Normalization
from mrt5cli.recipe import EvaluationSection, GenerationSection
from mrt5cli.runtime import Precision
from mrt5cli.writing import as_file_name


@dataclass(frozen=True)
class EvaluationOptions:
    """Everything that determines an evaluation except models, task and device.

    Attributes:
        split: "validation" or "test".
        subsets: languages, or parts of the test; None for all of the task's.
        batch_size: examples per batch.
        limit: examples per subset; None for all.
        hard_delete: remove positions, as at inference; False gates softly, as in training.
        threshold: gate value below which a byte is deleted, instead of the model's own; hard deletion only.
        source_removed: also score the same targets without their source.
        measures: the task's measures to compute besides the teacher-forced numbers; None for all. Measures of
            answers are slow, because answers have to be generated.
        generation: how answers are generated.
        constrained: also choose the likeliest of the task's choices.
        normalization: normalization of answers, see `metrics.answers`; None for the task's.
        precision: precision of the model's weights.
        runtime: also time forward passes, five per batch.
        deletion_rates: also evaluate with the threshold calibrated to each of these rates on `limit`
            validation examples per subset.
        test_difference: also test whether the two models differ.
        predictions: file for the generated answers, one row per example.
        data: path that replaces the task's own source, for the record.
        recipe: the value of --task; empty if the run's own task is measured.
        label: suffix of the results file's name, for results that would otherwise share one.
    """

    split: str = "test"
    subsets: Sequence[str] | None = None
    batch_size: int = 16
    limit: int | None = None
    hard_delete: bool = True
    threshold: float | None = None
    source_removed: bool = True
    measures: Sequence[str] | None = None
    generation: GenerationSection = field(default_factory=GenerationSection)
    constrained: bool = False
    normalization: Normalization | None = None
    precision: Precision = "fp32"
    runtime: bool = False
    deletion_rates: Sequence[float] = ()
    test_difference: bool = False
    predictions: Path | None = None
    data: str | None = None
    recipe: str = ""
    label: str = ""

    @classmethod
    def of(cls, section: EvaluationSection) -> Self:
        """The options that a recipe's `evaluation` section sets."""
        return cls(
            batch_size=section.batch_size,
            limit=section.examples,
            hard_delete=section.hard_delete,
            generation=section.generation,
        )

    @property
    def deletion(self) -> str:
        """ "hard" or "soft"."""
        return "hard" if self.hard_delete else "soft"

    def result_name(self, kind: str, checkpoint: str | None = None) -> str:
        """The stem of the results file in a run's eval/ folder, different for options that change numbers.

        Args:
            kind: the task's kind.
            checkpoint: folder name of the checkpoint; None for the finished model.
        """
        parts = [
            kind,
            "" if self.split == "test" else self.split,
            "" if self.hard_delete else "soft",
            "constrained" if self.constrained else "",
            self.normalization,
            *self.generation.named(),
            "" if self.precision == "fp32" else self.precision,
            "" if self.subsets is None else "+".join(self.subsets),
            "rates" if self.deletion_rates else "",
            "" if self.data is None else f"data-{Path(self.data).resolve().name}",
            checkpoint,
            self.label,
        ]
        return as_file_name("-".join(part for part in parts if part))
