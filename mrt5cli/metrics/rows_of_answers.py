"""What the metrics over predicted and accepted answers share; each of them is one way of comparing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import datasets
import evaluate

from mrt5cli.metrics.answers import Normalization


class RowsOfAnswers(evaluate.Metric):  # type: ignore[misc]  # the library has no type annotations
    """A mean over answers, each compared with the nearest of its references.

    Predictions are texts, references lists of accepted texts, at least one each. `compute` also takes
    `normalization` ("squad" or "multilingual", see `metrics.answers`) and the `language` of the texts.
    No answers give None.

    Attributes:
        what: the mean in words, for the metric's description.
        mean: key of the result.
    """

    what: ClassVar[str]
    mean: ClassVar[str]

    @staticmethod
    def compare(
        prediction: str, references: Sequence[str], rule: Normalization, language: str | None
    ) -> float:
        """How good one prediction is, 0 to 1."""
        raise TypeError("a metric over answers says how it compares")

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=f"{self.what}; the best of the references counts.",
            citation="https://arxiv.org/abs/1606.05250",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(
        self,
        *,
        predictions: list[str],
        references: list[list[str]],
        normalization: Normalization = "squad",
        language: str | None = None,
    ) -> dict[str, float | int | None]:
        scores = [
            self.compare(prediction, accepted, normalization, language)
            for prediction, accepted in zip(predictions, references, strict=True)
        ]
        return {self.mean: sum(scores) / len(scores) if scores else None, "answers": len(scores)}
