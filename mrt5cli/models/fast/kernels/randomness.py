"""Dropout as a function of a seed and of a number's place, so that no mask is stored.

Kernels call `dropping.keeps` for their tiles, of any shape, in forward and again in backward. This file has
the same function for tensors, which tests and the self-check compare the kernels with, and samples seeds.

A place is a line and a column: a query of one head and a key, or a row of states and a feature. Each line has
two words, mixed from the seed; a column then costs three multiplications. Philox, with ten rounds of two,
would take as long as the products of attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 2**32
STEP, FIRST, SECOND = 0x9E3779B9, 0x7FEB352D, 0x846CA68B
"""Odd factors: the golden ratio's, and two with which multiplying and shifting mixes all bits of a word."""


def draw_seed(device: torch.device) -> Tensor:
    """A 0-dim int64 from a device's generator, whose state checkpoints contain; the host does not wait."""
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)


def threshold(rate: float) -> int:
    """The word, among 2^32, below which a number is dropped, for a dropout rate from 0 to below 1."""
    return min(WORD - 1, round(rate * WORD))


def kept(seed: Tensor, lines: Tensor, columns: Tensor, rate: float) -> Tensor:
    """Whether dropout keeps (line, column), bool, in the shape that `lines` and `columns` broadcast to.

    Args:
        seed: 0-dim int64.
        lines, columns: int64, 0 to below 2^32.
        rate: fraction that is dropped.
    """
    low, high = seed & (WORD - 1), (seed >> 32) & (WORD - 1)
    start = _mixed(_word(low + lines * STEP))
    extra = _mixed(high ^ start)
    word = _word(start + columns * STEP)
    word = _word((word ^ (word >> 16)) * FIRST + extra)
    word = _word((word ^ (word >> 15)) * SECOND)
    return word >= threshold(rate)


def _mixed(word: Tensor) -> Tensor:
    word = _word((word ^ (word >> 16)) * FIRST)
    word = _word((word ^ (word >> 15)) * SECOND)
    return word ^ (word >> 16)


def _word(number: Tensor) -> Tensor:
    """The low 32 bits, which wrapping int64 products preserve."""
    return number & (WORD - 1)
