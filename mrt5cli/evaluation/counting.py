"""Counts and sums over batches, and the result rows computed from them.

Shapes: B rows, L input positions, T target positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from mrt5cli.byte_tokens import IGNORED_LABEL, PAD
from mrt5cli.metrics import scoring
from mrt5cli.metrics.catalog import METRICS, WHOLE_TARGETS
from mrt5cli.metrics.counts import (
    Ratio,
    below_threshold,
    bits_per_byte,
    gate_precision,
    gate_recall,
    mean_interval,
    right_in_rows,
    wilson_interval,
)
from mrt5cli.metrics.results import TOTAL, Interval, Row
from mrt5cli.models import MrT5Output
from mrt5cli.tasks.base import Batch, Task

NOTHING = Ratio()


@dataclass(frozen=True)
class Tally:
    """What batches lost by deletion; tallies can be added.

    Attributes:
        deleted: deleted positions among the non-pad ones.
        new_length: encoder output length of each example's batch.
        precision, recall: deleted letters against the letters that the targets do not need.
    """

    deleted: Ratio = NOTHING
    new_length: Ratio = NOTHING
    precision: Ratio = NOTHING
    recall: Ratio = NOTHING

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Answers:
    """The answers that a model generated for the n examples of a subset.

    Attributes:
        inputs: n sources, truncated as the model read them.
        accepted: n tuples of accepted texts, the target first.
        texts: n answers.
        others: loaded metrics over all answers, by their names in `Row.others`.
    """

    inputs: Sequence[str]
    accepted: Sequence[tuple[str, ...]]
    texts: Sequence[str]
    others: Mapping[str, float]


@dataclass(frozen=True)
class Outcomes:
    """The outcome of each of the n examples of a subset, in the task's order.

    Attributes:
        nats: (n,) float, cross-entropy summed over the example's targets.
        tokens: (n,) int, number of targets.
        tokens_right: (n,) int, targets predicted right under teacher forcing.
        positions, kept: (n,) int, non-pad source positions, and how many of them are kept; with soft gates,
            how many would be.
        scores: by metric name: (n,) scores for means over examples (right or wrong, or 0 to 1), (n, k)
            statistics for summed metrics; see `metrics.scoring`.
        answers: the generated answers; None if none were generated.
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    tokens_right: NDArray[np.int64]
    positions: NDArray[np.int64]
    kept: NDArray[np.int64]
    scores: Mapping[str, NDArray[Any]]
    answers: Answers | None = None

    @property
    def right(self) -> NDArray[np.bool_]:
        """(n,) true if every target is predicted right; false without targets."""
        right: NDArray[np.bool_] = (self.tokens_right == self.tokens) & (self.tokens > 0)
        return right

    @classmethod
    def joined(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """Concatenate the outcomes of batches, before any answers are generated."""
        names = [one.name for one in fields(cls) if one.name not in ("scores", "answers")]
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in names
        }
        scores = {name: np.concatenate([part.scores[name] for part in parts]) for name in parts[0].scores}
        return cls(**arrays, scores=scores)


