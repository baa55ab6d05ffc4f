"""Per-sample statistics against closed forms, numpy and numerical integration; scipy is no dependency."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrt5cli.analysis.per_sample import (
    correlation,
    draw_samples,
    fisher_interval,
    fisher_mean,
)
from mrt5cli.metrics.student_t import critical_t, interval_of_mean, two_sided_p

small_r = st.floats(-0.99, 0.99)


# --- Student's t -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [
        (0.0, 5, 1.0),
        (math.inf, 5, 0.0),
        (1.0, 1, 0.5),  # Cauchy
        (12.706204736, 1, 0.05),  # of any table
        (4.302652730, 2, 0.05),
        (2.228138852, 10, 0.05),
        (3.169272667, 10, 0.01),
        (1.962344, 998, 0.05),
    ],
)
def test_the_p_value_of_a_t(t: float, freedom: float, p: float) -> None:
    assert two_sided_p(t, freedom) == pytest.approx(p, abs=1e-6)
    assert two_sided_p(-t, freedom) == two_sided_p(t, freedom)


@given(t=st.floats(0, 1e6))
def test_the_p_value_where_it_has_a_closed_form(t: float) -> None:
    assert two_sided_p(t, 1) == pytest.approx(2 / math.pi * math.atan2(1, t), rel=1e-9)
    root = math.sqrt(2 + t * t)
    assert two_sided_p(t, 2) == pytest.approx(2 / (root * (root + t)), rel=1e-9)  # 1 - t / root, not rounded


@pytest.mark.parametrize("t", [0.5, 3.0, 30.0])
def test_with_many_degrees_of_freedom_it_is_normal(t: float) -> None:
    assert two_sided_p(t, 1e9) == pytest.approx(math.erfc(t / math.sqrt(2)), rel=2e-6)


@given(freedom=st.integers(1, 2000), level=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_critical_t_is_where_the_p_value_is_the_rest(freedom: int, level: float) -> None:
    assert two_sided_p(critical_t(freedom, level), freedom) == pytest.approx(1 - level, abs=1e-9)


def test_an_interval_of_three_seeds() -> None:
    low, high = interval_of_mean([1.0, 2.0, 3.0]) or (0.0, 0.0)
    assert (low + high) / 2 == pytest.approx(2.0)
    assert (high - low) / 2 == pytest.approx(4.302652730 / math.sqrt(3), rel=1e-8)
    assert interval_of_mean([1.0]) is None
    assert interval_of_mean([5.0, 5.0]) == (5.0, 5.0)


# --- correlations ----------------------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)


@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=60))
def test_r_is_that_of_numpy(pairs: list[tuple[float, float]]) -> None:
    x, y = np.array(pairs).T
    found = correlation(x, y)
    if found.r is None:
        assert np.ptp(x) <= 1e-11 * abs(x).max() or np.ptp(y) <= 1e-11 * abs(y).max()
        assert found.p_value is None
    elif min(np.ptp(x) / abs(x).max(), np.ptp(y) / abs(y).max()) > 1e-6:  # else numpy's own r is rounding
        assert found.r == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-7)
        assert found.p_value is not None
        assert 0 <= found.p_value <= 1


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=4, max_size=30),
    st.floats(0.1, 10),
    st.floats(-5, 5),
)
def test_r_does_not_depend_on_units(pairs: list[tuple[float, float]], scale: float, shift: float) -> None:
    x, y = np.array(pairs).round(3).T
    if min(np.ptp(x), np.ptp(y)) < 0.1:
        return
    one, other = correlation(x, y), correlation(x * scale + shift, -y * scale)
    assert one.r is not None
    assert other.r is not None
    assert other.r == pytest.approx(-one.r, abs=1e-9)
    assert other.p_value == pytest.approx(one.p_value, abs=1e-6)


def test_published_p_values_follow_from_published_r() -> None:
    """r of 1000 samples to two digits, p to three: the paper's pairs, each within its rounding."""
    for r, p in ((0.08, 0.007), (0.03, 0.316), (-0.08, 0.014), (0.05, 0.106), (0.02, 0.529), (-0.07, 0.034)):
        ends = [
            two_sided_p(value * math.sqrt(998 / (1 - value * value)), 998)
            for value in (abs(r) - 0.005, abs(r) + 0.005)
        ]
        assert min(ends) - 0.0005 <= p <= max(ends) + 0.0005, (r, p, ends)


def test_a_correlation_that_is_not_there() -> None:
    assert correlation([1, 2], [3, 4]).r is None
    assert correlation([5, 5, 5], [1, 2, 3]).r is None
    assert correlation([1, 2, 3], [2, 4, 6]).r == 1.0
    assert correlation([1, 2, 3], [2, 4, 6]).p_value == 0.0
    with pytest.raises(ValueError):
        correlation([1, 2, 3], [1, 2])


def test_chance_finds_a_small_p_value_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    p = [correlation(generator.normal(size=12), generator.normal(size=12)).p_value for _ in range(2000)]
    assert np.mean(np.array(p) < 0.1) == pytest.approx(0.1, abs=0.025)


@given(small_r, st.integers(5, 10_000))
def test_an_interval_holds_its_r_and_narrows_with_samples(r: float, samples: int) -> None:
    low, high = fisher_interval(r, samples)
    closer = fisher_interval(r, 4 * samples)
    assert -1 <= low < r < high <= 1
    assert low < closer[0] < r < closer[1] < high


def test_an_interval_of_r_by_hand() -> None:
    z = 0.5 * math.log(1.3 / 0.7)
    expected = math.tanh(z - 1.96 / 5), math.tanh(z + 1.96 / 5)
    assert fisher_interval(0.3, 28) == pytest.approx(expected)


@given(st.lists(small_r, min_size=1, max_size=8))
def test_the_mean_by_fishers_z_lies_among_its_parts(rs: list[float]) -> None:
    mean = fisher_mean(rs)
    assert mean is not None
    assert min(rs) - 1e-12 <= mean <= max(rs) + 1e-12
    assert fisher_mean([*rs, None]) == mean
    assert fisher_mean([-r for r in rs]) == pytest.approx(-mean)


def test_published_means_follow_from_published_correlations() -> None:
    assert fisher_mean([0.14, 0.13, 0.13, 0.08, 0.03]) == pytest.approx(0.103, abs=0.002)
    assert fisher_mean([0.28, 0.30, 0.32, 0.29, 0.28]) == pytest.approx(0.295, abs=0.002)
    assert fisher_mean([0.37, 0.33, 0.27, 0.27, 0.24]) == pytest.approx(0.298, abs=0.002)


def test_means_of_perfect_and_of_no_correlations() -> None:
    assert fisher_mean([]) is None
    assert fisher_mean([None]) is None
    assert fisher_mean([1.0, 0.2]) == 1.0
    assert fisher_mean([1.0, -1.0]) is None


# --- samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "seed"), [("v3", 86), ("v1", 34), (None, 86)])
def test_samples_are_drawn_once_each_by_the_papers_seeds(version: str | None, seed: int) -> None:
    drawn = draw_samples(25_000, version)
    assert len(set(drawn.tolist())) == 1000
    assert drawn.max() < 10_000  # of the first 10,000
    expected = np.random.default_rng(seed).choice(10_000, 1000, replace=False)
    assert set(drawn.tolist()) == set(expected.tolist())
    assert (np.diff(drawn) > 0).all()


@given(st.integers(0, 1000))
def test_where_there_are_few_samples_all_are_taken(available: int) -> None:
    assert draw_samples(available, "v3").tolist() == list(range(available))
