"""Per-sample statistics against closed forms, numpy and numerical integration; scipy is no dependency."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrt5cli.analysis.per_sample import (
    correlation,
    difference_of_correlations,
    draw_samples,
    fisher_interval,
    fisher_mean,
    samples_needed,
)
from mrt5cli.metrics.student_t import critical_t, interval_of_mean, two_sided_p, values_needed

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
    assert interval_of_mean([1.0, 2.0, 3.0], (0.0, 2.5)) == (0.0, 2.5)
    assert interval_of_mean([1.0, 2.0, 3.0], (-9.0, 9.0)) == (low, high)


def test_values_needed_find_a_mean_as_often_as_they_promise() -> None:
    """10 for one standard deviation, as tables of the t test's power have it; and drawn, 80 in 100."""
    assert values_needed([0.0, 2.0**0.5]) == 18  # mean 0.707, spread 1: 2 (1.96 + 0.84)^2 + 1.92
    values = [0.0, 1.0, 2.0]  # mean 1, spread 1
    assert values_needed(values) == 10
    generator = np.random.default_rng(5)
    drawn = generator.normal(1.0, 1.0, size=(4000, 10))
    half = critical_t(9) * drawn.std(axis=1, ddof=1) / math.sqrt(10)
    assert np.mean(abs(drawn.mean(axis=1)) > half) == pytest.approx(0.8, abs=0.025)


@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 3)), min_size=2, max_size=6))
def test_where_an_interval_holds_0_more_values_are_needed_than_there_are(values: list[float]) -> None:
    needed, (low, high) = values_needed(values), interval_of_mean(values) or (0.0, 0.0)
    assert (needed is None) is (math.fsum(values) == 0)
    if needed is not None and low < 0 < high:
        assert needed > len(values)


def test_no_number_of_values_tells_a_mean_of_nothing() -> None:
    assert values_needed([1.0]) is None
    assert values_needed([1.0, -1.0]) is None
    assert values_needed([-3.0, -3.0, -3.0]) == 2


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
    assert correlation([], []).samples == 0
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


@pytest.mark.parametrize(
    ("r", "other", "needed"),
    [
        (0.30, 0.10, 362),  # the paper's: its 1000 samples are enough
        (0.746, 0.009, 21),  # vowel removal
        (0.30, -0.10, 362),  # the size of the other counts
        (0.016, 0.015, 15_690_384),  # one gap in 32 bytes
    ],
)
def test_samples_that_a_difference_takes(r: float, other: float, needed: int) -> None:
    """n = 3 + 2 ((z_.975 + z_.80) / (atanh r - atanh |r'|))^2, by hand."""
    by_hand = 3 + 2 * (2.8016 / (math.atanh(r) - math.atanh(abs(other)))) ** 2
    assert samples_needed(r, other) == math.ceil(by_hand) == needed


def test_the_samples_needed_tell_two_correlations_apart_as_often_as_they_promise() -> None:
    generator, r, other = np.random.default_rng(3), 0.4, 0.1
    count = samples_needed(r, other)
    assert count is not None
    x, first, second = generator.normal(size=(3, 4000, count))
    seen = []
    for size, noise in ((r, first), (other, second)):
        y = size * x + math.sqrt(1 - size**2) * noise
        one, two = (values - values.mean(axis=1, keepdims=True) for values in (x, y))
        seen.append((one * two).sum(axis=1) / np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1)))
    told = [difference_of_correlations(*pair, count)[1] > 0 for pair in zip(*seen, strict=True)]
    assert np.mean(told) == pytest.approx(0.8, abs=0.025)


@given(small_r, small_r, st.integers(4, 100_000))
def test_a_difference_in_doubt_takes_more_samples_than_there_are(r: float, other: float, n: int) -> None:
    apart, low, high = difference_of_correlations(r, other, n)
    needed = samples_needed(r, other)
    assert low < apart < high
    assert (needed is None) is (apart <= 0)
    if needed is not None and low <= 0:
        assert needed > n
    if apart <= 0:
        assert math.tanh(apart) == pytest.approx(0) or math.atanh(r) < math.atanh(abs(other))


def test_a_perfect_correlation_is_far_from_any_other() -> None:
    assert difference_of_correlations(1.0, 0.0, 10)[1] > 0
    assert difference_of_correlations(0.0, -1.0, 10)[2] < 0
    assert samples_needed(1.0, 1.0) is None


# --- samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "seed"), [("v3", 86), ("v1", 34)])
def test_samples_are_drawn_once_each_by_the_papers_seeds(version: str | None, seed: int) -> None:
    drawn = draw_samples(25_000, version)
    assert len(set(drawn.tolist())) == 1000
    assert drawn.max() < 10_000  # of the first 10,000
    expected = np.random.default_rng(seed).choice(10_000, 1000, replace=False)
    assert set(drawn.tolist()) == set(expected.tolist())
    assert (np.diff(drawn) > 0).all()


@pytest.mark.parametrize(("available", "taken"), [(3236, 3236), (25_000, 4_000)])
def test_where_nothing_was_published_the_first_samples_are_taken(available: int, taken: int) -> None:
    assert draw_samples(available, None).tolist() == list(range(taken))


@given(st.integers(0, 1000))
def test_where_there_are_few_samples_all_are_taken(available: int) -> None:
    assert draw_samples(available, "v3").tolist() == list(range(available))
