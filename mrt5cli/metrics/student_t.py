"""Student's t distribution, for correlations and for means over few seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache

import mpmath

from mrt5cli.metrics import Z_80, Z_95


def two_sided_p(t: float, freedom: float) -> float:
    """The two-sided p-value of a t statistic.

    Args:
        t: the statistic; the p-value of an infinite one is 0.
        freedom: degrees of freedom, at least 1.
    """
    with mpmath.workdps(30):  # for t near 0, whose square would vanish next to `freedom` in double precision
        end = freedom / (freedom + mpmath.mpf(t) ** 2)
        return float(mpmath.betainc(mpmath.mpf(freedom) / 2, 0.5, 0, end, regularized=True))


@cache
def critical_t(freedom: float, level: float = 0.95) -> float:
    """The t within which, on either side of 0, the share `level` of the distribution lies."""
    return float(mpmath.findroot(lambda t: two_sided_p(t, freedom) - (1 - level), (0, 1e3), solver="bisect"))


def interval_of_mean(
    values: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float] | None:
    """A 95 % interval of the mean of values, such as one per seed; None for fewer than two.

    Args:
        bounds: smallest and largest possible value, such as 0 and 1 for a share; the interval is clipped.
    """
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = critical_t(count - 1) * math.sqrt(variance / count)
    return max(bounds[0], mean - half), min(bounds[1], mean + half)


def values_needed(values: Sequence[float]) -> int | None:
    """The number of values at which their mean differs from 0 at 95 % confidence with a power of 80 %.

    Assumes these values' mean and spread, and uses the normal approximation with Guenther's correction for
    the t distribution. None for fewer than two values, or if their mean is 0.
    """
    if len(values) < 2 or (mean := statistics.fmean(values)) == 0:
        return None
    spread = statistics.stdev(values) / mean
    return max(2, math.ceil((spread * (Z_95 + Z_80)) ** 2 + Z_95**2 / 2))
