"""A model on held-out data: quality, shortening and what the source is worth, always together.

Everything is counted over tokens, positions or examples and divided once, so results do not depend on the
batch size. Two exceptions: `new_length` is by nature a property of batches, and so is time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mrt5cli.byte_tokens import EOS
from mrt5cli.errors import UserError
from mrt5cli.evaluation.generation import choice_of, choose, generate_answers
from mrt5cli.evaluation.rows import (
    Outcomes,
    Row,
    Tally,
    row_of,
    tally,
    teacher_forced,
    total,
    with_outcomes,
)
from mrt5cli.evaluation.timing import Stopwatch
from mrt5cli.metrics.answers import Normalization, exact_match, f1
from mrt5cli.models.inputs import on_device

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Measured:
    """What an evaluation found.

    Attributes:
        rows: one a subset and, when there are several subsets, a total.
        outcomes: of the examples of each subset, by its name.
    """

    rows: list[Row]
    outcomes: dict[str, Outcomes]


def evaluate_model(model: Any, task: Any, **options: Any) -> list[Row]:
    """The rows of `measure`, which takes the same arguments."""
    return measure(model, task, **options).rows


def measure(
    model: Any,
    task: Any,
    *,
    split: str = "test",
    subsets: Sequence[str] | None = None,
    batch_size: int = 16,
    limit: int | None = None,
    hard_delete: bool = True,
    threshold: float | None = None,
    source_removed: bool = True,
    generate: bool = True,
    constrained: bool = False,
    normalization: Normalization = "squad",
    runtime: bool = False,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    finished: Callable[[Row, Outcomes], None] | None = None,
) -> Measured:
    """A row a subset and, when there are several, a total weighted by examples as in the paper.

    Where a task has accepted answers, the model also generates its own and they are scored, unless told not
    to; all else is teacher-forced.

    Args:
        model: from `mrt5cli.models`; put in eval mode meanwhile.
        task: a `tasks.Task`.
        split: "validation" or "test".
        subsets: by default all the task has.
        batch_size: examples a batch.
        limit: examples a subset; None takes all.
        hard_delete: delete for real, as at inference; False gates softly, as in training.
        threshold: gate value under which a byte is deleted, in place of the model's own; hard deletion only.
        source_removed: also score the same targets without their source.
        generate: where a task has accepted answers, have the model generate its own, which takes long.
        constrained: also choose among the task's choices.
        normalization: of generated answers and accepted ones, see `metrics.answers`.
        runtime: also time forward passes, five a batch.
        device: where to compute; by default where the model is.
        progress: called with the subset and the number of its examples done, and again for its answers.
        finished: called with what was found of a subset before the next one begins.

    Raises:
        UserError: a subset without examples.
        ValueError: `constrained` with a task that has no choices.
    """
    if constrained and task.choices is None:
        raise ValueError(f"{task.name} has no choices to be constrained to")
    if device is not None:
        model.to(device)
    was_training = model.training
    model.eval()
    where = next(model.parameters()).device
    rows: list[Row] = []
    outcomes: dict[str, Outcomes] = {}
    try:
        # Random deletion over a batch draws from torch's generator: fix it, and leave the caller's alone.
        with torch.random.fork_rng([where] if where.type == "cuda" else []), torch.inference_mode():
            torch.manual_seed(0)
            for subset in task.subsets(split) if subsets is None else subsets:
                part = _Subset(
                    model,
                    task,
                    split,
                    subset,
                    batch_size,
                    limit,
                    deletion={"hard_delete": hard_delete}
                    | ({} if threshold is None else {"deletion_threshold": threshold}),
                    threshold=model.config.deletion_threshold if threshold is None else threshold,
                    choices=task.choices if constrained else None,
                    generate=generate,
                    normalization=normalization,
                    watch=Stopwatch(where) if runtime else None,
                    progress=progress,
                )
                row, outcomes[subset] = part.measure(source_removed)
                rows.append(row)
                if finished is not None:
                    finished(row, outcomes[subset])
    finally:
        model.train(was_training)
    return Measured([*rows, total(rows, outcomes)] if len(rows) > 1 else rows, outcomes)


@dataclass
class _Subset:
    """One subset's evaluation; see `measure`."""

    model: Any
    task: Any
    split: str
    subset: str
    batch_size: int
    limit: int | None
    deletion: dict[str, Any]
    threshold: float
    choices: Sequence[str] | None
    generate: bool
    normalization: Normalization
    watch: Stopwatch | None
    progress: Progress | None

    def measure(self, source_removed: bool) -> tuple[Row, Outcomes]:
        references = self.task.references(self.split, self.subset, self.limit) if self.generate else None
        full, removed = Tally(), Tally()
        parts: list[Outcomes] = []
        sources: list[torch.Tensor] = []
        device = next(self.model.parameters()).device
        batches = self.task.held_out(self.split, self.subset, batch_size=self.batch_size, limit=self.limit)
        for batch in batches:
            deletable = self.task.deletable(batch["input_ids"])
            if references is not None:
                lengths = batch["attention_mask"].sum(dim=1).tolist()
                sources += [row[:length] for row, length in zip(batch["input_ids"], lengths, strict=True)]
            batch = on_device(batch, device)
            output, found = self._forced(batch)
            full += tally(output, batch, found, self.threshold, deletable)
            parts.append(found)
            if self.watch is not None and references is None:
                self.watch.time(self._forward(batch), len(batch["labels"]))
            if source_removed:
                bare = without_source(batch)
                output = self._forward(bare)()
                removed += tally(output, bare, teacher_forced(output, bare), self.threshold)
            self._tell(self.subset, full.input_length.count)
        if not parts:
            raise UserError(f"there are no {self.split} examples for {self.subset!r}")
        outcomes = Outcomes.joined(parts)
        if references is not None:
            outcomes = self._answered(outcomes, sources, references)
        row = with_outcomes(
            row_of(self.subset, full), outcomes, self.task.truncated(self.split, self.subset, self.limit)
        )
        if source_removed:
            row = replace(
                row,
                source_removed_loss=removed.nats.value,
                source_removed_token_accuracy=removed.tokens.value,
                source_removed_sequence_accuracy=removed.sequences.value,
            )
        if self.watch is not None:
            row = replace(
                row,
                ms_per_example=self.watch.ms_per_example,
                median_ms_per_example=self.watch.median_ms_per_example,
            )
        return row, outcomes

    def _forced(self, batch: dict[str, Any]) -> tuple[Any, Outcomes]:
        """The output given the targets and what became of them; with choices, also what is chosen."""
        if self.choices is None:
            output = self._forward(batch)()
            return output, teacher_forced(output, batch)
        encoded = self.model.encoder(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            real_bytes=batch["real_bytes"],
            **self.deletion,
        )
        output = self.model(encoder_outputs=encoded, labels=batch["labels"])
        chosen = choose(self.model, encoded, self.choices, len(batch["labels"]))
        right = chosen == choice_of(batch["labels"], self.choices)
        return output, replace(teacher_forced(output, batch), constrained_accuracy=right)

    def _answered(
        self, outcomes: Outcomes, sources: list[torch.Tensor], references: list[tuple[str, ...]]
    ) -> Outcomes:
        """The outcomes with the answers that the model generates, and their scores."""
        answers = generate_answers(
            self.model,
            sources,
            answer_length=self.task.answer_length,
            batch_size=self.batch_size,
            deletion=self.deletion,
            watch=self.watch,
            progress=lambda done: self._tell(f"{self.subset}, answers", done),
        )
        how = self.normalization, self.task.language_of(self.subset)
        pairs = list(zip(answers, references, strict=True))
        return replace(
            outcomes,
            exact_match=np.array([exact_match(answer, accepted, *how) for answer, accepted in pairs]),
            f1=np.array([f1(answer, accepted, *how) for answer, accepted in pairs]),
            answers=tuple(answers),
        )

    def _forward(self, batch: dict[str, Any]) -> Callable[[], Any]:
        return lambda: self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
            real_bytes=batch["real_bytes"],
            **self.deletion,
        )

    def _tell(self, what: str, done: int) -> None:
        if self.progress is not None:
            self.progress(what, done)


def without_source(batch: dict[str, Any]) -> dict[str, Any]:
    """The same targets with nothing to read them from: every source becomes one EOS."""
    ids = batch["input_ids"].new_full((len(batch["input_ids"]), 1), EOS)
    return {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids), "real_bytes": len(ids)}
