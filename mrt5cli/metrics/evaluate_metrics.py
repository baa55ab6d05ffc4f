"""Metrics of the catalog as `evaluate.Metric`; `METRICS["f1"].load()` gives one.

`mrt5 evaluate` counts by the same functions without this file, because importing `evaluate` takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import datasets
import evaluate

from mrt5cli.metrics.answers import exact_match, f1
from mrt5cli.metrics.counts import Ratio, deleted_bytes, sequences_right, tokens_right

_IDS = datasets.Sequence(datasets.Value("int64"))
_GATE = datasets.Sequence(datasets.Value("float32"))
_TEXT = datasets.Value("string")


def _scored(score: Callable[..., float]) -> Callable[..., Ratio]:
    return lambda *pair, **options: Ratio(score(*pair, **options), 1)


def _bits(nats: float, tokens: int) -> Ratio:
    return Ratio(nats / math.log(2), tokens)


COUNTED: Mapping[str, tuple[Callable[..., Ratio], object, object]] = {
    "token_accuracy": (tokens_right, _IDS, _IDS),
    "sequence_accuracy": (sequences_right, _IDS, _IDS),
    "bits_per_byte": (_bits, datasets.Value("float64"), datasets.Value("int64")),
    "deletion_rate": (deleted_bytes, _GATE, _IDS),
    "exact_match": (_scored(exact_match), _TEXT, datasets.Sequence(_TEXT)),
    "f1": (_scored(f1), _TEXT, datasets.Sequence(_TEXT)),
}
"""What counts a pair, and what its prediction and its reference are, by the name of the metric."""


class CountedMetric(evaluate.Metric):  # type: ignore[misc]  # the library has no type annotations
    """A ratio summed over pairs of a prediction and a reference, and divided once; `config_name` is whose."""

    def _info(self) -> evaluate.MetricInfo:
        _, prediction, reference = COUNTED[self.config_name]
        return evaluate.MetricInfo(
            description=self.config_name.replace("_", " "),
            citation="https://arxiv.org/abs/2410.20771",
            features=datasets.Features(predictions=prediction, references=reference),
        )

    def _compute(
        self, *, predictions: Sequence[object], references: Sequence[object], **options: object
    ) -> dict[str, float | int | None]:
        count, *_ = COUNTED[self.config_name]
        pairs = zip(predictions, references, strict=True)
        found = sum((count(*pair, **options) for pair in pairs), Ratio())
        return {self.config_name: found.value, "count": found.count}
