"""Mixtures: the source or language of each example, by the weights of several.

Letters: S sources, B examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

COPIES = 64
"""Repetitions of the weights' ratio in a shuffled block, unless the block becomes too long."""
LONGEST_BLOCK = 2**15
"""The most examples in a block, if the weights are not all equal."""


def draw_sources(
    weights: Sequence[float | Fraction], seed: Sequence[int], indices: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(B,) the source of each example by its index, and (B,) its running number within the source.

    Sources are sampled without replacement from shuffled blocks, so any example can be computed directly. The
    shares are exact after every block (see `shares`), and the numbers within a source have no gaps.

    Args:
        weights: (S,) weights of the sources, each above 0; only their ratios matter.
        seed: numbers that seed the blocks.
        indices: (B,) indices of the examples, from 0.
    """
    if len(weights) == 1:
        return np.zeros_like(indices), indices
    counts = block_counts(tuple(weights))
    blocks, places = np.divmod(indices, sum(counts))
    found = np.empty((2, len(indices)), dtype=np.int64)
    for block in np.unique(blocks):
        rows = blocks == block
        found[:, rows] = _block(counts, tuple(seed), int(block))[:, places[rows]]
    return found[0], found[1]


def shares(weights: Sequence[float | Fraction]) -> list[float]:
    """(S,) the share of the examples that come from each source, 0 to 1, summing to 1."""
    counts = block_counts(tuple(weights))
    return [count / sum(counts) for count in counts]


@lru_cache(maxsize=64)
def block_counts(weights: tuple[float | Fraction, ...]) -> tuple[int, ...]:
    """(S,) the number of examples of each source in a block.

    They have the exact ratio of the weights in decimal notation if a block of at most `LONGEST_BLOCK`
    examples allows it; else each is the nearest integer, at least 1.
    """
    # 0.1 means one tenth, which is not a float: its shortest decimal representation is read.
    exact = [Fraction(str(weight)) for weight in weights]
    whole = [int(weight * lcm(*(one.denominator for one in exact))) for weight in exact]
    ratio = [one // gcd(*whole) for one in whole]
    if len(set(ratio)) == 1:
        return tuple(COPIES for _ in ratio)
    if (copies := LONGEST_BLOCK // sum(ratio)) > 0:
        return tuple(min(COPIES, copies) * one for one in ratio)
    return tuple(max(1, round(Fraction(one * LONGEST_BLOCK, sum(ratio)))) for one in ratio)


@lru_cache(maxsize=64)
def _block(counts: tuple[int, ...], seed: tuple[int, ...], block: int) -> NDArray[np.int64]:
    """(2, B) the source and running number of each example of a block."""
    generator = np.random.default_rng((*seed, block))
    drawn = generator.permutation(np.repeat(np.arange(len(counts)), counts))
    place = np.empty_like(drawn)
    place[np.argsort(drawn, kind="stable")] = np.concatenate([np.arange(count) for count in counts])
    return np.stack([drawn, block * np.array(counts)[drawn] + place])
