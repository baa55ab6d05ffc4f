"""`randomness.kept` for Triton programs."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from mrt5cli.models.fast.kernels.randomness import FIRST as _FIRST
from mrt5cli.models.fast.kernels.randomness import SECOND as _SECOND
from mrt5cli.models.fast.kernels.randomness import STEP as _STEP

# Only imported if `runs_on` is True; guarded as in tiles.py.
try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("kernels on a GPU need triton, which torch for CUDA brings") from error

STEP, FIRST, SECOND = tl.constexpr(_STEP), tl.constexpr(_FIRST), tl.constexpr(_SECOND)


@triton.jit
def _mixed(word):
    word = (word ^ (word >> 16)) * FIRST
    word = (word ^ (word >> 15)) * SECOND
    return word ^ (word >> 16)


@triton.jit
def line_words(seed, lines):
    """The two words of each line, for all of its columns.

    Args:
        seed: pointer to an int64.
        lines: below 2^32.
    """
    number = tl.load(seed)
    low, high = number.to(tl.uint32), (number >> 32).to(tl.uint32)
    start = _mixed(low + lines.to(tl.uint32) * STEP)
    return start, _mixed(high ^ start)


@triton.jit
def keeps(start, extra, columns, threshold):
    """Which numbers dropout keeps, bool; arguments broadcast against each other.

    Args:
        start, extra: from `line_words`.
        columns: below 2^32.
        threshold: from `randomness.threshold`, a uint32.
    """
    word = start + columns.to(tl.uint32) * STEP
    word = (word ^ (word >> 16)) * FIRST + extra
    word = (word ^ (word >> 15)) * SECOND
    return word >= threshold
