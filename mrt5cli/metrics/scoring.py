"""Generated answers scored by measures of the catalog, each example apart and all of them together.

A metric that is "summed" has statistics for each example, and its number is a function of their sums, so that
subsets, samples of a bootstrap and single examples are scored by one rule:

- cer, wer: edits, and the length of the reference (in characters; in tokens as `answers.tokens` parts them),
  against the reference with the lowest rate. An empty reference counts its edits and no length; the rate over
  nothing but empty references is 0 without an edit, and None with one;
- chrf, bleu: the n-gram counts of sacrebleu, by its defaults (see `signature`), 0 to 100. Each example may
  have any number of references. The BLEU of one example is by sacrebleu's effective order;
- a metric of the user's own: the score, and 1.

Texts are taken as they are; a rule of normalisation is for exact match and F1 only.
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
"""The texts accepted for each answer, at least one."""
Statistics = NDArray[np.float64]
GRADED: dict[str, Callable[..., float]] = {"exact_match": exact_match, "f1": f1}
OWN: dict[str, Callable[[str, Sequence[str]], float]] = {}
"""What scores an answer, given the texts accepted for it, by a metric of the user's own."""
SUMMED = ("cer", "wer", "chrf", "bleu")
AT_ONCE = 4_000_000
"""Draws held in memory at a time."""
RESAMPLES = 1000
"""Samples of a bootstrap behind an interval."""


def is_of_answers(name: str) -> bool:
    """Whether a metric of the catalog is one of those that are counted here."""
    return name in GRADED or name in SUMMED or name in OWN


def scored(
    name: str,
    answers: Sequence[str],
    accepted: Accepted,
    rule: Normalization = "squad",
    language: str | None = None,
) -> NDArray[np.float64]:
    """(n,) scores of answers by a metric that is right or graded, or (n, k) statistics of one that is summed.

    Args:
        name: of a metric of generated answers in the catalog.
        rule, language: see `answers.normalise`.
    """
    pairs = list(zip(answers, accepted, strict=True))
    if name in GRADED:
        return np.array([GRADED[name](answer, wanted, rule, language) for answer, wanted in pairs])
    if name in ("cer", "wer"):
        parted = (lambda text: tokens(text, language)) if name == "wer" else str
        return np.array([_edits(answer, wanted, parted) for answer, wanted in pairs], dtype=float)
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
    """The number of all answers together, from the arguments of `scored`; None without answers."""
    return of_all(name, scored(name, answers, accepted, rule, language)) if answers else None


def of_all(name: str, found: NDArray[np.float64]) -> float | None:
    """The number of all answers together, from what `scored` returns for at least one."""
    return float(found.mean()) if found.ndim == 1 else value(name, found.sum(axis=0))


def value(name: str, sums: Sequence[float] | Statistics) -> float | None:
    """The number of a summed metric, from the sums (k,) of its statistics; None where it has none."""
    if name in ("chrf", "bleu"):
        counts = [int(count) for count in sums]
        return float(_sacre(name)._compute_score_from_stats(counts).score)
    total, length = map(float, sums)
    if not length:
        return 0.0 if total == 0.0 else None
    return total / length


def interval(name: str, groups: Sequence[Statistics]) -> tuple[float, float] | None:
    """A 95 % interval of a summed metric by bootstrap over examples.

    None where some samples have no number, and where all have the same, which is no certainty.

    Args:
        groups: (n, k) statistics of each subset, resampled within it; the number of all is the mean over
            subsets, weighted by examples.
    """
    values = resampled(name, groups, np.random.default_rng(0))
    low, high = np.quantile(values, (0.025, 0.975))
    return (float(low), float(high)) if low < high else None


def resampled(
    name: str, groups: Sequence[Statistics], generator: np.random.Generator, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """(resamples,) the number of subsets whose examples are drawn anew; NaN where there is none.

    Two models' statistics of the same examples, side by side in (n, 2, k), are drawn together, and the
    numbers are the first's minus the second's.
    """
    examples = sum(len(group) for group in groups)
    found = np.zeros(resamples)
    for group in groups:
        size, step = len(group), max(1, AT_ONCE // len(group))
        for start in range(0, resamples, step):
            some = slice(start, min(start + step, resamples))
            drawn = generator.multinomial(size, np.full(size, 1 / size), some.stop - start)
            found[some] += size / examples * _numbers(name, np.tensordot(drawn, group, 1))
    return found


def _numbers(name: str, sums: Statistics) -> NDArray[np.float64]:
    """(r,) numbers of sums (r, k), or (r, 2, k) as the difference of two; NaN where there is none."""
    if sums.ndim == 3:
        return _numbers(name, sums[:, 0]) - _numbers(name, sums[:, 1])
    return np.array([value(name, each) for each in sums], dtype=float)


def alone(name: str, found: NDArray[np.float64]) -> list[float | None]:
    """The score of each example by itself, from what `scored` returns."""
    if found.ndim == 1:
        return [float(score) for score in found]
    if name == "bleu":
        return [
            float(_sacre("bleu", True)._compute_score_from_stats(list(map(int, row))).score) for row in found
        ]
    return [value(name, row) for row in found]


def _edits(answer: str, accepted: Sequence[str], parted: Callable[[str], Sequence[str]]) -> tuple[int, int]:
    """Insertions, deletions and substitutions that turn one accepted text into the answer, and its length."""
    from rapidfuzz.distance import Levenshtein

    said = parted(answer)
    pairs = [(Levenshtein.distance(said, one), len(one)) for one in map(parted, accepted)]
    return min(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else pair[0] and math.inf)


def _own(name: str, answer: str, accepted: Sequence[str]) -> float:
    try:
        score = float(OWN[name](answer, accepted))
    except Exception as error:  # it may do anything
        raise UserError(
            f"the metric {name} cannot score an answer: {type(error).__name__}: {error}"
        ) from error
    if not math.isfinite(score):
        raise UserError(f"the metric {name} scores an answer {score}", "its scores must be finite numbers")
    return score


# --- sacrebleu ----------------------------------------------------------------------------------------------


@cache
def _sacre(name: str, effective_order: bool = False) -> SacreMetric:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return CHRF() if name == "chrf" else BLEU(effective_order=effective_order, force=True)


def _of_sacrebleu(name: str, answers: Sequence[str], accepted: Accepted) -> Statistics:
    # One stream for each place of a reference; None fills up where there are fewer.
    streams: list[Any] = list(zip_longest(*accepted))
    return np.array(_sacre(name)._extract_corpus_statistics(answers, streams), dtype=float)


def signature(name: str) -> str | None:
    """How sacrebleu counts a metric, in its notation; None for one that it does not count."""
    if name not in ("chrf", "bleu"):
        return None
    metric = _sacre(name)
    metric.num_refs = -1  # "var": as many as an example has
    return f"sacrebleu, {metric.get_signature()}"
