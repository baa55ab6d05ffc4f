"""Test whether two models differ, on outcomes paired by example.

Right-or-wrong outcomes use McNemar's exact test; all others a paired bootstrap that resamples within each
subset, so that a total keeps its languages' shares. All differences are first minus second. Loaded metrics
have no scores per example and are not tested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrt5cli.evaluation.counting import Outcomes
from mrt5cli.metrics import Z_95, scoring
from mrt5cli.metrics.catalog import METRICS, WHOLE_TARGETS
from mrt5cli.metrics.results import TOTAL

AT_ONCE = 4_000_000
"""Random indices held in memory at a time."""
SAMPLES = 2000
"""Resamples of a metric computed from sums, which is slower than a mean."""


@dataclass(frozen=True)
class Difference:
    """The difference between two models in one number, on the same examples.

    Attributes:
        measure: name of the number in a `Row`.
        first, second: the two models' numbers, in the units of `Row`.
        low, high: 95 % interval of first minus second.
        p_value: two-sided p-value of the hypothesis of no difference.
        test: "mcnemar" or "bootstrap".
        only_first, only_second: examples that only this model has right; None for the bootstrap.
    """

    subset: str
    measure: str
    first: float
    second: float
    low: float
    high: float
    p_value: float
    test: str
    only_first: int | None = None
    only_second: int | None = None

    @property
    def difference(self) -> float:
        return self.first - self.second


def differences(
    first: Mapping[str, Outcomes], second: Mapping[str, Outcomes], kind: str, measures: Sequence[str]
) -> list[Difference]:
    """Test each measure and the loss of two models on the same examples, per subset and over all.

    Args:
        first, second: outcomes by subset.
        kind: the task's kind.
        measures: the task's own measures; without any, sequence accuracy, except for span corruption.
    """
    groups = [(name, [name]) for name in first] + ([(TOTAL, list(first))] if len(first) > 1 else [])
    if not measures and kind != "span_corruption":  # whose targets are hardly ever right throughout
        measures = (WHOLE_TARGETS,)
    found = []
    for name in (*(name for name in measures if name in METRICS), "loss"):
        for subset, parts in groups:
            one, other = ([outcomes[part] for part in parts] for outcomes in (first, second))
            found += _difference(subset, name, one, other)
    return found


def _difference(
    subset: str, name: str, one: Sequence[Outcomes], other: Sequence[Outcomes]
) -> list[Difference]:
    """The tests of one measure; empty if a model has no number for it."""
    over_tokens = {"loss": "nats", "token_accuracy": "tokens_right"}
    if name in over_tokens:
        sums, others = ([getattr(outcomes, over_tokens[name]) for outcomes in side] for side in (one, other))
        return [compare_means(subset, name, sums, others, [outcomes.tokens for outcomes in one])]
    scores, others = ([outcomes.scores[name] for outcomes in side] for side in (one, other))
    match METRICS[name].scores:
        case "right":
            return [compare_right(subset, name, scores, others)]
        case "graded":
            return [compare_means(subset, name, scores, others)]
    return compare_sums(subset, name, scores, others)


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided exact p-value of McNemar's test.

    Under the null hypothesis, either model is equally likely to be right where they disagree. The p-value is
    the probability of a split at least as uneven as this one.
    """
    disagreements = only_first + only_second
    fewer = min(only_first, only_second)
    if 2 * fewer >= disagreements - 1:  # an even split: the two tails would overlap
        return 1.0
    log_half = disagreements * math.log(2)
    ways = (  # log of (disagreements choose k)
        math.lgamma(disagreements + 1) - math.lgamma(k + 1) - math.lgamma(disagreements - k + 1)
        for k in range(fewer + 1)
    )
    return min(1.0, 2 * math.fsum(math.exp(log - log_half) for log in ways))


