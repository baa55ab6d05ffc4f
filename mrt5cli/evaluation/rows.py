"""Results of an evaluation: sums and counts of batches, and the rows they become.

Shapes: B rows, L input positions, T target positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mrt5cli.byte_tokens import IGNORED_LABEL, PAD
from mrt5cli.metrics.counts import (
    Ratio,
    below_threshold,
    bits_per_byte,
    gate_precision,
    gate_recall,
    mean_interval,
    target_tokens,
    wilson_interval,
)

Batch = dict[str, torch.Tensor]
Interval = tuple[float, float]

TOTAL = "total"
NOTHING = Ratio()


@dataclass(frozen=True)
class Row:
    """Results on one subset (a language, or all of a split), or the total.

    Attributes:
        subset: name of the subset.
        examples: rows seen.
        target_tokens: targets the loss is over, EOS and sentinels included.
        loss: cross-entropy, nats per target token.
        bits_per_byte: the same in bits.
        token_accuracy, sequence_accuracy: teacher-forced, 0 to 1.
        exact_match, f1: of generated answers against the accepted ones, 0 to 1; None where there are none.
        constrained_accuracy: the likeliest of the task's choices is the right one, 0 to 1; None where nobody
            asked for it.
        truncated: sources that were cut to the task's input length.
        exact_match_95, constrained_accuracy_95: Wilson intervals; f1_95: see `counts.mean_interval`.
        token_accuracy_95, sequence_accuracy_95: Wilson intervals. Tokens of one example are not independent,
            so both take the examples as the number of trials; for tokens that is wider than it need be.
        deletion_rate: share of non-pad input positions that are gone, 0 to 1: whose gate is below the
            configured threshold, or, where bytes are pooled, that are not the one left of their segment.
        input_length: mean non-pad positions of an example.
        kept_length: mean positions an example keeps; with soft gates, would keep.
        new_length: the paper's new sequence length: encoder output positions of the batch an example was in,
            i.e. its longest kept row, averaged over examples. Grows with the batch size; soft gates shorten
            nothing.
        gate_precision, gate_recall: deleted letters against those the task's targets do not need; None
            without a gate, or where the task cannot know.
        source_removed_loss, source_removed_token_accuracy, source_removed_sequence_accuracy: the same targets
            with the encoder given a lone EOS. What is not well below that loss makes no use of its input.
        ms_per_example, median_ms_per_example: of a forward pass, when timed; where answers are generated, of
            one that is given the source and the generated answer.
    """

    subset: str
    examples: int
    target_tokens: int
    loss: float | None
    bits_per_byte: float | None
    token_accuracy: float | None
    sequence_accuracy: float | None
    token_accuracy_95: Interval | None = None
    sequence_accuracy_95: Interval | None = None
    deletion_rate: float | None = None
    input_length: float | None = None
    kept_length: float | None = None
    new_length: float | None = None
    gate_precision: float | None = None
    gate_recall: float | None = None
    source_removed_loss: float | None = None
    source_removed_token_accuracy: float | None = None
    source_removed_sequence_accuracy: float | None = None
    ms_per_example: float | None = None
    median_ms_per_example: float | None = None
    exact_match: float | None = None
    exact_match_95: Interval | None = None
    f1: float | None = None
    f1_95: Interval | None = None
    constrained_accuracy: float | None = None
    constrained_accuracy_95: Interval | None = None
    truncated: int = 0

    def without_source(self) -> Row:
        """The source-removed numbers as a row of their own; what has no meaning then is None."""
        return Row(
            subset=self.subset,
            examples=self.examples,
            target_tokens=self.target_tokens,
            loss=self.source_removed_loss,
            bits_per_byte=bits_per_byte(self.source_removed_loss),
            token_accuracy=self.source_removed_token_accuracy,
            sequence_accuracy=self.source_removed_sequence_accuracy,
        )


@dataclass(frozen=True)
class Tally:
    """Sums and counts of some batches; adding tallies adds them all."""

    nats: Ratio = NOTHING
    tokens: Ratio = NOTHING
    sequences: Ratio = NOTHING
    deleted: Ratio = NOTHING
    input_length: Ratio = NOTHING
    kept_length: Ratio = NOTHING
    new_length: Ratio = NOTHING
    precision: Ratio = NOTHING
    recall: Ratio = NOTHING

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Outcomes:
    """What became of each example of a subset, in the task's order; n examples.

    Attributes:
        nats: (n,) float, cross-entropy summed over the example's targets.
        tokens: (n,) int, targets.
        tokens_right: (n,) int, of them predicted right, teacher-forced.
        sequence_accuracy: (n,) bool, all of them.
        constrained_accuracy: (n,) bool, the likeliest choice is the right one, or None.
        exact_match, f1: (n,) float, of the generated answer, or None.
        positions, kept: (n,) int, non-pad positions of the source, and those of them that are left; with soft
            gates, that would be. None where nobody counted.
        answers: the generated answers, or None.
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    tokens_right: NDArray[np.int64]
    sequence_accuracy: NDArray[np.bool_]
    constrained_accuracy: NDArray[np.bool_] | None = None
    exact_match: NDArray[np.float64] | None = None
    f1: NDArray[np.float64] | None = None
    positions: NDArray[np.int64] | None = None
    kept: NDArray[np.int64] | None = None
    answers: tuple[str, ...] | None = None

    @classmethod
    def joined(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """The outcomes of batches, one after the other. What one batch lacks, all lack."""

        def join(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if any(value is None for value in values) else np.concatenate(values)

        return cls(*(join(field.name) for field in fields(cls) if field.name != "answers"))


def teacher_forced(output: Any, batch: Batch) -> Outcomes:
    """What became of a batch's examples, given the true tokens before each.

    Args:
        output: of the model on this batch.
        batch: input_ids (B, L) and labels (B, T), on the same device.
    """
    targets = batch["labels"].masked_fill(batch["labels"] == PAD, IGNORED_LABEL)
    nats = F.cross_entropy(
        output.logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    labels = targets.cpu().numpy()
    real = target_tokens(labels)
    right = (real & (output.logits.argmax(-1).cpu().numpy() == labels)).sum(axis=1)
    count = real.sum(axis=1)
    return Outcomes(
        nats=nats.double().view_as(targets).sum(dim=1).cpu().numpy(),
        tokens=count,
        tokens_right=right,
        sequence_accuracy=(right == count) & (count > 0),
        positions=batch["input_ids"].ne(PAD).sum(dim=1).cpu().numpy(),
        kept=output.kept_lengths.cpu().numpy(),
    )


def tally(output: Any, batch: Batch, outcomes: Outcomes, threshold: float, deletable: Any = None) -> Tally:
    """Sums and counts of one batch.

    Args:
        output: of the model on this batch.
        batch: input_ids (B, L), labels (B, T), on one device.
        outcomes: of its examples, see `teacher_forced`.
        threshold: gate value under which a position counts as deleted.
        deletable: (B, L) positions the target does not need, or None.
    """
    tokens, rights = int(outcomes.tokens.sum()), outcomes.sequence_accuracy
    ids = batch["input_ids"].cpu().numpy()
    rows, real = len(ids), int((ids != PAD).sum())
    common = Tally(
        nats=Ratio(float(outcomes.nats.sum()), tokens),
        tokens=Ratio(float(outcomes.tokens_right.sum()), tokens),
        sequences=Ratio(float(rights.sum()), int((outcomes.tokens > 0).sum())),
        deleted=Ratio(0.0, real),
        input_length=Ratio(float(real), rows),
        kept_length=Ratio(float(output.kept_lengths.sum()), rows),
        new_length=Ratio(float(rows * output.encoder_last_hidden_state.shape[1]), rows),
    )
    if output.delete_gate_output is not None:
        deleted = below_threshold(output.delete_gate_output.float().cpu().numpy(), ids, threshold)
    elif output.keep_mask is not None:
        deleted = (ids != PAD) & ~output.keep_mask.cpu().numpy()
    else:
        return common
    common = replace(common, deleted=Ratio(float(deleted.sum()), real))
    if deletable is None or output.delete_gate_output is None:  # what is pooled away is not lost
        return common
    deletable = np.asarray(deletable, dtype=bool)
    return replace(
        common,
        precision=gate_precision(deleted, deletable, ids),
        recall=gate_recall(deleted, deletable, ids),
    )


def row_of(subset: str, counts: Tally) -> Row:
    """The row of one subset."""
    examples = counts.input_length.count
    return Row(
        subset=subset,
        examples=examples,
        target_tokens=counts.nats.count,
        loss=counts.nats.value,
        bits_per_byte=bits_per_byte(counts.nats.value),
        token_accuracy=counts.tokens.value,
        token_accuracy_95=wilson_interval(counts.tokens.value, examples),
        sequence_accuracy=counts.sequences.value,
        sequence_accuracy_95=wilson_interval(counts.sequences.value, counts.sequences.count),
        deletion_rate=counts.deleted.value,
        input_length=counts.input_length.value,
        kept_length=counts.kept_length.value,
        new_length=counts.new_length.value,
        gate_precision=counts.precision.value,
        gate_recall=counts.recall.value,
    )


def with_outcomes(row: Row, outcomes: Outcomes, truncated: int) -> Row:
    """The row with the numbers that come from examples one by one."""
    found: dict[str, Any] = {"truncated": truncated}
    for name in ("constrained_accuracy", "exact_match", "f1"):
        values = getattr(outcomes, name)
        if values is not None and len(values):
            found[name], found[f"{name}_95"] = float(values.mean()), mean_interval([values])
    return replace(row, **found)


def total(rows: Sequence[Row], outcomes: Mapping[str, Outcomes] | None = None) -> Row:
    """Means over subsets weighted by their examples; None for what a subset has no number of.

    Args:
        outcomes: of each subset by its name; without them the total has no interval of F1.
    """
    examples = sum(row.examples for row in rows)
    means: dict[str, Any] = {}
    for field in fields(Row):
        values = [getattr(row, field.name) for row in rows]
        if all(isinstance(value, float) for value in values):
            weighted = zip(rows, values, strict=True)
            means[field.name] = sum(row.examples * value for row, value in weighted) / examples
        else:
            means[field.name] = None
    for name in ("token_accuracy", "sequence_accuracy", "constrained_accuracy", "exact_match"):
        means[f"{name}_95"] = wilson_interval(means[name], examples)
    scores = [] if outcomes is None else [outcomes[row.subset].f1 for row in rows]
    means |= {
        "subset": TOTAL,
        "examples": examples,
        "target_tokens": sum(row.target_tokens for row in rows),
        "truncated": sum(row.truncated for row in rows),
        "f1_95": mean_interval([score for score in scores if score is not None]),
        # A median of medians would be neither.
        "median_ms_per_example": None,
    }
    return Row(**means)
