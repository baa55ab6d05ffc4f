"""Rows of unlike length that go through a model together: as many as a budget of byte tokens holds.

Legend: n rows, sorted by length, the longest first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence


def divided(sources: Sequence[int], targets: Sequence[int], budget: int) -> Iterator[slice]:
    """Neighbouring rows whose places, padding included, are within a budget; a row that is longer is alone.

    What is left over is shared out, so that no group of a few rows remains.

    Args:
        sources: (n,) tokens of each, falling.
        targets: (n,) tokens of each, in any order.
        budget: of rows times the longest source and the longest target together.
    """
    start, number = 0, len(sources)
    while start < number:
        longest, end = targets[start], start + 1
        while end < number and (end + 1 - start) * (sources[start] + max(longest, targets[end])) <= budget:
            longest, end = max(longest, targets[end]), end + 1
        left = number - start
        stop = start + math.ceil(left / math.ceil(left / (end - start)))
        yield slice(start, stop)
        start = stop
