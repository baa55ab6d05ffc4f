"""Whether the share deleted from a sample tells how much its loss rises (paper, per-sample analysis).

One sample: its deletion rate against how much its loss rises over ByT5's on the same sample, both in percent.
One model: Pearson's r over samples. Several models of a kind: the mean of their r by Fisher's z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrt5cli.metrics.student_t import two_sided_p

POOL = 10_000
SAMPLES = 1_000
DRAW_SEEDS = {"v3": 86, "v1": 34}
"""Of the generator that draws samples from the pool, by the paper's version."""

Z_95 = 1.96


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of two numbers over samples.

    Attributes:
        samples: n.
        r: -1 to 1; None where one of the two does not vary, or samples are fewer than three.
        p_value: two-sided, of no correlation, by the t distribution; None where r is.
        low, high: 95 % interval of r by Fisher's z; None where r is, or with fewer than four samples.
    """

    samples: int
    r: float | None
    p_value: float | None
    low: float | None = None
    high: float | None = None


def draw_samples(available: int, version: str | None) -> NDArray[np.int64]:
    """Which samples are looked at, in order: 1000 of the first 10,000, each at most once.

    The paper draws "random 1000" of 10,000; drawn with replacement, 48 would come twice and the p-values,
    which take samples for independent, would not be theirs. So: without.

    Args:
        available: samples there are; all of them are taken where they are not more than 1000.
        version: of the paper, which decides the generator's seed; the camera-ready's when it is neither.
    """
    pool = min(available, POOL)
    if pool <= SAMPLES:
        return np.arange(pool)
    generator = np.random.default_rng(DRAW_SEEDS.get(version or "v3", DRAW_SEEDS["v3"]))
    return np.sort(generator.choice(pool, SAMPLES, replace=False))


def loss_increase(loss: ArrayLike, baseline: ArrayLike) -> NDArray[np.float64]:
    """(n,) percent by which each sample's loss is above the baseline's.

    Args:
        loss, baseline: (n,) cross-entropy a sample, nats per token, the baseline's above 0.
    """
    over = np.asarray(baseline, dtype=np.float64)
    return 100 * (np.asarray(loss, dtype=np.float64) - over) / over


def correlation(x: ArrayLike, y: ArrayLike) -> Correlation:
    """Pearson's r of (n,) numbers.

    Raises:
        ValueError: x and y are not as many.
    """
    one, other = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"a correlation is of as many x as y, not of {one.shape} and {other.shape}")
    count = len(one)
    if count < 3:
        return Correlation(count, None, None)
    # Scaled first: squares of very small or large deviations would underflow or overflow.
    one, other = _scaled(one), _scaled(other)
    spread = math.sqrt(float(one @ one) * float(other @ other))
    if spread == 0:
        return Correlation(count, None, None)
    r = max(-1.0, min(1.0, float(one @ other) / spread))
    rest = (1 - r) * (1 + r)
    t = math.inf if rest == 0 else r * math.sqrt((count - 2) / rest)
    low, high = fisher_interval(r, count) if count > 3 else (None, None)
    return Correlation(count, r, two_sided_p(t, count - 2), low, high)


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Deviations from the mean, the largest of them 1; zeros where nothing varies but by rounding."""
    deviations = values - values.mean()
    largest = float(np.abs(deviations).max())
    if largest <= 1e-12 * float(np.abs(values).max()):
        return np.zeros_like(values)
    return deviations / largest


def fisher_interval(r: float, samples: int) -> tuple[float, float]:
    """95 % interval of an r seen in so many samples, at least four."""
    if abs(r) == 1:
        return r, r
    z, half = math.atanh(r), Z_95 / math.sqrt(samples - 3)
    return math.tanh(z - half), math.tanh(z + half)


def fisher_mean(rs: Sequence[float | None]) -> float | None:
    """The mean of correlations by Fisher's z; undefined ones are left out, and None is left without any.

    A perfect correlation, whose z is infinite, makes the mean perfect; two opposite ones have none.
    """
    known = [r for r in rs if r is not None]
    perfect = {r for r in known if abs(r) == 1}
    if len(perfect) == 2 or not known:
        return None
    if perfect:
        return perfect.pop()
    return math.tanh(math.fsum(math.atanh(r) for r in known) / len(known))
