"""Mean F1 of answers' tokens, as an `evaluate` metric that needs no network."""

from __future__ import annotations

from mrt5cli.metrics.answers import f1
from mrt5cli.metrics.rows_of_answers import RowsOfAnswers


class F1(RowsOfAnswers):
    """Mean F1 of answers' tokens against the nearest accepted answer, 0 to 1; see `RowsOfAnswers`."""

    what = "Mean F1 over tokens"
    mean = "f1"
    compare = staticmethod(f1)
