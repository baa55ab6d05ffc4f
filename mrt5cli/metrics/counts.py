"""The counts behind the metrics, in numpy: sums and counts kept separately, divided once at the end.

Shapes: B rows, T target positions, L input positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrt5cli.byte_tokens import EOS, IGNORED_LABEL, OFFSET, PAD
from mrt5cli.metrics import Z_95

MARKERS = (PAD, EOS, ord("#") + OFFSET)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A sum and its count; adding two adds both, so that results do not depend on the batch size."""

    total: float = 0.0
    count: int = 0

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float | None:
        """total / count; None if nothing was counted."""
        return self.total / self.count if self.count else None


def target_tokens(labels: ArrayLike) -> NDArray[np.bool_]:
    """True where a label is a target: neither -100 nor padding."""
    labels = np.asarray(labels)
    return np.logical_and(labels != IGNORED_LABEL, labels != PAD)


def right_in_rows(predictions: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(B,) targets predicted right under teacher forcing, and (B,) number of targets.

    Both arguments are ids (B, T). EOS counts; -100 and padding do not.
    """
    real = target_tokens(labels)
    right = real & (np.asarray(predictions) == np.asarray(labels))
    return right.sum(axis=-1), real.sum(axis=-1)


def tokens_right(predictions: ArrayLike, labels: ArrayLike) -> Ratio:
    """Target tokens predicted right, among all; see `right_in_rows`."""
    right, targets = right_in_rows(predictions, labels)
    return Ratio(float(right.sum()), int(targets.sum()))


def sequences_right(predictions: ArrayLike, labels: ArrayLike) -> Ratio:
    """Rows whose every target token is predicted right, among the rows with targets."""
    right, targets = right_in_rows(predictions, labels)
    return Ratio(float(((right == targets) & (targets > 0)).sum()), int((targets > 0).sum()))


def below_threshold(gate: ArrayLike, input_ids: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """(B, L) true where a position counts as deleted: not padding, and its gate below the threshold."""
    return np.logical_and(np.asarray(input_ids) != PAD, np.asarray(gate) < threshold)


def deleted_bytes(gate: ArrayLike, input_ids: ArrayLike, threshold: float) -> Ratio:
    """Non-pad positions whose gate is below the threshold, among all; EOS, sentinels and '#' count.

    A gate exactly at the threshold is not counted, although hard deletion, which keeps values above it,
    removes the position: this is the published rule, and in float32 the two hardly ever differ. Gate values
    (B, L) range from `scale` (delete) to 0 (keep); ids are (B, L).
    """
    deleted = below_threshold(gate, input_ids, threshold)
    return Ratio(float(deleted.sum()), int((np.asarray(input_ids) != PAD).sum()))


def gate_precision(deleted: ArrayLike, deletable: ArrayLike, input_ids: ArrayLike) -> Ratio:
    """Deleted letters that the target does not need, among deleted letters; every argument is (B, L).

    EOS and the '#' at the start of every diagnostic string carry no information, so deleting them is neither
    right nor wrong, and they are ignored here. They do count in the deletion rate.
    """
    deleted = np.asarray(deleted, dtype=bool) & ~np.isin(np.asarray(input_ids), MARKERS)
    return Ratio(float((deleted & np.asarray(deletable, dtype=bool)).sum()), int(deleted.sum()))


def gate_recall(deleted: ArrayLike, deletable: ArrayLike, input_ids: ArrayLike) -> Ratio:
    """Deleted letters, among those the target does not need; counts what `gate_precision` counts."""
    return gate_precision(deletable, deleted, input_ids)


def bits_per_byte(nats_per_token: float | None) -> float | None:
    """Cross-entropy (nats per target token) in bits; sentinels and EOS count, as in the paper."""
    return None if nats_per_token is None else nats_per_token / math.log(2)


def wilson_interval(share: float | None, trials: float) -> tuple[float, float] | None:
    """The 95 % Wilson score interval of a share of independent trials; None without trials."""
    if share is None or trials == 0:
        return None
    spread = Z_95**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(groups: Sequence[ArrayLike]) -> tuple[float, float] | None:
    """A 95 % interval of the mean of scores between 0 and 1; None without scores.

    Wilson's interval, with the number of trials at which a share of the same mean has the variance of the
    scores. It equals a share's interval if all scores are 0 or 1, is narrower otherwise, and stays within 0
    to 1.

    Args:
        groups: (n,) scores of each subset; differences between the subsets' means do not widen the interval.
    """
    scores = [np.asarray(group, dtype=float) for group in groups if np.size(group)]
    count = sum(len(group) for group in scores)
    if not count:
        return None
    mean = sum(float(group.sum()) for group in scores) / count
    variance = sum(len(group) * float(group.var()) for group in scores) / count**2
    return wilson_interval(mean, mean * (1 - mean) / variance if variance else count)
