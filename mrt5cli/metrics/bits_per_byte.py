"""Bits per byte, as an `evaluate` metric that needs no network."""

from __future__ import annotations

import datasets
import evaluate

from mrt5cli.metrics.counts import Ratio, bits_per_byte


class BitsPerByte(evaluate.Metric):  # type: ignore[misc]  # the library has no type annotations
    """Cross-entropy in bits per target byte token, counted over tokens and not over batches.

    Predictions are summed cross-entropies in nats, references the numbers of target tokens they sum over:
    one pair a row, a batch or a shard, it makes no difference. No tokens gives None.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Cross-entropy in bits per target byte token; sentinels and EOS are tokens too.",
            citation="https://arxiv.org/abs/2410.20771",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("float64"),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, *, predictions: list[float], references: list[int]) -> dict[str, float | int | None]:
        nats = sum((Ratio(p, r) for p, r in zip(predictions, references, strict=True)), Ratio())
        return {"bits_per_byte": bits_per_byte(nats.value), "tokens": nats.count}
