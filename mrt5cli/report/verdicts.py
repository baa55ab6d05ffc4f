"""Published and ours, side by side, and what to make of the difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

from mrt5cli.paper.published import Published, published
from mrt5cli.paper.tolerances import (
    DECREASE,
    ENOUGH,
    REDUCTION,
    TIMES,
    Band,
    Rule,
    band,
    counts_padding,
    examples_of,
    rule_of,
)
from mrt5cli.report.placement import Placed
from mrt5cli.report.results import Missing, Ours, Results

Verdict = Literal["within", "outside", "better", "not run", "not compared"]
"""Of one number. "better": outside on the good side, and with no less deleted. "not compared": it could not
mean anything, such as milliseconds of another machine, or a share of a handful of examples."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Compared:
    """One published number and ours.

    Attributes:
        row: published.
        recipe: whose runs ours comes from; None where an analysis of several gives it.
        value: that ours is set beside: the row's, or for a time the decrease it means, in percent.
        unit: of that.
        ours: None where there is none.
        band: what counts as the same; None where nothing is compared.
        verdict: and why, in words, where it needs saying.
    """

    row: Published
    recipe: str | None
    value: float
    unit: str
    ours: Ours | None
    band: Band | None
    verdict: Verdict
    reason: str = ""

    @property
    def difference(self) -> float | None:
        """Ours minus published, in the unit; a mean over seeds where there are several."""
        return None if self.ours is None else self.ours.mean - self.value


def judge(value: float, allowed: Band, rule: Rule) -> Verdict:
    """What a value of ours is: the rule's direction decides whether to be outside is to be better."""
    if value in allowed:
        return "within"
    if rule.better == "lower" and value < allowed.low:
        return "better"
    if rule.better == "higher" and value > allowed.high:
        return "better"
    return "outside"


def compare(results: Results, placed: Sequence[Placed]) -> list[Compared]:
    """Each number that was placed in an experiment beside ours."""
    return settle([_compare(results, row, recipe) for row, recipe in placed])


def _compare(results: Results, row: Published, recipe: str | None) -> Compared:
    rule = rule_of(row)
    value, unit = row.value, row.unit
    if rule is None:
        return Compared(row, recipe, value, unit, None, None, "not compared", "no run can produce it")
    if row.metric in TIMES:
        found = _decrease(row)
        if isinstance(found, str):
            return Compared(row, recipe, value, unit, None, None, "not compared", found)
        value, unit = found, "% less than ByT5"
    elif row.metric == DECREASE and row.model.startswith("ByT5"):
        reason = "0 by definition"
        return Compared(row, recipe, value, unit, None, None, "not compared", reason)
    try:
        ours = results.value(row, recipe)
    except Missing as missing:
        return Compared(row, recipe, value, unit, None, band(row, rule, value), "not run", str(missing))
    allowed = band(row, rule, value, ours.examples)
    if counts_padding(row):
        reason = "padding, too, is counted as deleted there"
        return Compared(row, recipe, value, unit, ours, None, "not compared", reason)
    there = examples_of(row)
    if rule.sampled and there and ours.examples is not None and ours.examples < ENOUGH * there:
        few = f"on {ours.examples:,} test examples, where {there:,} were published"
        return Compared(row, recipe, value, unit, ours, None, "not compared", few)
    return Compared(row, recipe, value, unit, ours, allowed, judge(ours.mean, allowed, rule))


def settle(rows: Sequence[Compared]) -> list[Compared]:
    """The same, but nothing is called better that was bought by deleting less.

    A lower loss, or a higher accuracy, at a reduction that is below the published one's tolerance is another
    trade, not a better one: it is outside.
    """
    reductions = {_run_and_subset(one): one for one in rows if one.row.metric == REDUCTION}
    settled = []
    for one in rows:
        beside = reductions.get(_run_and_subset(one))
        less = (
            beside is not None
            and beside.ours is not None
            and beside.band is not None
            and beside.ours.mean < beside.band.low
        )
        if one.verdict == "better" and less and one.row.metric != DECREASE and one.row.metric not in TIMES:
            one = replace(one, verdict="outside", reason="better, but with less deleted")
        settled.append(one)
    return settled


def _run_and_subset(one: Compared) -> tuple[object, ...]:
    row = one.row
    return row.version, row.experiment, row.model, str(row.setting), row.subset, one.recipe


def count(rows: Iterable[Compared]) -> dict[Verdict, int]:
    """How many there are of each verdict, all of them named."""
    counts = Counter(one.verdict for one in rows)
    return {verdict: counts[verdict] for verdict in VERDICTS}


# --- times -----------------------------------------------------------------------------------------------


def _decrease(row: Published) -> float | str:
    """What a published time is in percent less than ByT5's; or why there is nothing to compare, in words."""
    if row.model.startswith("ByT5"):
        return "time of another machine; what others' decrease is taken from"
    if _has_decrease(row):
        return "time of another machine; its decrease has a row of its own"
    base = _byt5_times().get((row.version, row.experiment, row.metric, row.subset))
    if base is None:
        base = _byt5_times().get((row.version, "runtime", row.metric, row.subset))
    if base is None:
        return "time of another machine, and none of ByT5 on it"
    return 100 * (1 - row.value / base)


@cache
def _byt5_times() -> dict[tuple[str, str, str, str | None], float]:
    return {
        (row.version, row.experiment, row.metric, row.subset): row.value
        for row in published().values()
        if row.metric in TIMES and row.model.startswith("ByT5")
    }


@cache
def _decreases() -> dict[tuple[str, str, str], list[Published]]:
    found: dict[tuple[str, str, str], list[Published]] = {}
    for row in published().values():
        if row.metric == DECREASE:
            found.setdefault((row.version, row.experiment, row.model), []).append(row)
    return found


def _has_decrease(row: Published) -> bool:
    """Whether the decrease was published, too: of the same run, on the same subset by any of its names."""
    return any(
        (other.setting == row.setting or not other.setting)
        and (other.subset == row.subset or {other.subset, row.subset} <= _ENGLISH)
        for other in _decreases().get((row.version, row.experiment, row.model), ())
    )


_ENGLISH = {"English", "English (10000 examples)"}
