"""Which source each example of a mixture comes from."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrt5cli.data.mixtures import LONGEST_BLOCK, block_counts, draw_sources, shares

weights_of_sources = st.lists(st.sampled_from([0.1, 0.25, 0.5, 1, 1.5, 2, 3, 7]), min_size=1, max_size=6)


@given(weights_of_sources, st.integers(0, 1000), st.integers(0, 5000), st.integers(1, 300))
def test_sources_are_functions_of_the_example(
    weights: list[float], seed: int, first: int, count: int
) -> None:
    drawn, numbers = draw_sources(weights, (seed, 2), np.arange(first, first + count))
    shuffled = np.random.default_rng(seed).permutation(count)
    again = draw_sources(weights, (seed, 2), first + shuffled)
    assert (again[0] == drawn[shuffled]).all() and (again[1] == numbers[shuffled]).all()
    for source in range(len(weights)):
        assert (np.diff(numbers[drawn == source]) == 1).all(), "its examples are taken one after the other"


@given(weights_of_sources, st.integers(0, 1000))
def test_shares_are_exact_after_every_block(weights: list[float], seed: int) -> None:
    block = sum(block_counts(tuple(weights))) if len(weights) > 1 else 64
    drawn, numbers = draw_sources(weights, (seed,), np.arange(3 * block))
    for number in range(3):
        counts = np.bincount(drawn[number * block : (number + 1) * block], minlength=len(weights))
        assert counts / block == pytest.approx(np.array(weights) / sum(weights), abs=1e-12)
    assert shares(weights) == pytest.approx(list(np.array(weights) / sum(weights)), abs=1e-12)
    for source in range(len(weights)):
        of_source = numbers[drawn == source]
        assert (of_source == np.arange(len(of_source))).all(), "from 0, without gaps"


def test_equal_weights_draw_what_languages_were_always_drawn_by() -> None:
    """Runs made before there were weights resume with the same examples."""
    drawn, numbers = draw_sources([1] * 3, (42, 2), np.arange(20))
    assert drawn.tolist() == [2, 1, 1, 1, 1, 0, 2, 1, 0, 2, 1, 0, 1, 0, 2, 2, 1, 2, 2, 1]
    assert numbers.tolist() == [0, 0, 1, 2, 3, 0, 1, 4, 1, 2, 5, 2, 6, 3, 3, 4, 7, 5, 6, 8]
    for weight in (1, 0.3):
        both = np.stack(draw_sources([weight] * 15, (42, 2), np.arange(2000)))
        assert hashlib.sha256(both.astype("<i8").tobytes()).hexdigest()[:16] == "52198be42b1d6f0a"


def test_draws_are_uniform_and_depend_on_the_seed() -> None:
    firsts = [draw_sources([1] * 15, (seed, 2), np.arange(1))[0][0] for seed in range(3000)]
    assert abs(np.bincount(firsts, minlength=15) - 200).max() < 5 * 200**0.5
    heavier = [draw_sources([3, 1], (seed, 2), np.arange(1))[0][0] for seed in range(3000)]
    assert abs(heavier.count(0) - 2250) < 5 * (3000 * 3 / 16) ** 0.5


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ((2, 1), (128, 64)),
        ((0.2, 0.1), (128, 64)),
        ((0.1, 0.2, 0.7), (64, 128, 448)),
        ((0.37, 0.63), (2368, 4032)),
        ((0.3333, 0.6667), (3 * 3333, 3 * 6667)),
        ((1e6, 1), (LONGEST_BLOCK, 1)),
    ],
)
def test_a_block_has_the_weights_as_they_are_written(
    weights: tuple[float, ...], counts: tuple[int, ...]
) -> None:
    assert block_counts(weights) == counts


def test_one_source_gives_every_example() -> None:
    drawn, numbers = draw_sources([5], (1,), np.array([7, 3]))
    assert (drawn.tolist(), numbers.tolist()) == ([0, 0], [7, 3])
