"""Share of target tokens predicted right, as an `evaluate` metric that needs no network."""

from __future__ import annotations

from mrt5cli.metrics.counts import tokens_right
from mrt5cli.metrics.rows_of_ids import RowsOfIds


class TokenAccuracy(RowsOfIds):
    """Share of target tokens predicted right, -100 and padding left out; see `RowsOfIds`."""

    what = "Share of target tokens predicted right"
    share, number = "token_accuracy", "tokens"
    count = staticmethod(tokens_right)