def paired_interval(only_first: int, only_second: int, examples: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares on the same examples (Agresti and Min 2005).

    Wald's interval with half an example added to each cell of the two-by-two table, so that it does not
    collapse to a point when the models hardly differ.
    """
    b, c, n = only_first + 0.5, only_second + 0.5, examples + 2
    centre = (b - c) / n
    half = Z_95 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return max(-1.0, centre - half), min(1.0, centre + half)


def compare_right(
    subset: str, measure: str, first: Sequence[ArrayLike], second: Sequence[ArrayLike]
) -> Difference:
    """Test two models' right and wrong answers, paired by example.

    Args:
        first, second: for each pooled subset, (n,) true if right.
    """
    one, other = (np.concatenate([np.asarray(part, bool) for part in parts]) for parts in (first, second))
    only_first, only_second = int((one & ~other).sum()), int((other & ~one).sum())
    low, high = paired_interval(only_first, only_second, len(one))
    means, p_value = (float(one.mean()), float(other.mean())), mcnemar(only_first, only_second)
    return Difference(subset, measure, *means, low, high, p_value, "mcnemar", only_first, only_second)


def compare_means(
    subset: str,
    measure: str,
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    weights: Sequence[ArrayLike] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Test two models' mean scores by a paired bootstrap over examples.

    The interval is the 2.5th to 97.5th percentile of the resampled differences. The p-value is the share of
    resampled differences that are at least as far from the observed one as that is from zero, at least
    1 / (resamples + 1).

    Args:
        first, second: for each pooled subset, (n,) sums per example: scores, or nats.
        weights: (n,) denominators per example, such as its tokens; default 1. A subset's number is its sum
            divided by its weight, and the total weights subsets by their examples.
        resamples: bootstrap samples per subset.
    """
    one = [np.asarray(part, float) for part in first]
    other = [np.asarray(part, float) for part in second]
    over = (
        [np.ones(len(part)) for part in one] if weights is None else [np.asarray(w, float) for w in weights]
    )
    examples = sum(len(part) for part in one)
    generator = np.random.default_rng(seed)
    values, resampled = [0.0, 0.0], np.zeros(resamples)
    for a, b, w in zip(one, other, over, strict=True):
        share = len(a) / examples
        values[0] += share * float(a.sum() / w.sum())
        values[1] += share * float(b.sum() / w.sum())
        resampled += share * _resampled(a - b, w, resamples, generator)
    return _by_bootstrap(subset, measure, values[0], values[1], resampled)


def compare_sums(
    subset: str, measure: str, first: Sequence[ArrayLike], second: Sequence[ArrayLike]
) -> list[Difference]:
    """Test a summed metric by the bootstrap, from statistics (n, k) per example; see `metrics.scoring`.

    Empty if a model, or a bootstrap sample, has no number.
    """
    pairs = [np.stack([np.asarray(a), np.asarray(b)], axis=1) for a, b in zip(first, second, strict=True)]
    examples = sum(len(pair) for pair in pairs)
    values = [
        [
            len(pair) / examples * number
            for pair in pairs
            if (number := scoring.of_all(measure, pair[:, side])) is not None
        ]
        for side in (0, 1)
    ]
    resampled = scoring.resampled(measure, pairs, np.random.default_rng(0), SAMPLES)
    if any(len(side) < len(pairs) for side in values) or np.isnan(resampled).any():
        return []
    return [_by_bootstrap(subset, measure, sum(values[0]), sum(values[1]), resampled)]


def _by_bootstrap(
    subset: str, measure: str, first: float, second: float, resampled: NDArray[np.float64]
) -> Difference:
    """The difference of two numbers, given resampled differences (resamples,)."""
    difference = first - second
    # Sums in another order differ by rounding; differences equal up to that count as equally far.
    slack = 1e-9 * max(1e-300, abs(difference), float(np.abs(resampled).max()))
    farther = int((np.abs(resampled - difference) >= abs(difference) - slack).sum())
    low, high = np.quantile(resampled, (0.025, 0.975))
    p_value = (farther + 1) / (len(resampled) + 1)
    return Difference(subset, measure, first, second, float(low), float(high), p_value, "bootstrap")


def _resampled(
    sums: NDArray[np.float64], weights: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """(resamples,) sum of sums divided by sum of weights, over examples sampled with replacement."""
    count = len(sums)
    even = bool((weights == weights[0]).all())
    # Sampling takes half the time of a bootstrap, and narrow indices make it faster.
    dtype = np.uint16 if count <= 1 << 16 else np.uint32
    found = np.empty(resamples)
    step = max(1, AT_ONCE // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        places = generator.integers(0, count, size=(rows, count), dtype=dtype)
        below = count * weights[0] if even else weights[places].sum(axis=1)
        found[start : start + rows] = sums[places].sum(axis=1) / below
    return found