def teacher_forced(output: MrT5Output, batch: Batch) -> Outcomes:
    """The outcomes of a batch's examples under teacher forcing.

    Args:
        batch: input_ids (B, L) and labels (B, T), on the output's device.
    """
    assert output.logits is not None and output.kept_lengths is not None  # labels were given
    targets = batch["labels"].masked_fill(batch["labels"] == PAD, IGNORED_LABEL)
    nats = F.cross_entropy(
        output.logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    right, tokens = right_in_rows(output.logits.argmax(-1).cpu().numpy(), targets.cpu().numpy())
    outcomes = Outcomes(
        nats=nats.double().view_as(targets).sum(dim=1).cpu().numpy(),
        tokens=tokens,
        tokens_right=right,
        positions=batch["input_ids"].ne(PAD).sum(dim=1).cpu().numpy(),
        kept=output.kept_lengths.cpu().numpy(),
        scores={},
    )
    return replace(outcomes, scores={WHOLE_TARGETS: outcomes.right})


def tally(output: MrT5Output, batch: Batch, threshold: float, task: Task | None = None) -> Tally:
    """What one batch lost by deletion.

    Args:
        threshold: gate value below which a position counts as deleted.
        task: may know which positions the target does not need.
    """
    assert output.encoder_last_hidden_state is not None
    ids = batch["input_ids"].cpu().numpy()
    gate = None if output.delete_gate_output is None else output.delete_gate_output.float().cpu().numpy()
    real = ids != PAD
    deleted = np.zeros_like(real)
    if gate is not None:
        deleted = below_threshold(gate, ids, threshold)
    elif output.keep_mask is not None:
        deleted = real & ~output.keep_mask.cpu().numpy()
    found = Tally(
        deleted=Ratio(float(deleted.sum()), int(real.sum())),
        new_length=Ratio(float(len(ids) * output.encoder_last_hidden_state.shape[1]), len(ids)),
    )
    if gate is None or task is None:  # pooled bytes are merged, not lost
        return found
    deletable = task.deletable(ids, gate)
    if deletable is None:
        return found
    precision, recall = gate_precision(deleted, deletable, ids), gate_recall(deleted, deletable, ids)
    return replace(found, precision=precision, recall=recall)


def row_of(subset: str, outcomes: Outcomes, lost: Tally, truncated: int = 0) -> Row:
    """The row of one subset; `truncated` of its sources were cut to the task's input length."""
    examples, tokens = len(outcomes.tokens), int(outcomes.tokens.sum())
    nats = Ratio(float(outcomes.nats.sum()), tokens).value
    right = Ratio(float(outcomes.tokens_right.sum()), tokens).value
    whole = Ratio(float(outcomes.right.sum()), int((outcomes.tokens > 0).sum()))
    scores = {name: found for name, found in outcomes.scores.items() if name != WHOLE_TARGETS}
    numbers = {name: scoring.of_all(name, found) for name, found in scores.items()}
    intervals = {name: _interval(name, [found]) for name, found in scores.items()}
    return Row(
        subset=subset,
        examples=examples,
        target_tokens=tokens,
        loss=nats,
        bits_per_byte=bits_per_byte(nats),
        token_accuracy=right,
        token_accuracy_95=wilson_interval(right, examples),
        sequence_accuracy=whole.value,
        sequence_accuracy_95=wilson_interval(whole.value, whole.count),
        deletion_rate=lost.deleted.value,
        input_length=float(outcomes.positions.mean()),
        kept_length=float(outcomes.kept.mean()),
        new_length=lost.new_length.value,
        gate_precision=lost.precision.value,
        gate_recall=lost.recall.value,
        truncated=truncated,
        **_fields(numbers | dict(outcomes.answers.others if outcomes.answers else {}), intervals),
    )


def _interval(name: str, groups: Sequence[NDArray[Any]]) -> Interval | None:
    """The 95 % interval of a metric, from its scores or statistics by subset."""
    return scoring.interval(name, groups) if groups[0].ndim == 2 else mean_interval(groups)


def _fields(numbers: Mapping[str, float | None], intervals: Mapping[str, Interval | None]) -> dict[str, Any]:
    """Arguments of a `Row`: numbers that are its fields, and the others in `others`."""
    return {
        **{name: value for name, value in numbers.items() if hasattr(Row, name)},
        **{f"{name}_95": ends for name, ends in intervals.items() if hasattr(Row, name)},
        "others": {name: value for name, value in numbers.items() if not hasattr(Row, name)},
        "others_95": {name: ends for name, ends in intervals.items() if not hasattr(Row, name)},
    }


def total(rows: Sequence[Row], outcomes: Mapping[str, Outcomes] | None = None) -> Row:
    """The mean over subsets, weighted by their examples; None for a number that a subset lacks.

    Args:
        outcomes: outcomes by subset; without them, only right-or-wrong metrics have intervals.
    """
    examples = sum(row.examples for row in rows)
    numbers: dict[str, float | None] = {}
    for name in (*(field.name for field in fields(Row)), *rows[0].others):
        values = [row.number(name) for row in rows]
        if all(isinstance(value, float) for value in values):
            weighted = (row.examples * value for row, value in zip(rows, values, strict=True))  # type: ignore[operator]
            numbers[name] = sum(weighted) / examples
    intervals: dict[str, Interval | None] = {}
    for name, metric in METRICS.items():
        if metric.scores == "right":
            intervals[name] = wilson_interval(numbers.get(name), examples)
        elif metric.scores and outcomes is not None and numbers.get(name) is not None:
            scores = (outcomes[row.subset].scores.get(name) for row in rows)
            groups = [group for group in scores if group is not None]
            intervals[name] = _interval(name, groups) if len(groups) == len(rows) else None
    found = _fields(numbers, intervals) | {
        "subset": TOTAL,
        "examples": examples,
        "target_tokens": sum(row.target_tokens for row in rows),
        "truncated": sum(row.truncated for row in rows),
        # The median of medians is not the median.
        "median_ms_per_example": None,
    }
    return Row(**found)
