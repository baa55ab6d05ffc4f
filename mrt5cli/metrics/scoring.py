"""Score generated answers by the catalog's metrics, example by example and all together.

A "summed" metric has statistics per example, and its number is a function of their sums, so that subsets,
bootstrap samples and single examples are scored by one rule:

- cer, wer: edits, and the length of the reference (in characters, or in tokens of `answers.tokens`), against
  the reference with the lowest rate. An empty reference adds its edits and no length; the rate over empty
  references only is 0 without edits, and None with edits;
- chrf, bleu: sacrebleu's n-gram counts with its defaults (see `signature`), 0 to 100. Each example may have
  any number of references. The BLEU of one example uses sacrebleu's effective order;
- custom metrics: the score, and 1.

Texts are compared as they are; normalization applies to exact match and F1 only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrt5cli.errors import UserError
from mrt5cli.metrics.answers import Normalization, exact_match, f1, tokens

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric as SacreMetric

Accepted = Sequence[Sequence[str]]
"""The accepted texts of each answer, at least one."""
Statistics = NDArray[np.float64]
GRADED: dict[str, Callable[..., float]] = {"exact_match": exact_match, "f1": f1}
OWN: dict[str, Callable[[str, Sequence[str]], float]] = {}
"""Custom metrics by name: functions of an answer and its accepted texts."""
SUMMED = ("cer", "wer", "chrf", "bleu")
AT_ONCE = 4_000_000
"""Bootstrap counts held in memory at a time."""
RESAMPLES = 1000
"""Bootstrap samples of an interval."""


def is_of_answers(name: str) -> bool:
    """Whether a metric scores generated answers."""
    return name in GRADED or name in SUMMED or name in OWN


def scored(
    name: str,
    answers: Sequence[str],
    accepted: Accepted,
    rule: Normalization = "squad",
    language: str | None = None,
) -> NDArray[np.float64]:
    """(n,) scores of n answers by a right-or-wrong or graded metric, or (n, k) statistics of a summed one.

    Args:
        name: a metric of generated answers in the catalog.
        rule, language: see `answers.normalise`.

    Raises:
        UserError: a custom metric fails, or returns a score that is not finite.
    """
    pairs = list(zip(answers, accepted, strict=True))
    if name in GRADED:
        return np.array([GRADED[name](answer, wanted, rule, language) for answer, wanted in pairs])
    if name in ("cer", "wer"):
        split = (lambda text: tokens(text, language)) if name == "wer" else str
        return np.array([_edits(answer, wanted, split) for answer, wanted in pairs], dtype=float)
    if name in OWN:
        return np.array([(_own(name, answer, wanted), 1.0) for answer, wanted in pairs])
    return _of_sacrebleu(name, answers, accepted)


def number(
    name: str,
    answers: Sequence[str],
    accepted: Accepted,
    rule: Normalization = "squad",
    language: str | None = None,
) -> float | None:
    """The metric over all answers, with the arguments of `scored`; None without answers."""
    return of_all(name, scored(name, answers, accepted, rule, language)) if answers else None


def of_all(name: str, found: NDArray[np.float64]) -> float | None:
    """The metric over all answers, from the non-empty result of `scored`."""
    return float(found.mean()) if found.ndim == 1 else value(name, found.sum(axis=0))


def value(name: str, sums: Sequence[float] | Statistics) -> float | None:
    """The number of a summed metric, from the sums (k,) of its statistics; None if undefined."""
    if name in ("chrf", "bleu"):
        counts = [int(count) for count in sums]
        return float(_sacre(name)._compute_score_from_stats(counts).score)
    total, length = map(float, sums)
    if not length:
        return 0.0 if total == 0.0 else None
    return total / length


def interval(name: str, groups: Sequence[Statistics]) -> tuple[float, float] | None:
    """A 95 % interval of a summed metric by bootstrap over examples.

    None if some samples have no number, or all have the same: a single value does not mean certainty.

    Args:
        groups: (n, k) statistics of each subset, which are resampled within it; the total is the mean over
            subsets, weighted by examples.
    """
    values = resampled(name, groups, np.random.default_rng(0))
    low, high = np.quantile(values, (0.025, 0.975))
    return (float(low), float(high)) if low < high else None


def resampled(
    name: str, groups: Sequence[Statistics], generator: np.random.Generator, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """(resamples,) bootstrap samples of a summed metric over subsets; NaN where it is undefined.

    Two models' statistics of the same examples, stacked as (n, 2, k), are resampled together, and the
    numbers are first minus second.
    """
    examples = sum(len(group) for group in groups)
    found = np.zeros(resamples)
    for group in groups:
        size, step = len(group), max(1, AT_ONCE // len(group))
        for start in range(0, resamples, step):
            some = slice(start, min(start + step, resamples))
            counts = generator.multinomial(size, np.full(size, 1 / size), some.stop - start)
            found[some] += size / examples * _numbers(name, np.tensordot(counts, group, 1))
    return found


def _numbers(name: str, sums: Statistics) -> NDArray[np.float64]:
    """(r,) numbers of sums (r, k), or differences of sums (r, 2, k); NaN where undefined."""
    if sums.ndim == 3:
        return _numbers(name, sums[:, 0]) - _numbers(name, sums[:, 1])
    return np.array([value(name, each) for each in sums], dtype=float)


def alone(name: str, found: NDArray[np.float64]) -> list[float | None]:
    """The score of each example, from the result of `scored`."""
    if found.ndim == 1:
        return [float(score) for score in found]
    if name == "bleu":
        return [
            float(_sacre("bleu", True)._compute_score_from_stats(list(map(int, row))).score) for row in found
        ]
    return [value(name, row) for row in found]


def _edits(answer: str, accepted: Sequence[str], split: Callable[[str], Sequence[str]]) -> tuple[int, int]:
    """Edits from the accepted text with the lowest rate to the answer, and that text's length."""
    from rapidfuzz.distance import Levenshtein

    given = split(answer)
    pairs = [(Levenshtein.distance(given, one), len(one)) for one in map(split, accepted)]
    return min(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else pair[0] and math.inf)


def _own(name: str, answer: str, accepted: Sequence[str]) -> float:
    try:
        score = float(OWN[name](answer, accepted))
    except Exception as error:  # custom code may raise anything
        raise UserError(
            f"the metric {name} cannot score an answer: {type(error).__name__}: {error}",
            "make it return a number for every answer, also for an empty one",
        ) from error
    if not math.isfinite(score):
        raise UserError(
            f"the metric {name} scored an answer {score}; expected a finite number",
            "make it return a number for every answer, also for an empty one",
        )
    return score


# --- sacrebleu ----------------------------------------------------------------------------------------------


@cache
def _sacre(name: str, effective_order: bool = False) -> SacreMetric:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return CHRF() if name == "chrf" else BLEU(effective_order=effective_order, force=True)


def _of_sacrebleu(name: str, answers: Sequence[str], accepted: Accepted) -> Statistics:
    # One stream per position of a reference, padded with None.
    streams: list[Any] = list(zip_longest(*accepted))
    return np.array(_sacre(name)._extract_corpus_statistics(answers, streams), dtype=float)


def signature(name: str) -> str | None:
    """sacrebleu's signature of a metric; None for metrics that it does not compute."""
    if name not in ("chrf", "bleu"):
        return None
    metric = _sacre(name)
    metric.num_refs = -1  # "var": any number per example
    return f"sacrebleu, {metric.get_signature()}"
