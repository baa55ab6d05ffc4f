"""Share of targets predicted right throughout, as an `evaluate` metric that needs no network."""

from __future__ import annotations

from mrt5cli.metrics.counts import sequences_right
from mrt5cli.metrics.rows_of_ids import RowsOfIds


class SequenceAccuracy(RowsOfIds):
    """Share of targets predicted right throughout, -100 and padding left out; see `RowsOfIds`."""

    what = "Share of targets predicted right throughout"
    share, number = "sequence_accuracy", "sequences"
    count = staticmethod(sequences_right)
