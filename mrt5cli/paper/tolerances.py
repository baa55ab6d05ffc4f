"""How far a number of ours may be from the published one and still be the same result.

Every rule of judgement is in `tolerances.yaml`, and the report prints them. A tolerance is the sum of up to
three parts:

- reading: what the published number is itself known to: half of its last digit, or what can be read off a
  figure;
- sampling: two test sets of finite size, 95 % (binomial for shares, Fisher's z for correlations);
- runs: how far two trainings that differ by their seed alone may end up. Nobody published that: every number
  of the paper is of one seed. The allowances here are chosen, not measured. They are well below the
  differences between models that the paper is about, and each rule says why it is what it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cache
from typing import Literal, NamedTuple

from mrt5cli.metrics import Z_95
from mrt5cli.metrics.catalog import BY_PUBLISHED_NAME, Better
from mrt5cli.metrics.results import TOTAL
from mrt5cli.paper.published import Published, published, read_yaml

FINEST_DIGIT = 2
"""Decimals that anything printed has at least: 0.7 is 0.70 in the notebooks."""
ENOUGH = 0.1
"""Share of the published test examples below which ours say too little: anything would be within."""
DIAGNOSTIC_EXAMPLES = 32_000
CORRELATED_SAMPLES = 1_000

AVERAGES = (
    "15-language weighted average", "15-language average", "15-language total time / examples", TOTAL,
)  # fmt: skip
ENGLISH = ("English", "English (10000 examples)")
"""Published subsets: of several languages together, and of the one that has several names."""
LOSSES = ("test_cross_entropy", "bits_per_byte")
REDUCTION = "seq_len_reduction"
TIMES = ("runtime_per_example", "total_eval_time")
"""Of the authors' machine: compared only as a percentage of ByT5's, see `DECREASE`."""
DECREASE = "runtime_decrease_vs_byt5"
PADDED = ("xnli", "spelling_correction_contextual", "word_search")
"""Experiments whose examples are padded to their batch's or the task's length."""


@dataclass(frozen=True)
class Rule:
    """What may differ, of which rows.

    Attributes:
        name: of the rows it is for, in words.
        metrics: published names of those that it is for.
        kind: of the allowance.
        allowance: for two runs, in that measure.
        reason: for it.
        sampled: whether the number is a share of test examples.
        where: patterns of "experiment/model/subset/settings", one of which must match; empty for all.
    """

    name: str
    metrics: Sequence[str]
    kind: Literal["relative", "absolute", "factor", "correlation", "exact"]
    allowance: float
    reason: str
    sampled: bool = False
    where: Sequence[str] = ()

    @property
    def better(self) -> Better | None:
        """Which direction is, as the catalog says; None where none is."""
        return BY_PUBLISHED_NAME[self.metrics[0]].better if self.metrics else None

    @property
    def in_words(self) -> str:
        """The allowance, for people."""
        return {
            "relative": f"{100 * self.allowance:g} %",
            "absolute": f"{self.allowance:g} points",
            "factor": f"factor {self.allowance:g}",
            "correlation": f"{self.allowance:g} of Fisher's z",
            "exact": "none",
        }[self.kind]


@cache
def rules() -> tuple[Rule, ...]:
    """All of them, the first that is for a number counts."""
    return tuple(Rule(**rule) for rule in read_yaml("tolerances.yaml"))


def rule_of(row: Published) -> Rule | None:
    """The rule a row is judged by; None for what no run can produce (claims in prose, sizes)."""
    metric = DECREASE if row.metric in TIMES else row.metric.partition("[")[0]
    said = row.experiment, row.model, str(row.subset), " ".join(row.setting)
    for rule in rules():
        matching = (all(map(fnmatchcase, said, pattern.split("/"))) for pattern in rule.where)
        if metric in rule.metrics and (not rule.where or any(matching)):
            return rule
    return None


def counts_padding(row: Published) -> bool:
    """Whether a published reduction takes padding for deleted bytes, and ours, which does not, is another.

    The authors' code does that for boundary prediction; where there is no padding it makes no difference.
    """
    return row.metric == REDUCTION and row.model == "BP" and row.experiment in PADDED


class Band(NamedTuple):
    """Values that count as the published one, both ends inside."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, float | int) and self.low <= value <= self.high


def band(row: Published, rule: Rule, value: float, examples: int | None = None) -> Band:
    """The values that a row's rule takes for the published one.

    Args:
        row: published.
        rule: its own.
        value: that is compared: the row's, or for times the decrease that follows from it.
        examples: our test examples, for what depends on their number; by default as many as published.
    """
    reading = reading_error(row)
    if rule.kind == "exact":
        return Band(value, value)
    if rule.kind == "factor":
        return Band(value / rule.allowance - reading, value * rule.allowance + reading)
    if rule.kind == "correlation":
        ours = max(4, examples or CORRELATED_SAMPLES)
        half = Z_95 * math.sqrt(1 / (CORRELATED_SAMPLES - 3) + 1 / (ours - 3)) + rule.allowance
        middle = math.atanh(max(-0.999999, min(0.999999, value)))
        return Band(math.tanh(middle - half) - reading, math.tanh(middle + half) + reading)
    runs = rule.allowance * abs(value) if rule.kind == "relative" else rule.allowance
    sampling = _binomial(value, examples_of(row) or examples, examples) if rule.sampled else 0.0
    width = reading + sampling + runs
    return Band(value - width, value + width)


def _binomial(value: float, published: int | None, ours: int | None) -> float:
    """95 % of the difference of two shares, in points, when both test sets are drawn anew.

    The two are the same test set where the data are public, and then this is wide; but which rows a
    streamed or resplit set holds is not known to be the same.
    """
    if not published:
        return 0.0
    # A share of 100 % of n has not the error 0: half an example is added on either side.
    share = max(0.0, min(1.0, (value / 100 * published + 0.5) / (published + 1)))
    return 100 * Z_95 * math.sqrt(share * (1 - share) * (1 / published + 1 / (ours or published)))


def reading_error(row: Published) -> float:
    """What the published number is itself known to, in its unit."""
    if row.tolerance is not None:
        return row.tolerance
    if row.metric in ("macs", "num_examples") or row.precision in ("claim", "rounded"):
        return 0.0
    exponent = Decimal(repr(float(row.value))).as_tuple().exponent
    return 0.5 * 10.0 ** -max(FINEST_DIGIT, -int(exponent))


def examples_of(row: Published) -> int | None:
    """The test examples a published number is over, where that is known."""
    if row.experiment == "diagnostic":
        return DIAGNOSTIC_EXAMPLES
    if row.experiment == "per_sample":
        return CORRELATED_SAMPLES
    return _counts().get((row.version, row.experiment, row.subset))


@cache
def _counts() -> dict[tuple[str, str, str | None], int]:
    return {
        (row.version, row.experiment, row.subset): int(row.value)
        for row in published().values()
        if row.metric == "num_examples"
    }
