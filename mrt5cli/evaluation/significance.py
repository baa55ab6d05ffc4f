"""Whether two models differ: tests on outcomes paired by example.

What is right or wrong goes through McNemar's exact test; anything else through a paired bootstrap, resampled
within each subset, so that a total keeps its languages' shares. All differences are first minus second. Of
metrics that are loaded nothing is known by example, and nothing is tested.
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
"""Draws held in memory at a time."""
SAMPLES = 2000
"""Resamples where each is a function of sums, which takes longer than a mean."""


@dataclass(frozen=True)
class Difference:
    """One number of two models on the same examples.

    Attributes:
        measure: name of a `Row` number.
        low, high: 95 % interval of first minus second.
        p_value: two-sided, of no difference.
        test: "mcnemar" or "bootstrap".
        only_first, only_second: examples that only one model has right; None with the bootstrap.
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
    """Each measure and the loss of two models on the same examples, a subset each and all together.

    Args:
        first, second: outcomes by subset.
        kind: of the task.
        measures: the task's own; where it has none, whole targets, if anybody spells such ones right.
    """
    groups = [(name, [name]) for name in first] + ([(TOTAL, list(first))] if len(first) > 1 else [])
    if not measures and kind != "span_corruption":  # whose targets nobody spells right throughout
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
    """One measure of two models; none where one of them has no number of it."""
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

    Of the examples on which the models part, each is as likely as the other to be right: the probability of
    a split as uneven as this one, or more so.
    """
    parted = only_first + only_second
    fewer = min(only_first, only_second)
    if 2 * fewer >= parted - 1:  # as even as can be, and the two tails would overlap
        return 1.0
    log_half = parted * math.log(2)
    ways = (  # the logarithm of (parted over k)
        math.lgamma(parted + 1) - math.lgamma(k + 1) - math.lgamma(parted - k + 1) for k in range(fewer + 1)
    )
    return min(1.0, 2 * math.fsum(math.exp(log - log_half) for log in ways))


def paired_interval(only_first: int, only_second: int, examples: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares seen on the same examples (Agresti and Min 2005).

    Wald's, after half an example has been added to each cell of the two-by-two table: it does not collapse
    to a point where the models hardly differ.
    """
    b, c, n = only_first + 0.5, only_second + 0.5, examples + 2
    centre = (b - c) / n
    half = Z_95 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return max(-1.0, centre - half), min(1.0, centre + half)


def compare_right(
    subset: str, measure: str, first: Sequence[ArrayLike], second: Sequence[ArrayLike]
) -> Difference:
    """Two models' right and wrong answers, paired.

    Args:
        first, second: for each subset pooled here, (n,) true where right.
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
    """Two models' scores, paired, by bootstrap over examples.

    The interval is the 2.5th to 97.5th percentile of the resampled differences. The p-value is the share of
    them that lie at least as far from the difference seen as that lies from zero, never below
    1 / (resamples + 1).

    Args:
        first, second: for each subset pooled here, (n,) sums of the examples: a score each, or nats.
        weights: (n,) what each example's sum is over, such as its tokens; 1 each when left out. A subset's
            number is sum by weight, and the total weighs subsets by their examples.
        resamples: how often each subset is drawn anew.
    """
    one = [np.asarray(part, float) for part in first]
    other = [np.asarray(part, float) for part in second]
    over = (
        [np.ones(len(part)) for part in one] if weights is None else [np.asarray(w, float) for w in weights]
    )
    examples = sum(len(part) for part in one)
    generator = np.random.default_rng(seed)
    values, drawn = [0.0, 0.0], np.zeros(resamples)
    for a, b, w in zip(one, other, over, strict=True):
        share = len(a) / examples
        values[0] += share * float(a.sum() / w.sum())
        values[1] += share * float(b.sum() / w.sum())
        drawn += share * _resampled(a - b, w, resamples, generator)
    return _by_bootstrap(subset, measure, values[0], values[1], drawn)


def compare_sums(
    subset: str, measure: str, first: Sequence[ArrayLike], second: Sequence[ArrayLike]
) -> list[Difference]:
    """The same of a metric that is summed, from each example's statistics (n, k); see `metrics.scoring`.

    None where a model, or a sample of examples, has no number of it.
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
    drawn = scoring.resampled(measure, pairs, np.random.default_rng(0), SAMPLES)
    if any(len(side) < len(pairs) for side in values) or np.isnan(drawn).any():
        return []
    return [_by_bootstrap(subset, measure, sum(values[0]), sum(values[1]), drawn)]


def _by_bootstrap(
    subset: str, measure: str, first: float, second: float, drawn: NDArray[np.float64]
) -> Difference:
    """The difference of two numbers, with what resampling makes of it (resamples,)."""
    difference = first - second
    # Sums in another order differ by rounding: what is equal to within that counts as equally far.
    slack = 1e-9 * max(1e-300, abs(difference), float(np.abs(drawn).max()))
    farther = int((np.abs(drawn - difference) >= abs(difference) - slack).sum())
    low, high = np.quantile(drawn, (0.025, 0.975))
    p_value = (farther + 1) / (len(drawn) + 1)
    return Difference(subset, measure, first, second, float(low), float(high), p_value, "bootstrap")


def _resampled(
    sums: NDArray[np.float64], weights: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """(resamples,) sum of sums by sum of weights over examples drawn with replacement."""
    count = len(sums)
    even = bool((weights == weights[0]).all())
    # Half the time of a bootstrap is drawing: indices no wider than they need be.
    dtype = np.uint16 if count <= 1 << 16 else np.uint32
    found = np.empty(resamples)
    step = max(1, AT_ONCE // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        places = generator.integers(0, count, size=(rows, count), dtype=dtype)
        below = count * weights[0] if even else weights[places].sum(axis=1)
        found[start : start + rows] = sums[places].sum(axis=1) / below
    return found
