"""What the metrics over predicted and wanted byte ids share; each of them is one way of counting."""

from __future__ import annotations

from typing import ClassVar

import datasets
import evaluate
import numpy.typing as npt

from mrt5cli.metrics.counts import Ratio


class RowsOfIds(evaluate.Metric):  # type: ignore[misc]  # the library has no type annotations
    """A share of right predictions, -100 and padding left out.

    Predictions and references are rows of ids, a row an example, of the same length pairwise. Nothing to
    count gives None.

    Attributes:
        what: the share in words, for the metric's description.
        share, number: keys of the result, the share and how many it is a share of.
    """

    what: ClassVar[str]
    share: ClassVar[str]
    number: ClassVar[str]

    @staticmethod
    def count(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> Ratio:
        """What is right among what is counted, of (1, T) predictions and labels."""
        raise TypeError("a metric over rows of ids says how it counts")

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=f"{self.what}; labels -100 and 0 are not counted.",
            citation="https://arxiv.org/abs/2410.20771",
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def _compute(
        self, *, predictions: list[list[int]], references: list[list[int]]
    ) -> dict[str, float | int | None]:
        rows = zip(predictions, references, strict=True)
        right = sum((self.count([row], [labels]) for row, labels in rows), Ratio())
        return {self.share: right.value, self.number: right.count}
