"""Paired tests: hand-computed values, and properties that hold for any outcomes."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrt5cli.evaluation.significance import (
    Difference,
    compare_means,
    compare_right,
    compare_sums,
    mcnemar,
    paired_interval,
)

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
scores = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (3, 3, 1.0),
        (5, 4, 1.0),
        (5, 0, 2 / 32),
        (1, 8, 2 * (1 + 9) / 512),
        (12, 4, 2 * (1 + 16 + 120 + 560 + 1820) / 65536),
        (7, 5, 2 * (1 + 12 + 66 + 220 + 495 + 792) / 4096),
    ],
)
def test_mcnemar_by_hand(only_first: int, only_second: int, p_value: float) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(p_value, rel=1e-12)


@given(only_first=st.integers(0, 400), only_second=st.integers(0, 400))
def test_mcnemar_is_the_binomial_tail(only_first: int, only_second: int) -> None:
    parted, fewer = only_first + only_second, min(only_first, only_second)
    exact = 2 * sum(math.comb(parted, k) for k in range(fewer + 1)) / 2**parted

    assert mcnemar(only_first, only_second) == pytest.approx(min(1.0, exact), rel=1e-9)
    assert mcnemar(only_second, only_first) == mcnemar(only_first, only_second)


def test_mcnemar_of_all_of_xnli_is_quick_and_finite() -> None:
    started = time.process_time()

    assert mcnemar(37_000, 38_000) == pytest.approx(0.00026, rel=0.05)
    assert mcnemar(0, 75_150) == 0.0
    assert time.process_time() - started < 2


def test_the_paired_interval_by_hand() -> None:
    # b = 12.5, c = 4.5, n = 102: centre 8/102, half 1.96 sqrt(17 - 64/102) / 102
    low, high = paired_interval(12, 4, 100)

    half = 1.96 * math.sqrt(17 - 64 / 102) / 102
    assert (low, high) == pytest.approx((8 / 102 - half, 8 / 102 + half))
    assert paired_interval(0, 0, 1)[0] > -1.0 - 1e-9


def test_right_answers_of_several_subsets_are_pooled() -> None:
    told = compare_right("total", "exact_match", [[1, 1, 0], [1, 1]], [[1, 0, 0], [0, 0]])

    assert (told.first, told.second) == (0.8, 0.2)
    assert told.difference == pytest.approx(0.6)
    assert (told.only_first, told.only_second) == (3, 0)
    assert told.p_value == pytest.approx(0.25)
    assert told.test == "mcnemar"


@given(pairs=outcomes)
def test_right_answers_the_other_way_round(pairs: list) -> None:
    one, other = ([pair[place] for pair in pairs] for place in (0, 1))

    there, back = compare_right("x", "y", [one], [other]), compare_right("x", "y", [other], [one])

    assert there.p_value == back.p_value
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert -1 <= there.low < there.high <= 1
    assert 0 < there.p_value <= 1


def exhaustive(difference: list[float]) -> tuple[float, float]:
    """Mean and p-value of the bootstrap's exact distribution, over all n^n resamples."""
    places = np.stack(np.meshgrid(*[range(len(difference))] * len(difference)), -1).reshape(
        -1, len(difference)
    )
    means = np.asarray(difference)[places].mean(axis=1)
    seen = float(np.mean(difference))
    return float(means.mean()), float((np.abs(means - seen) >= abs(seen) - 1e-12).mean())


def test_the_bootstrap_comes_near_its_law() -> None:
    first, second = [0.9, 0.4, 0.8, 0.7, 0.6], [0.5, 0.5, 0.2, 0.6, 0.5]

    told = compare_means("all", "f1", [first], [second])

    mean, p_value = exhaustive([a - b for a, b in zip(first, second, strict=True)])
    assert told.difference == pytest.approx(mean)
    assert told.p_value == pytest.approx(p_value, abs=0.01)
    assert told.low < told.difference < told.high
    assert told.test == "bootstrap"


def test_the_bootstrap_weighs_tokens_within_and_examples_between_subsets() -> None:
    # Subset one: 6 nats over 4 tokens and 3 over 4; subset two, a single example, 5 and 4 over 1.
    told = compare_means("total", "loss", [[2, 4], [5]], [[1, 2], [4]], [[1, 3], [1]])

    assert told.first == pytest.approx(2 / 3 * 6 / 4 + 1 / 3 * 5)
    assert told.second == pytest.approx(2 / 3 * 3 / 4 + 1 / 3 * 4)
    # Resamples of subset one: both the same example (1 / 1 or 2 / 3) or one of each (3 / 4).
    assert told.low == pytest.approx(2 / 3 * 2 / 3 + 1 / 3)
    assert told.high == pytest.approx(2 / 3 * 1 + 1 / 3)


def test_the_bootstrap_repeats_itself() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.random(50), generator.random(50)

    assert compare_means("x", "f1", [first], [second]) == compare_means("x", "f1", [first], [second])
    other = compare_means("x", "f1", [first], [second], seed=1)
    assert other.low != compare_means("x", "f1", [first], [second]).low


@given(pairs=scores)
def test_laws_of_the_bootstrap(pairs: list) -> None:
    one, other = ([pair[place] for pair in pairs] for place in (0, 1))

    told = compare_means("x", "f1", [one], [other], resamples=200)

    assert 0 < told.p_value <= 1
    assert told.low <= told.high
    same = compare_means("x", "f1", [one], [one], resamples=50)
    assert (same.low, same.high, same.p_value) == (0.0, 0.0, 1.0)


def test_the_bootstrap_of_a_hundred_thousand_examples_takes_seconds() -> None:
    generator = np.random.default_rng(0)
    parts = [generator.random(5010) for _ in range(15)]

    started = time.process_time()
    told = compare_means("total", "loss", parts, [part + 0.001 for part in parts], resamples=1000)

    assert time.process_time() - started < 5
    assert told.p_value == pytest.approx(1 / 1001)


def test_what_is_summed_differs_as_its_means_do_where_all_weigh_the_same() -> None:
    generator = np.random.default_rng(3)
    first, second = ([generator.random(400), generator.random(100)] for _ in range(2))
    second = [part + 0.05 for part in second]

    [told] = compare_sums(
        "x", "cer", *([np.stack([s, 0 * s + 1], 1) for s in side] for side in (first, second))
    )

    means = compare_means("x", "cer", first, second)
    assert (told.first, told.second) == pytest.approx((means.first, means.second))
    assert (told.low, told.high) == pytest.approx((means.low, means.high), abs=0.01)
    assert told.p_value == pytest.approx(means.p_value, abs=0.03)


def test_what_is_summed_is_divided_once_and_has_no_difference_without_a_number() -> None:
    first, second = np.array([[1.0, 10], [5, 5]]), np.array([[2.0, 10], [0, 0]])

    [told] = compare_sums("x", "cer", [first], [second])
    assert (told.first, told.second) == (6 / 15, 2 / 10)
    assert compare_sums("x", "cer", [first], [np.array([[2.0, 0], [0, 0]])]) == []


def test_a_difference_is_first_minus_second() -> None:
    assert Difference("x", "loss", 2.0, 3.0, -2.0, 0.0, 0.5, "bootstrap").difference == -1.0
