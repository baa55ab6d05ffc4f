"""Student's t distribution, as far as correlations and means of few seeds need it, without scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)
_NOTHING = 45.0
"""What falls below exp(-45) of the largest value adds nothing to an integral."""


def two_sided_p(t: float, freedom: float) -> float:
    """The probability of a t at least this far from 0, either way.

    With t = sqrt(freedom) tan u its density is that of cos(u) ** (freedom - 1), whose tail Gauss and Legendre
    integrate to about ten digits, however small it is.

    Args:
        t: the statistic; an infinite one has probability 0.
        freedom: degrees of freedom, at least 1.
    """
    slope = abs(t) / math.sqrt(freedom)
    start = math.atan(slope)
    end = math.pi / 2
    if freedom > 1:  # -log cos rises at least as fast as its second-order expansion at the start
        drop = 2 * _NOTHING / (freedom - 1)
        end = min(end, start + drop / (slope + math.sqrt(slope**2 + drop)))
    half = (end - start) / 2
    angles = start + half * (1 + _NODES)
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) + math.log(2 / math.sqrt(math.pi))
    tail = half * np.sum(_WEIGHTS * np.exp((freedom - 1) * np.log(np.cos(angles)) + log_scale))
    return min(1.0, float(tail))


@cache
def critical_t(freedom: float, level: float = 0.95) -> float:
    """The t that so large a share of draws lies within, either way; found by halving."""
    low, high = 0.0, 1.0
    while two_sided_p(high, freedom) > 1 - level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, freedom) > 1 - level else (low, middle)
    return (low + high) / 2


def interval_of_mean(values: Sequence[float]) -> tuple[float, float] | None:
    """A 95 % interval of the mean that values, one a seed say, were drawn around; None for fewer than two."""
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = critical_t(count - 1) * math.sqrt(variance / count)
    return mean - half, mean + half
