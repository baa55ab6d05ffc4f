"""Deletion rate, as an `evaluate` metric that needs no network."""

from __future__ import annotations

import datasets
import evaluate

from mrt5cli.metrics.counts import Ratio, deleted_bytes


class DeletionRate(evaluate.Metric):  # type: ignore[misc]  # the library has no type annotations
    """Share of non-pad input positions whose gate value is below the threshold, 0 to 1.

    EOS, sentinels and the diagnostic tasks' '#' are positions like any other; padding is in neither number.
    Strictly below: a gate exactly at the threshold is not counted, as in the published numbers. Predictions
    are rows of gate values (`scale` to 0), references the rows of input ids. No positions gives None.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of non-pad input positions whose gate value is strictly below the threshold.",
            citation="https://arxiv.org/abs/2410.20771",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(
        self, *, predictions: list[list[float]], references: list[list[int]], threshold: float
    ) -> dict[str, float | int | None]:
        pairs = zip(predictions, references, strict=True)
        deleted = sum((deleted_bytes([gate], [ids], threshold) for gate, ids in pairs), Ratio())
        return {"deletion_rate": deleted.value, "positions": deleted.count}
