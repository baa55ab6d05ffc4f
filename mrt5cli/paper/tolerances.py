"""How far our number may be from the published one and still count as the same result.

The rules are in `tolerances.yaml`, and the report prints them. A tolerance is the sum of up to three parts:

- reading: the precision of the published number, which is half of its last digit or the reading error of a
  figure;
- sampling: the 95 % error of two finite test sets (binomial for shares, Fisher's z for correlations);
- runs: an allowance for two trainings that differ only in their seed. Every number of the paper comes from
  one seed, so these allowances are chosen, not measured. They are well below the differences between models
  that the paper discusses, and each rule states its reason.
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
"""Least number of decimals of a printed value: 0.7 is 0.70 in the notebooks."""
ENOUGH = 0.1
"""Share of the published number of test examples below which ours are too few: anything would be within."""
DIAGNOSTIC_EXAMPLES = 32_000
CORRELATED_SAMPLES = 1_000

AVERAGES = (
    "15-language weighted average", "15-language average", "15-language total time / examples", TOTAL,
)  # fmt: skip
ENGLISH = ("English", "English (10000 examples)")
"""Published subsets of several languages together, and the names of English."""
LOSSES = ("test_cross_entropy", "bits_per_byte")
REDUCTION = "seq_len_reduction"
TIMES = ("runtime_per_example", "total_eval_time")
"""Times on the authors' machine, which are compared only as a percentage of ByT5's (`DECREASE`)."""
DECREASE = "runtime_decrease_vs_byt5"
PADDED = ("xnli", "spelling_correction_contextual", "word_search")
"""Experiments whose examples are padded to their batch's or the task's length."""


@dataclass(frozen=True)
class Rule:
    """A tolerance rule and the rows that it applies to.

    Attributes:
        name: description of these rows.
        metrics: published names of their metrics.
        kind: measure of the allowance.
        allowance: allowance for two trainings, in that measure.
        reason: reason for the allowance.
        sampled: whether the number is a share of test examples.
        where: patterns of "experiment/model/subset/settings", one of which must match; empty for all rows.
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
        """The better direction of the metric in the catalog; None if neither is better."""
        return BY_PUBLISHED_NAME[self.metrics[0]].better if self.metrics else None

    @property
    def described(self) -> str:
        """The allowance as text."""
        return {
            "relative": f"{100 * self.allowance:g} %",
            "absolute": f"{self.allowance:g} points",
            "factor": f"factor {self.allowance:g}",
            "correlation": f"{self.allowance:g} of Fisher's z",
            "exact": "none",
        }[self.kind]


@cache
def rules() -> tuple[Rule, ...]:
    """All rules; the first that applies to a row counts."""
    return tuple(Rule(**rule) for rule in read_yaml("tolerances.yaml"))


def rule_of(row: Published) -> Rule | None:
    """The rule that applies to a row; None for numbers that no run can produce (claims in prose, sizes)."""
    metric = DECREASE if row.metric in TIMES else row.metric.partition("[")[0]
    said = row.experiment, row.model, str(row.subset), " ".join(row.setting)
    for rule in rules():
        matching = (all(map(fnmatchcase, said, pattern.split("/"))) for pattern in rule.where)
        if metric in rule.metrics and (not rule.where or any(matching)):
            return rule
    return None


def counts_padding(row: Published) -> bool:
    """Whether a published reduction counts padding as deleted bytes, which ours does not.

    The authors' code does so for boundary prediction; without padding it makes no difference.
    """
    return row.metric == REDUCTION and row.model == "BP" and row.experiment in PADDED


class Band(NamedTuple):
    """The closed interval of values that count as the published one."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, float | int) and self.low <= value <= self.high


def band(row: Published, rule: Rule, value: float, examples: int | None = None) -> Band:
    """The values that a rule accepts as the published one.

    Args:
        row: the published row.
        rule: the rule that applies to it.
        value: the value to compare with: the row's, or for a time the decrease that follows from it.
        examples: number of our test examples; by default as many as published.
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
    """The 95 % error of the difference of two shares over independent test sets, in points.

    For public data both test sets are the same, and this is too wide; but a streamed or resplit set may have
    different rows.
    """
    if not published:
        return 0.0
    # A share of 100 % does not have an error of 0, so half an example is added on either side.
    share = max(0.0, min(1.0, (value / 100 * published + 0.5) / (published + 1)))
    return 100 * Z_95 * math.sqrt(share * (1 - share) * (1 / published + 1 / (ours or published)))


def reading_error(row: Published) -> float:
    """The precision of the published number, in its unit."""
    if row.tolerance is not None:
        return row.tolerance
    if row.metric in ("macs", "num_examples") or row.precision in ("claim", "rounded"):
        return 0.0
    exponent = Decimal(repr(float(row.value))).as_tuple().exponent
    return 0.5 * 10.0 ** -max(FINEST_DIGIT, -int(exponent))


def examples_of(row: Published) -> int | None:
    """The number of test examples of a published number, or None if unknown."""
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
