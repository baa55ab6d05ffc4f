"""Published numbers next to ours, and a verdict on each difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

from mrt5cli.paper.published import Published, published
from mrt5cli.paper.tolerances import (
    DECREASE,
    ENGLISH,
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
"""The verdict on one number. "better" is outside the tolerance on the good side, with no less deleted. "not
compared" marks a comparison without meaning: milliseconds of another machine, a share of a handful of
examples, or a smoke run."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Compared:
    """One published number and ours.

    Attributes:
        row: the published row.
        recipe: the recipe whose runs produce our number; None if an analysis of several runs does.
        value: the published value; for a time, its decrease relative to ByT5, in percent.
        unit: unit of `value`.
        ours: our number; None if it does not exist.
        band: the range that counts as equal; None if nothing is compared.
        verdict: the verdict.
        reason: explanation of the verdict, or an empty string.
    """

    row: Published
    recipe: str | None
    value: float
    unit: str
    ours: Ours | None
    band: Band | None
    verdict: Verdict
    reason: str = ""


def judge(value: float, allowed: Band, rule: Rule) -> Verdict:
    """The verdict on a value; the rule's direction decides whether outside is better."""
    if value in allowed:
        return "within"
    return "better" if rule.better == ("lower" if value < allowed.low else "higher") else "outside"


def compare(results: Results, placed: Sequence[Placed]) -> list[Compared]:
    """Compare each published number placed in an experiment with ours."""
    return settle([_compare(results, row, recipe) for row, recipe in placed])


def _compare(results: Results, row: Published, recipe: str | None) -> Compared:
    rule, smoke = rule_of(row), results.plan.smoke
    found = Compared(row, recipe, row.value, row.unit, None, None, "not compared")
    if rule is None:
        return replace(found, reason="no run can produce it")
    if row.metric in TIMES:
        value = _decrease(row)
        if isinstance(value, str):
            return replace(found, reason=value)
        found = replace(found, value=value, unit="% less than ByT5")
    elif row.metric == DECREASE and row.model.startswith("ByT5"):
        return replace(found, reason="0 by definition")
    try:
        ours = results.value(row, recipe)
    except Missing as missing:
        allowed = band(row, rule, found.value)
        verdict: Verdict = "not compared" if smoke else "not run"
        return replace(found, band=allowed, verdict=verdict, reason=str(missing))
    found = replace(found, ours=ours)
    if smoke:
        return replace(found, reason="a smoke run")
    if counts_padding(row):
        return replace(found, reason="the published number counts padding as deleted")
    there = examples_of(row)
    if rule.sampled and there and ours.examples is not None and ours.examples < ENOUGH * there:
        few = f"on {ours.examples:,} test examples; {there:,} were published"
        return replace(found, reason=few)
    allowed = band(row, rule, found.value, ours.examples)
    return replace(found, band=allowed, verdict=judge(ours.mean, allowed, rule))


def settle(rows: Sequence[Compared]) -> list[Compared]:
    """Replace "better" by "outside" where the improvement was bought by deleting less.

    A lower loss or higher accuracy at a reduction below the published one's tolerance is a different
    trade-off, not a better one.
    """
    deletes_less = {
        _run_and_subset(one): one.ours.mean < one.band.low
        for one in rows
        if one.row.metric == REDUCTION and one.ours is not None and one.band is not None
    }
    return [
        replace(one, verdict="outside", reason="better, but with less deleted")
        if one.verdict == "better"
        and one.row.metric not in (*TIMES, DECREASE)
        and deletes_less.get(_run_and_subset(one))
        else one
        for one in rows
    ]


def _run_and_subset(one: Compared) -> tuple[object, ...]:
    row = one.row
    return row.version, row.experiment, row.model, str(row.setting), row.subset, one.recipe


def count(rows: Iterable[Compared]) -> dict[Verdict, int]:
    """The number of comparisons with each verdict, including zeros."""
    counts = Counter(one.verdict for one in rows)
    return {verdict: counts[verdict] for verdict in VERDICTS}


def _decrease(row: Published) -> float | str:
    """A published time's decrease relative to ByT5's, in percent; or the reason why it is missing."""
    if row.model.startswith("ByT5"):
        return "time on another machine; the baseline of the other times"
    byt5 = {}
    for other in _times()[row.version]:
        same_subset = other.subset == row.subset or {other.subset, row.subset} <= set(ENGLISH)
        if other.metric == row.metric and other.subset == row.subset:
            byt5[other.experiment] = other.value
        elif (
            other.metric == DECREASE
            and (other.experiment, other.model) == (row.experiment, row.model)
            and other.setting in (row.setting, {})
            and same_subset
        ):
            return "time on another machine; its decrease has a separate row"
    base = byt5.get(row.experiment, byt5.get("runtime"))
    if base is None:
        return "time on another machine, without a time of ByT5 on it"
    return 100 * (1 - row.value / base)


@cache
def _times() -> dict[str, list[Published]]:
    """Published times of ByT5 and decreases of every model, by version."""
    found: dict[str, list[Published]] = {}
    for row in published().values():
        if row.metric == DECREASE or (row.metric in TIMES and row.model.startswith("ByT5")):
            found.setdefault(row.version, []).append(row)
    return found
