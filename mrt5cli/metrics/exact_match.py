"""Share of answers that are an accepted one, as an `evaluate` metric that needs no network."""

from __future__ import annotations

from mrt5cli.metrics.answers import exact_match
from mrt5cli.metrics.rows_of_answers import RowsOfAnswers


class ExactMatch(RowsOfAnswers):
    """Share of answers that equal an accepted one after normalisation, 0 to 1; see `RowsOfAnswers`."""

    what = "Share of answers equal to a reference after normalisation"
    mean = "exact_match"
    compare = staticmethod(exact_match)
