"""The report's tables: results and comparisons as rows of strings, which both pages print."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from mrt5cli.metrics.catalog import BY_PUBLISHED_NAME, MEASURED, WHOLE_TARGETS, Metric, metric_of
from mrt5cli.metrics.student_t import interval_of_mean
from mrt5cli.paper import tolerances
from mrt5cli.paper.tolerances import AVERAGES, DECREASE
from mrt5cli.report.claims import Claim
from mrt5cli.report.results import Results
from mrt5cli.report.verdicts import VERDICTS, Compared, Verdict, count
from mrt5cli.text import counted
from mrt5cli.text import percent as plain_percent

MISSING = "\N{EN DASH}"
SHOWN = 80
"""Largest number of rows that are shown unfolded in a comparison without numbers of a complete test set."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        headers: one header per column.
        rows: cells as text; a verdict's cell begins with the verdict.
        title: summary of a folded table, or heading; empty for none.
        folded: whether the table is collapsed until opened.
        words: number of leading text columns; the others are numeric.
        prose: whether the text columns contain sentences.
        totals: number of final rows that are sums or means, which sorting leaves in place.
    """

    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    title: str = ""
    folded: bool = False
    words: int = 1
    prose: bool = False
    totals: int = 0


# --- numbers ---------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 4, powers: bool | None = None) -> str:
    """A number with a true minus sign, or a dash for None, NaN and infinity.

    Args:
        digits: decimals.
        powers: whether to print a power of ten instead, which all cells of a column must agree on; by default
            as `in_powers` decides for this number alone.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    powers = in_powers([value], digits) if powers is None else powers
    if powers and value == 0:
        return "0"
    return (f"{value:.2e}" if powers else f"{value:,.{digits}f}").replace("-", "\N{MINUS SIGN}")


def in_powers(column: Iterable[float | None], digits: int = 4) -> bool:
    """Whether all numbers of a column are so small that 4 or more decimals would show at most two digits."""
    sizes = (abs(value) for value in column if value is not None and math.isfinite(value))
    return digits >= 4 and 0 < max(sizes, default=0) < 50 * 10.0**-digits


def percent(share: float | None, digits: int = 1) -> str:
    """A share (0 to 1) as a percentage, or the report's dash for None."""
    return MISSING if share is None else plain_percent(share, digits)


def interval(ends: tuple[float, float] | None, digits: int, powers: bool | None = None) -> str:
    """` [low, high]`, or an empty string; see `number`."""
    return "" if ends is None else f" [{', '.join(number(end, digits, powers) for end in ends)}]"


_DIGITS = {"nats/token": 4, "bits/byte": 4, "ratio": 4, "r": 3, "count": 0, "MACs": 0, "tokens": 2}


def in_unit(value: float, unit: str, powers: bool | None = None) -> str:
    """A value with the decimals of its unit; percentages have two."""
    almost_all = unit == "percent" and 99 < value < 100
    return number(value, 4 if almost_all else _DIGITS.get(unit, 2), powers)


# --- published and ours ----------------------------------------------------------------------------------

HEADERS = ("model", "of", "number", "verdict", "published", "ours", "difference", "tolerance")


def comparisons(rows: Sequence[Compared]) -> list[Table]:
    """The table of an experiment's published numbers, and the folded tables below it.

    Numbers of complete test sets are shown unfolded, or all numbers if there are none of those and at most
    `SHOWN`. The rest is folded by model, and numbers that are not compared have a separate table.
    """
    sizes: dict[str, list[float]] = {}
    for one in rows:
        sizes.setdefault(one.unit, []).append(one.value)
    powers = {unit: in_powers(of, _DIGITS.get(unit, 2)) for unit, of in sizes.items()}

    def lines(of: Iterable[Compared]) -> list[tuple[str, ...]]:
        return [_line(one, powers[one.unit]) for one in of]

    judged = [one for one in rows if one.verdict != "not compared"]
    whole = [one for one in judged if one.row.subset in AVERAGES]
    if not whole and len(judged) <= SHOWN:
        whole = judged
    parts: dict[str, list[Compared]] = {}
    for one in judged:
        if one not in whole:
            parts.setdefault(_model_of(one), []).append(one)
    tables = [Table(HEADERS, lines(whole), "Published and ours", words=4)] if whole else []
    for model, part in parts.items():
        title = (
            f"{model}: {counted(len(part), 'number')} by part of the test ({listed_verdicts(count(part))})"
        )
        tables.append(Table(HEADERS, lines(part), title, folded=True, words=4))
    apart = [one for one in rows if one.verdict == "not compared"]
    if apart:
        # The reason replaces the verdict; there is no difference to print.
        others = [(*line[:3], one.reason, *line[4:6]) for one, line in zip(apart, lines(apart), strict=True)]
        headers = (*HEADERS[:3], "why", *HEADERS[4:6])
        title = f"{counted(len(others), 'number')} not compared"
        tables.append(Table(headers, others, title, folded=True, words=4))
    return tables


