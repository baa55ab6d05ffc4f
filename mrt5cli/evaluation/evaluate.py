"""Evaluate one model on held-out data: quality, shortening, and the control without a source.

Everything is counted over tokens, positions or examples and divided once, so results do not depend on the
batch size. Two numbers are properties of batches by nature: `new_length` and time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrt5cli.byte_tokens import EOS, decode, encode
from mrt5cli.errors import UserError
from mrt5cli.evaluation.counting import Answers, Outcomes, Tally, row_of, tally, teacher_forced, total
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.evaluation.timing import Stopwatch
from mrt5cli.generation.decoding import Decoding, generate_answers
from mrt5cli.metrics import loaded, scoring
from mrt5cli.metrics.catalog import ACCURACY, METRICS, generates, metric_of
from mrt5cli.metrics.results import Row
from mrt5cli.models import MrT5EncoderOutput, MrT5ForConditionalGeneration, MrT5Output
from mrt5cli.models.inputs import on_device
from mrt5cli.tasks.base import Task
from mrt5cli.text import announced, say_on_stderr

Progress = Callable[[str, int], object]
DEFAULT = EvaluationOptions()


@dataclass(frozen=True)
class Measured:
    """The result of an evaluation.

    Attributes:
        rows: one per subset and, if there are several, a total.
        outcomes: outcomes of the examples, by subset.
    """

    rows: list[Row]
    outcomes: dict[str, Outcomes]


def measure(
    model: MrT5ForConditionalGeneration,
    task: Task,
    options: EvaluationOptions = DEFAULT,
    *,
    progress: Progress = lambda what, done: None,
    finished: Callable[[Row, Outcomes], object] = lambda row, outcomes: None,
) -> Measured:
    """Measure a model on a task: a row per subset and, if there are several, a total weighted by examples.

    All numbers are teacher-forced except the task's measures of generated answers, for which the model also
    decodes each source.

    Args:
        model: put in eval mode for the duration; stays on its device.
        progress: called with the subset and the number of its examples done, and again for its answers.
        finished: called with each subset's row and outcomes before the next subset starts.

    Raises:
        UserError: a subset has no examples, or a measure does not fit the task.
    """
    was_training = model.training
    model.train(False)
    where = next(model.parameters()).device
    rows: list[Row] = []
    outcomes: dict[str, Outcomes] = {}
    try:
        # Random deletion samples from torch's generator: seed a fork of it, not the caller's.
        with torch.random.fork_rng([where] if where.type == "cuda" else []), torch.inference_mode():
            torch.manual_seed(0)
            for subset in options.subsets or task.subsets(options.split):
                row, outcomes[subset] = _Subset(model, task, subset, options, progress).measure()
                rows.append(row)
                finished(row, outcomes[subset])
    finally:
        model.train(was_training)
    return Measured([*rows, total(rows, outcomes)] if len(rows) > 1 else rows, outcomes)


class _Subset:
    """The evaluation of one subset; see `measure`."""

    def __init__(
        self,
        model: MrT5ForConditionalGeneration,
        task: Task,
        subset: str,
        options: EvaluationOptions,
        progress: Progress,
    ) -> None:
        self.model, self.task, self.subset, self.options = model, task, subset, options
        self.progress = progress
        self.measures = task.measures if options.measures is None else options.measures
        self.device = next(model.parameters()).device
        self.watch = Stopwatch(self.device) if options.runtime else None
        self.deletion: dict[str, bool | float] = {"hard_delete": options.hard_delete}
        if options.threshold is not None:
            self.deletion["deletion_threshold"] = options.threshold
        self.threshold = model.config.threshold if options.threshold is None else options.threshold

    def measure(self) -> tuple[Row, Outcomes]:
        options = self.options
        part = options.split, self.subset, options.limit
        references = _accepted(self.task, part) if generates(self.measures) else None
        lost = Tally()
        parts: list[Outcomes] = []
        removed: list[Outcomes] = []
        sources: list[Tensor] = []
        for batch in self.task.held_out(
            options.split, self.subset, batch_size=options.batch_size, limit=options.limit
        ):
            if references is not None:
                lengths = batch["attention_mask"].sum(dim=1).tolist()
                sources += [row[:length] for row, length in zip(batch["input_ids"], lengths, strict=True)]
            batch = on_device(batch, self.device)
            output, found = self._forced(batch)
            lost += tally(output, batch, self.threshold, self.task)
            parts.append(found)
            if self.watch is not None and references is None:
                self.watch.time(partial(self._forward, batch), len(batch["labels"]))
            if options.source_removed:
                bare = without_source(batch)
                removed.append(teacher_forced(self._forward(bare), bare))
            self.progress(self.subset, lost.new_length.count)
        if not parts:
            raise UserError(
                f"there are no {options.split} examples for {self.subset!r}",
                "check the task's data, or choose another --split",
            )
        outcomes = Outcomes.joined(parts)
        if references is not None:
            outcomes = self._answered(outcomes, sources, references)
        row = row_of(self.subset, outcomes, lost, self.task.truncated(*part))
        if removed:
            bare_row = row_of(self.subset, Outcomes.joined(removed), Tally())
            row = replace(
                row,
                source_removed_loss=bare_row.loss,
                source_removed_token_accuracy=bare_row.token_accuracy,
                source_removed_sequence_accuracy=bare_row.sequence_accuracy,
            )
        if self.watch is not None:
            mean, middle = self.watch.ms_per_example, self.watch.median_ms_per_example
            row = replace(row, ms_per_example=mean, median_ms_per_example=middle)
        return row, outcomes

    def _forced(self, batch: dict[str, Any]) -> tuple[MrT5Output, Outcomes]:
        """The teacher-forced output and its outcomes, with `accuracy` where the task has choices."""
        choices = self.task.choices if self.options.constrained or ACCURACY in self.measures else None
        if choices is None:
            if ACCURACY in self.measures:
                raise UserError(
                    f"{self.task.name} is measured by accuracy, but defines no choices",
                    "define choices in the task, or remove accuracy from its measures",
                )
            output = self._forward(batch)
            return output, teacher_forced(output, batch)
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "real_bytes")}
        encoded = self.model.encoder(**given, **self.deletion)
        output = self.model(encoder_outputs=encoded, labels=batch["labels"])
        chosen = choose(self.model, encoded, choices, len(batch["labels"]))
        targets = [decode(row) for row in batch["labels"].cpu().numpy()]
        right = chosen == [choices.index(target) if target in choices else -1 for target in targets]
        outcomes = teacher_forced(output, batch)
        return output, replace(outcomes, scores={**outcomes.scores, ACCURACY: right})

    def _answered(
        self, outcomes: Outcomes, sources: list[Tensor], references: list[tuple[str, ...]]
    ) -> Outcomes:
        """The outcomes with generated answers and their scores."""
        how, task = self.options.generation, self.task
        answers = generate_answers(
            self.model,
            sources,
            decoding=Decoding(
                how.max_new_tokens or task.answer_length or 1, how.num_beams, how.length_penalty
            ),
            batch_size=self.options.batch_size,
            deletion=self.deletion,
            watch=self.watch,
            progress=lambda done: self.progress(f"{self.subset}, answers", done),
        )
        rule, language = self.options.normalization or task.normalization, task.language_of(self.subset)
        scores, others = dict(outcomes.scores), dict[str, float]()
        for name in (name for name in self.measures if metric_of(name).answers):
            with announced(f"scoring {len(answers):,} answers by {name} ...", say_on_stderr):
                if name in METRICS:
                    scores[name] = scoring.scored(name, answers, references, rule, language)
                else:
                    others |= loaded.load(name).score(answers, references)
        inputs = [decode(row.numpy()) for row in sources]
        return replace(outcomes, scores=scores, answers=Answers(inputs, references, answers, others))

    def _forward(self, batch: dict[str, Any]) -> MrT5Output:
        given = {name: batch[name] for name in ("input_ids", "attention_mask", "labels", "real_bytes")}
        output: MrT5Output = self.model(**given, **self.deletion, use_cache=False)
        return output


def choose(
    model: MrT5ForConditionalGeneration, encoded: MrT5EncoderOutput, choices: Sequence[str], rows: int
) -> NDArray[np.int64]:
    """(B,) index of the choice with the highest probability under the model, EOS included.

    Args:
        model: in eval mode.
        encoded: the encoder's output for B = `rows` sources, shared by all choices.
    """
    device = next(model.parameters()).device
    scores = []
    for choice in choices:
        labels = torch.from_numpy(encode(choice, add_eos=True)).to(device).expand(rows, -1).contiguous()
        logits = model(encoder_outputs=encoded, labels=labels).logits
        nats = logits.float().log_softmax(-1).gather(-1, labels[..., None])
        scores.append(nats.double().sum(dim=(1, 2)))
    return torch.stack(scores, dim=1).argmax(dim=1).cpu().numpy()


def _accepted(task: Task, part: tuple[str, str, int | None]) -> list[tuple[str, ...]]:
    """The accepted answers of a task whose measures score generated ones."""
    references = task.references(*part)
    if references is None or task.answer_length is None:
        lacks = "references()" if references is None else "answer_length"
        raise UserError(
            f"{task.name} is measured by generated answers ({', '.join(task.measures)}), but has no {lacks}",
            "define the accepted answers, and how long answers may be, in the task",
        )
    return references


def without_source(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with the same targets, and with every source replaced by one EOS."""
    ids = batch["input_ids"].new_full((len(batch["input_ids"]), 1), EOS)
    return {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids), "real_bytes": len(ids)}
