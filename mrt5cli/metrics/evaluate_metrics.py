"""The counts as `evaluate.Metric` classes, for whoever works with that library; none needs a network.

`mrt5 evaluate` counts by `counts` and `answers` themselves, because importing `evaluate` takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import datasets
import evaluate

from mrt5cli.metrics.answers import Normalization, exact_match, f1
from mrt5cli.metrics.counts import Ratio, deleted_bytes, sequences_right, tokens_right

_IDS = datasets.Sequence(datasets.Value("int64"))
_TEXT = datasets.Value("string")


class _Counted(evaluate.Metric):  # type: ignore[misc]  # the library has no type annotations
    """A ratio summed over pairs of a prediction and a reference, and divided once. No pairs give None.

    Attributes:
        keys: of the result: the ratio, and how many it is over.
        pair: what a prediction and a reference are.
    """

    keys: ClassVar[tuple[str, str]]
    pair: ClassVar[tuple[object, object]] = (_IDS, _IDS)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(dict(zip(("predictions", "references"), self.pair, strict=True)))
        paper = "https://arxiv.org/abs/2410.20771"
        return evaluate.MetricInfo(description=self.__doc__, citation=paper, features=features)

    def _compute(
        self, *, predictions: Sequence[object], references: Sequence[object], **options: object
    ) -> dict[str, float | int | None]:
        pairs = zip(predictions, references, strict=True)
        found = sum((self.count(*pair, **options) for pair in pairs), Ratio())
        return dict(zip(self.keys, (found.value, found.count), strict=True))


class TokenAccuracy(_Counted):
    """Share of target tokens predicted right, rows of ids of equal length; -100 and padding do not count."""

    keys = "token_accuracy", "tokens"
    count = staticmethod(tokens_right)


class SequenceAccuracy(_Counted):
    """Share of targets predicted right throughout, rows of ids of equal length; -100 and padding left out."""

    keys = "sequence_accuracy", "sequences"
    count = staticmethod(sequences_right)


class BitsPerByte(_Counted):
    """Cross-entropy in bits per target byte token, sentinels and EOS included.

    Predictions are summed cross-entropies in nats, references the numbers of target tokens they sum over: one
    pair a row, a batch or a shard, it makes no difference.
    """

    keys = "bits_per_byte", "tokens"
    pair = datasets.Value("float64"), datasets.Value("int64")

    @staticmethod
    def count(nats: float, tokens: int) -> Ratio:
        return Ratio(nats / math.log(2), tokens)


class DeletionRate(_Counted):
    """Share of non-pad input positions whose gate value is strictly below the threshold, 0 to 1.

    Predictions are rows of gate values (`scale` to 0), references the rows of input ids. EOS, sentinels and
    the diagnostic tasks' '#' are positions like any other. `compute` takes the `threshold`.
    """

    keys = "deletion_rate", "positions"
    pair = datasets.Sequence(datasets.Value("float32")), _IDS
    count = staticmethod(deleted_bytes)


class ExactMatch(_Counted):
    """Share of answers equal to one of the accepted texts, at least one each, once all are normalised.

    `compute` also takes `normalization` ("squad" or "multilingual", see `metrics.answers`) and `language`.
    """

    keys = "exact_match", "answers"
    pair = _TEXT, datasets.Sequence(_TEXT)
    score = staticmethod(exact_match)

    def count(
        self,
        answer: str,
        accepted: Sequence[str],
        normalization: Normalization = "squad",
        language: str | None = None,
    ) -> Ratio:
        return Ratio(self.score(answer, accepted, normalization, language), 1)


class F1(ExactMatch):
    """Mean F1 of answers' tokens against the nearest accepted text; `compute` as `ExactMatch`'s."""

    keys = "f1", "answers"
    score = staticmethod(f1)
