"""Groups rows of different lengths into batches within a budget of byte tokens.

Legend: n rows, sorted by length, the longest first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence


def divided(sources: Sequence[int], targets: Sequence[int], budget: int) -> Iterator[slice]:
    """Slices of neighboring rows whose padded size is within a budget; a longer row is a group of one.

    Groups are balanced, so that the last one is not left with a few rows.

    Args:
        sources: (n,) source tokens of each row, in descending order.
        targets: (n,) target tokens of each row, in any order.
        budget: limit on rows * (longest source + longest target), in tokens.
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