def _line(one: Compared, powers: bool) -> tuple[str, ...]:
    row, unit, allowed = one.row, one.unit, one.band
    show = partial(in_unit, unit=unit, powers=powers)
    name, _, kind = row.metric.partition("[")
    heading = BY_PUBLISHED_NAME[name].on(row.experiment).heading + kind.rstrip("]").replace("_", " ")
    if unit != row.unit:  # a time, as a percentage below ByT5's
        heading = BY_PUBLISHED_NAME[DECREASE].heading
    ours = difference = tolerance = MISSING
    if one.ours is not None:
        ours = show(one.ours.mean) + interval(one.ours.interval, _DIGITS.get(unit, 2), powers)
        off = one.ours.mean - one.value
        difference = show(off)
        if set(difference) <= set("0.,\N{MINUS SIGN}"):
            difference = difference.lstrip("\N{MINUS SIGN}")
        elif off >= 0:
            difference = f"+{difference}"
    if allowed is not None:
        up, down = allowed.high - one.value, one.value - allowed.low
        tolerance = f"{show(allowed.low)} to {show(allowed.high)}"
        if math.isclose(up, down, rel_tol=1e-6, abs_tol=1e-12):
            tolerance = "exact" if up == 0 else f"±{show(up)}"
    verdict = one.verdict + (f": {one.reason}" if one.reason else "")
    part = (row.subset or MISSING).replace("_", " ")
    return _model_of(one), part, heading, verdict, show(one.value), ours, difference, tolerance


_SETTINGS = {
    "alpha": "\N{GREEK SMALL LETTER ALPHA}",
    "delta": "δ",
    "target_deletion_rate": "δ",
    "gate_after_layer": "layer",
    "train_data": "trained on",
}


def _model_of(one: Compared) -> str:
    """The model's name and distinguishing settings, in the paper's notation."""
    if one.row.experiment == "compute_savings":
        return f"{one.row.model}, δ {one.row.setting['delta']:g}"
    settings = {key: value for key, value in one.row.setting.items() if key != "seed"}
    named = (f"{_SETTINGS.get(key, key.replace('_', ' '))} {value}" for key, value in settings.items())
    return ", ".join([one.row.model, *named])


def listed_verdicts(counts: Mapping[Verdict, int]) -> str:
    """The counts as text, such as "3 within, 1 outside"."""
    return ", ".join(f"{counts[verdict]:,} {verdict}" for verdict in VERDICTS if counts[verdict])


def summary(counts: Mapping[str, Mapping[Verdict, int]]) -> Table:
    """The number of verdicts of each kind per experiment (by title), with totals."""
    lines = [
        (title, *(f"{of[verdict]:,}" if of[verdict] else MISSING for verdict in VERDICTS))
        for title, of in counts.items()
        if sum(of.values())
    ]
    totals = tuple(f"{sum(of[verdict] for of in counts.values()):,}" for verdict in VERDICTS)
    return Table(("experiment", *VERDICTS), [*lines, ("all", *totals)], totals=1)


def rules() -> Table:
    """The tolerance rules with their allowances and reasons."""
    headers = ("numbers", "between runs", "sampling error added", "better is", "reason")
    lines = [
        (rule.name, rule.described, "yes" if rule.sampled else "no", rule.better or "neither", rule.reason)
        for rule in tolerances.rules()
    ]
    return Table(headers, lines, "Tolerances", folded=True, words=5, prose=True)


# --- ours alone ------------------------------------------------------------------------------------------


