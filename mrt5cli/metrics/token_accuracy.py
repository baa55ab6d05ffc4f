"""Share of target tokens predicted right, as an `evaluate` metric that needs no network."""

from __future__ import annotations

import datasets
import evaluate

from mrt5cli.metrics.counts import Ratio, tokens_right


class TokenAccuracy(evaluate.Metric):  # type: ignore[misc]  # the library has no type annotations
    """Share of target tokens predicted right, -100 and padding left out.

    Predictions and references are rows of ids, a row an example, of the same length pairwise. Nothing to
    count gives None.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of target tokens predicted right; labels -100 and 0 are not counted.",
            citation="https://arxiv.org/abs/2410.20771",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(
        self, *, predictions: list[list[int]], references: list[list[int]]
    ) -> dict[str, float | int | None]:
        right = sum((tokens_right([p], [r]) for p, r in zip(predictions, references, strict=True)), Ratio())
        return {"token_accuracy": right.value, "tokens": right.count}
