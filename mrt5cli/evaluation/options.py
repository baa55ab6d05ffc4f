"""What is measured, and how: one value, from the command line and suites down to the loop over batches."""

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
    """Everything that decides an evaluation but models, task and device.

    Attributes:
        split: "validation" or "test".
        subsets: languages, or parts of the test; None for all the task has.
        batch_size: examples a batch.
        limit: examples a subset; None takes all.
        hard_delete: delete for real, as at inference; False gates softly, as in training.
        threshold: gate value under which a byte is deleted, in place of the model's own; hard deletion only.
        source_removed: also score the same targets without their source.
        measures: those of the task's measures to take, beside what is teacher-forced; None for all. Some take
            long: answers have to be generated for them.
        generation: how answers are generated.
        constrained: also choose among the task's choices.
        normalization: of generated answers and accepted ones, see `metrics.answers`; None is the task's.
        precision: of the model's weights.
        runtime: also time forward passes, five a batch.
        deletion_rates: also run a model with its threshold moved to each of these rates, found on `limit`
            validation examples a subset.
        test_difference: also test whether the two models differ.
        predictions: file to write answers to, an example a row.
        data: what replaces the task's own source, for the record.
        recipe: what --task said, if a recipe's task is measured and not the run's own.
        label: sets apart, by the name of their files, results whose other settings would share one.
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
        """What a recipe says of evaluations."""
        return cls(
            batch_size=section.batch_size,
            limit=section.examples,
            hard_delete=section.hard_delete,
            generation=section.generation,
        )

    @property
    def deletion(self) -> str:
        """In a word."""
        return "hard" if self.hard_delete else "soft"

    def result_name(self, kind: str, checkpoint: str | None = None) -> str:
        """The stem of the results' file in a run's eval/ folder: none overwrites another's.

        Args:
            kind: of task.
            checkpoint: its folder's name, unless it is the finished model.
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