def our_runs(results: Results) -> Table | None:
    """One row per recipe: means over seeds, with intervals for several seeds; None without any result."""
    found = [(ran, ran.evaluations[0]) for of in results.runs.values() for ran in of if ran.evaluations]
    if not found:
        return None
    runs = pd.DataFrame(
        vars(one.rows[-1])
        | dict(one.rows[-1].others)
        | {"recipe": ran.name, "seed": ran.seed, "task": one.task}
        for ran, one in found
    )
    recipes = runs.groupby("recipe", sort=False)
    columns = [
        metric
        for metric in (
            *MEASURED,
            *map(metric_of, dict.fromkeys(name for _, one in found for name in one.rows[-1].others)),
        )
        if any(_is_shown(metric, of.task.iloc[0]) and of[metric.name].notna().any() for _, of in recipes)
    ]
    powers = {metric: in_powers(metric.factor * runs[metric.name], _digits(metric)) for metric in columns}
    lines = []
    for recipe, of in recipes:
        means = (_mean(of[metric.name], metric, powers[metric]) for metric in columns)
        lines.append((recipe, ", ".join(map(str, of.seed)), *means))
    headings = (metric.on(runs.task[0]).heading for metric in columns)
    return Table(("recipe", "seeds", *headings), lines, "Our runs, on the complete test set", words=2)


def _is_shown(metric: Metric, kind: str) -> bool:
    """Whether the table of a kind of task has a column for the metric.

    Span corruption has none for complete targets, because no model fills every gap of a text exactly.
    """
    if not metric.in_cards and metric.unit != "ms":
        return False
    of_text = {"bits_per_byte": True, "token_accuracy": False, WHOLE_TARGETS: False}
    return metric.name not in of_text or of_text[metric.name] == (kind == "span_corruption")


def _digits(metric: Metric) -> int:
    return 4 if metric.name == "bits_per_byte" else metric.digits  # 4, as in comparisons


def _mean(values: pd.Series, metric: Metric, powers: bool) -> str:
    """The mean with its interval, and over how many runs it is where some have no value."""
    scaled = [metric.factor * value for value in values.dropna()]
    if not scaled:
        return MISSING
    digits = _digits(metric)
    shown = number(statistics.fmean(scaled), digits, powers)
    shown += interval(interval_of_mean(scaled, metric.printed_bounds), digits, powers)
    return shown if len(scaled) == len(values) else f"{shown} ({len(scaled)} of {len(values)})"


def problems(results: Results) -> list[str]:
    """The missing runs and analyses of an experiment, one sentence each."""
    found = []
    for name, runs in results.runs.items():
        if not runs:
            found.append(f"{name}: not in this plan")
        for ran in runs:
            if not ran.evaluations and results.experiment.evaluations:
                found.append(f"{name}, seed {ran.seed}: {ran.why_missing()}")
    found += [
        f"analysis {name}: not done" for name in results.experiment.analyses if name not in results.analyses
    ]
    for name, document in results.analyses.items():
        found += [f"analysis {name}: {run} is missing" for run in document.get("missing", ())]
    return found


# --- claims ----------------------------------------------------------------------------------------------

_HOLDS = {True: "holds", False: "does not hold", None: "open"}
SMOKE = "smoke"


def claims_table(
    first: str, second: str, claims: Iterable[tuple[Claim, str, str]], *, smoke: bool
) -> Table | None:
    """A table of claims: whether each holds, and two text columns; None without any claim.

    Args:
        smoke: whether the runs are a smoke run, whose numbers decide nothing.
    """
    lines = [(SMOKE if smoke else _HOLDS[claim.holds], *words) for claim, *words in claims]
    return Table(("here", first, second), lines, "Claims", words=3, prose=True) if lines else None


def evidence_of(claim: Claim) -> Table:
    """The numbers by which a claim was judged."""
    headers = tuple(key.replace("_", " ") for key in claim.rows[0])
    found = {key: [row[key] for row in claim.rows] for key in claim.rows[0]}
    columns = [
        [number(value, 4, powers) if isinstance(value, float | None) else str(value) for value in of]
        for of in found.values()
        for powers in [in_powers(value for value in of if isinstance(value, float))]
    ]
    lines = list(zip(*columns, strict=True))
    return Table(headers, lines, f"{claim.name.replace('_', ' ')}: the numbers", folded=True)
