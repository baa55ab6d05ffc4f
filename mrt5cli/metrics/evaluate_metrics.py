"""The catalog's metrics as `evaluate.Metric`: `METRICS["f1"].load()`.

`mrt5 evaluate` uses the same counts without this file, because importing `evaluate` takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import evaluate

from mrt5cli.metrics.counts import Ratio, deleted_bytes, sequences_right, tokens_right
from mrt5cli.metrics.scoring import is_of_answers, number

_IDS = datasets.Sequence(datasets.Value("int64"))
_GATE = datasets.Sequence(datasets.Value("float32"))
_TEXT = datasets.Value("string")


def _bits(nats: float, tokens: int) -> Ratio:
    return Ratio(nats / math.log(2), tokens)


COUNTED: Mapping[str, tuple[Callable[..., Ratio], object, object]] = {
    "token_accuracy": (tokens_right, _IDS, _IDS),
    "sequence_accuracy": (sequences_right, _IDS, _IDS),
    "bits_per_byte": (_bits, datasets.Value("float64"), datasets.Value("int64")),
    "deletion_rate": (deleted_bytes, _GATE, _IDS),
}
"""Metric name to the function that counts a pair, and the features of predictions and references."""


class CountedMetric(evaluate.Metric):  # type: ignore[misc]  # the library has no type annotations
    """The catalog's metric named by `config_name`, summed over pairs of predictions and references.

    Raises:
        ValueError: the metric, such as a time, is not counted from such pairs.
    """

    def _info(self) -> evaluate.MetricInfo:
        if is_of_answers(self.config_name):
            prediction, reference = _TEXT, datasets.Sequence(_TEXT)
        elif self.config_name in COUNTED:
            _, prediction, reference = COUNTED[self.config_name]
        else:
            raise ValueError(f"{self.config_name} is not counted from pairs")
        return evaluate.MetricInfo(
            description=self.config_name.replace("_", " "),
            citation="https://arxiv.org/abs/2410.20771",
            features=datasets.Features(predictions=prediction, references=reference),
        )

    def _compute(
        self, *, predictions: Sequence[Any], references: Sequence[Any], **options: Any
    ) -> dict[str, float | int | None]:
        name = self.config_name
        if is_of_answers(name):
            return {name: number(name, predictions, references, **options), "count": len(predictions)}
        count, *_ = COUNTED[name]
        pairs = zip(predictions, references, strict=True)
        found = sum((count(*pair, **options) for pair in pairs), Ratio())
        return {name: found.value, "count": found.count}
