"""Student's t distribution, as far as correlations and means of few seeds need it, without scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

STEPS = 10_000
"""Of the continued fraction at most; it takes about sqrt(max(a, b)) of them, so millions of examples fit."""


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), 0 to 1.

    By its continued fraction, evaluated from the front (Lentz), on the side where that converges fast.

    Args:
        x: 0 to 1.
        a, b: above 0.

    Raises:
        ValueError: an argument out of its range.
        ArithmeticError: no convergence.
    """
    if not (0 <= x <= 1 and a > 0 and b > 0):
        raise ValueError(f"I_x(a, b) needs 0 <= x <= 1 and a, b > 0, not x = {x}, a = {a}, b = {b}")
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1.0 - incomplete_beta(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return min(1.0, math.exp(log_front) / a * _fraction(x, a, b))


def _fraction(x: float, a: float, b: float) -> float:
    tiny = 1e-300  # in place of a zero, which would be divided by
    upper, lower = 1.0, _away_from_zero(1.0 - (a + b) * x / (a + 1), tiny)
    lower = 1.0 / lower
    value = lower
    for m in range(1, STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            lower = 1.0 / _away_from_zero(1.0 + term * lower, tiny)
            upper = _away_from_zero(1.0 + term / upper, tiny)
            value *= upper * lower
        if abs(upper * lower - 1.0) < 1e-15:
            return value
    raise ArithmeticError(f"the incomplete beta function did not converge at x = {x}, a = {a}, b = {b}")


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) >= tiny else tiny


def two_sided_p(t: float, freedom: float) -> float:
    """The probability of a t at least this far from 0, either way.

    Args:
        t: the statistic; an infinite one has probability 0.
        freedom: degrees of freedom, above 0.
    """
    if math.isinf(t):
        return 0.0
    return incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


@cache
def critical_t(freedom: float, level: float = 0.95) -> float:
    """The t that so large a share of draws lies within, either way; found by halving."""
    low, high = 0.0, 1.0
    while two_sided_p(high, freedom) > 1 - level:
        high *= 2
    for _ in range(100):
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
