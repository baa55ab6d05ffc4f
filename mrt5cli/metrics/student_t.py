"""Student's t distribution, as far as correlations and means of few seeds need it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache

import mpmath

from mrt5cli.metrics import Z_80, Z_95


def two_sided_p(t: float, freedom: float) -> float:
    """The probability of a t at least this far from 0, either way.

    Args:
        t: the statistic; an infinite one has probability 0.
        freedom: degrees of freedom, at least 1.
    """
    with mpmath.workdps(30):  # for a t near 0, whose square a double beside `freedom` would not show
        end = freedom / (freedom + mpmath.mpf(t) ** 2)
        return float(mpmath.betainc(mpmath.mpf(freedom) / 2, 0.5, 0, end, regularized=True))


@cache
def critical_t(freedom: float, level: float = 0.95) -> float:
    """The t that so large a share of draws lies within, either way."""
    return float(mpmath.findroot(lambda t: two_sided_p(t, freedom) - (1 - level), (0, 1e3), solver="bisect"))


def interval_of_mean(
    values: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float] | None:
    """A 95 % interval of the mean that values, one a seed say, were drawn around; None for fewer than two.

    Args:
        bounds: that no value can be outside of, 0 and 1 of a share; nor does the interval.
    """
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = critical_t(count - 1) * math.sqrt(variance / count)
    return max(bounds[0], mean - half), min(bounds[1], mean + half)


def values_needed(values: Sequence[float]) -> int | None:
    """Values whose 95 % interval of the mean would leave out 0 80 times in 100, were mean and spread these.

    By the normal approximation with Guenther's correction for the t distribution. None for fewer than two
    values, or where their mean is 0.
    """
    if len(values) < 2 or (mean := statistics.fmean(values)) == 0:
        return None
    spread = statistics.stdev(values) / mean
    return max(2, math.ceil((spread * (Z_95 + Z_80)) ** 2 + Z_95**2 / 2))
