"""What the paper claims, and whether an experiment bears it out, in numbers.

A claim is a pure function of evidence: it returns a verdict, a sentence with the numbers, and the rows of a
table. It says so when a claim does not hold. Thresholds are constants with their reasons; none was chosen
after looking at a result. What was added after one: that softmax1 and softmax may be too close to call, that
samples may be too few to tell two correlations apart, and that these are of the loss increase in nats.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pandas as pd

from mrt5cli.analysis.compute import Sizes, macs
from mrt5cli.analysis.per_sample import difference_of_correlations, fisher_mean, samples_needed
from mrt5cli.analysis.settling import WITHIN
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.metrics import Z_80, Z_95
from mrt5cli.metrics.catalog import TOKENS, WHOLE_TARGETS
from mrt5cli.metrics.results import Json, Row
from mrt5cli.metrics.student_t import interval_of_mean, values_needed
from mrt5cli.recipe.shorteners import SHORTENERS
from mrt5cli.report.results import Evidence, short_name
from mrt5cli.text import counted

Analyses = Mapping[str, Json]
Finding = tuple[bool | None, str, pd.DataFrame]
NOTHING = pd.DataFrame()

TARGET_TOLERANCE = 0.04
"""Of a deletion rate around its target: the paper's own five MrT5s end up to 3.7 points away from theirs."""

EXACT_PRECISION, EXACT_RECALL = 0.99, 0.95
"""Of a gate that deletes "exactly" a set of letters; the paper's deletes all of it, and a few others."""

TOKENS_WITHIN = 0.002
"""Share of tokens that a model with such a gate may get wrong more than ByT5."""

EXTRAPOLATION = 0.05
"""How far beyond the rates of MrT5s another model is still compared with them, along the nearest stretch."""

SOURCE_WORTH = 0.2
"""Nats a token that a model must lose without its source for a comparison of deletions to mean anything."""

RUNTIME_SHARE = 0.7
"""Of the time that the saved arithmetic would save, what must really be saved to call it as predicted."""

NOT_THERE = "not run yet: "
NO_NUMBER = "none"


@dataclass(frozen=True)
class Claim:
    """A claim, judged.

    Attributes:
        name: in `CLAIMS`.
        statement: what the paper says.
        holds: None where runs are missing or the evidence cannot decide.
        sentence: why, with the numbers.
        rows: of a table, all with the same keys; values are numbers, words or None.
    """

    name: str
    statement: str
    holds: bool | None
    sentence: str
    rows: Sequence[Json]


Find = Callable[[pd.DataFrame, Analyses], Finding]
CLAIMS: dict[str, tuple[str, Find]] = {}
"""What the paper says, and the function that looks for it among the runs, by its name."""


def _claim(statement: str) -> Callable[[Find], Find]:
    def add(find: Find) -> Find:
        CLAIMS[find.__name__] = statement, find
        return find

    return add


def judge(name: str, evidence: Evidence) -> Claim:
    """Judge a claim by evidence; with runs missing, the numbers of those that are there and no verdict.

    Raises:
        KeyError: there is no claim of that name.
    """
    statement, find = CLAIMS[name]
    missing = ", ".join(evidence.missing)
    if evidence.runs.empty:
        return Claim(name, statement, None, NOT_THERE + (missing or "no runs to judge by"), [])
    holds, sentence, rows = find(evidence.runs, evidence.analyses)
    if missing:
        # A claim that is judged by an analysis alone has said so.
        holds = None
        sentence += "" if sentence == NOT_THERE + missing else f" ({NOT_THERE}{missing})"
    return Claim(name, statement, None if holds is None else bool(holds), sentence, rows.to_dict("records"))


# --- quality against reduction ------------------------------------------------------------------------------


@_claim("At equal reduction MrT5 loses less than every baseline.")
def less_loss_at_equal_reduction(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """MrT5's losses, joined by straight lines from ByT5 on, against each baseline's at the baseline's rate.

    A straight line lies above a curve that bends upwards, as losses over rates do: where it decides, it
    decides against MrT5. Seeds are compared with the same seed. Shorteners that the paper knows
    nothing of are no part of what it claims.
    """
    compared, beyond = [], []
    baselines = {kind for section in SHORTENERS if section.baseline for kind in section.kinds()}
    for seed, of in runs.groupby("seed", sort=False):
        base, learned = of[of.kind == "none"], of[of.kind == "delete_gate"]
        if base.empty or learned.empty:
            continue
        byt5 = base.loss.iloc[0]
        curve = sorted([(0.0, byt5), *zip(learned.deleted, learned.loss, strict=True)])
        for run in of[of.kind.isin(baselines)].itertuples():
            expected = _along(curve, run.deleted)
            if expected is None:
                beyond.append(f"{run.model} seed {seed}")
            else:
                gaps = {"above_byt5": run.loss - byt5, "mrt5_above_byt5": expected - byt5}
                compared.append(run._asdict() | gaps | {"above_mrt5": run.loss - expected})
    if not compared:
        named = ", ".join(beyond) or "none"
        return None, f"no baseline can be set beside an MrT5 at its rate ({named})", NOTHING
    frame = pd.DataFrame(compared)
    rows = frame.groupby("recipe", sort=False).agg(
        model=("model", "first"),
        seeds=("model", "size"),
        deleted=("deleted", "mean"),
        loss=("loss", "mean"),
        above_byt5=("above_byt5", "mean"),
        mrt5_above_byt5=("mrt5_above_byt5", "mean"),
        above_mrt5=("above_mrt5", "mean"),
        above_mrt5_low=("above_mrt5", "min"),
        above_mrt5_high=("above_mrt5", "max"),
        seeds_mrt5_lower=("above_mrt5", lambda gaps: int((gaps > 0).sum())),
    )
    worse = rows[rows.seeds_mrt5_lower < rows.seeds]
    nearest = rows.loc[rows.above_mrt5.idxmin()]
    sentence = (
        f"at the rate of the baseline MrT5's loss is lower in {rows.seeds_mrt5_lower.sum()} of {len(frame)} "
        f"comparisons; the nearest is {nearest.model}, {nearest.above_mrt5:+.3f} nats above MrT5 at "
        f"{nearest.deleted:.1%}"
    )
    if len(worse):
        each = (f"{row.model} ({row.above_mrt5:+.3f})" for row in worse.itertuples())
        sentence += f"; not lower than {', '.join(each)}"
    if beyond:
        sentence += f"; not compared, beyond MrT5's rates: {', '.join(beyond)}"
    return worse.empty, sentence, rows


def _along(curve: Sequence[tuple[float, float]], rate: float) -> float | None:
    """The loss at a rate on a broken line of (rate, loss), in order; None too far beyond its ends."""
    if not curve or not curve[0][0] - EXTRAPOLATION <= rate <= curve[-1][0] + EXTRAPOLATION:
        return None
    for (low, first), (high, last) in itertools.pairwise(curve):
        if rate <= high or high == curve[-1][0]:
            return first if high == low else first + (last - first) * (rate - low) / (high - low)
    return None


ONE_EACH, MOVED, TOLD = "an MrT5 for each rate", "the threshold of one moved", "one that is told its rate"


def rate_lines(points: Sequence[Json]) -> pd.DataFrame:
    """The points of an analysis `dial` that are on a line over rates: its `line`, `seed`, the rate `wanted`,
    the one `reached` (0 to 1), and the loss `above_byt5` of the same seed, or else of the first, nats.

    The threshold that is moved is that of the MrT5 whose target is nearest to a half: the middle of the dial,
    from where the way to either end is as long. What it is at its own threshold has no `wanted`.
    """
    found = pd.DataFrame(points).astype({"wanted": float, "target": float})
    byt5 = found[found.kind == "none"].drop_duplicates("seed").set_index("seed").loss
    found["above_byt5"] = found.loss - found.seed.map(byt5).fillna(byt5.iloc[0] if len(byt5) else math.nan)
    gates = found[(found.kind == "delete_gate") & found.target.notna()]
    each = gates[gates.wanted.isna()]
    middle = each.recipe[(each.target - 0.5).abs().sort_values().index[:1]]
    told = found[(found.kind == "quantile_gate") & found.wanted.notna()]
    lines = {ONE_EACH: each.assign(wanted=each.target), MOVED: gates[gates.recipe.isin(middle)], TOLD: told}
    whole = pd.concat([of.assign(line=line) for line, of in lines.items()], ignore_index=True)
    return whole.dropna(subset="above_byt5")


@_claim(
    "One MrT5 that is told its rate is not measurably worse than one trained for each rate, and better than "
    "one whose threshold is moved (beyond the paper)."
)
def one_model_any_rate(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """What the told model loses more than either, at the rates that it reached, along straight lines between
    their points. The mean over the wanted rates at which all seeds know all three decides.

    A straight line lies above a curve that bends upwards, but hardly where a point is near, and near each of
    these rates both lines have one.
    """
    if "dial" not in analyses:
        return None, NOT_THERE + "analysis dial", NOTHING
    lines = rate_lines(analyses["dial"]["points"])
    rows = lines[lines.line == TOLD].reset_index(drop=True)
    others = {"minus_each": ONE_EACH, "minus_moved": MOVED}
    for gap, line in others.items():
        curves = {
            seed: sorted(zip(of.reached, of.above_byt5, strict=True))
            for seed, of in lines[lines.line == line].groupby("seed")
        }
        along = [_along(curves.get(one.seed, ()), one.reached) for one in rows.itertuples()]
        rows[gap] = rows.above_byt5 - pd.Series(along, dtype=float)
    gaps, seeds = [*others], rows.seed.nunique()
    known = rows.dropna(subset=gaps).groupby("wanted").filter(lambda of: len(of) == seeds)
    missed = {"told": _worst_miss(rows), "moved": _worst_miss(lines[lines.line == MOVED])}
    found: list[Json] = []
    for wanted, of in rows.groupby("wanted"):
        told: Json = {"wanted": wanted, "seeds": len(of), **of[["reached", "above_byt5"]].mean()}
        for gap in gaps:
            low, high = interval_of_mean(of[gap].tolist()) or (math.nan, math.nan)
            told |= {gap: of[gap].mean(skipna=False), f"{gap}_low": low, f"{gap}_high": high}
        misses = {f"{name}_misses_by_points": points.get(wanted) for name, points in missed.items()}
        found.append(told | misses)
    table = pd.DataFrame(found)
    if known.empty:
        return None, "at no rate are a told model, MrT5s trained for it and a moved threshold known", table
    means = known.groupby("seed")[gaps].mean()
    from_each, from_moved = (interval_of_mean(means[gap].tolist()) for gap in gaps)
    rates = ", ".join(f"{100 * rate:g}" for rate in sorted(known.wanted.unique()))
    said = [
        f"{means[gap].mean():+.4f} nats" + ("" if ends is None else f" [{ends[0]:+.4f}, {ends[1]:+.4f}]")
        for gap, ends in zip(gaps, (from_each, from_moved), strict=True)
    ]
    sentence = (
        f"told its rate, one model is {said[0]} above MrT5s trained for each, and {said[1]} above one whose "
        f"threshold is moved (means of {counted(seeds, 'seed')}, over {rates} %); it misses a rate by up to "
        f"{missed['told'].abs().max():.1f} points, the threshold by {missed['moved'].abs().max():.1f}"
    )
    if from_each and from_moved:
        if from_each[0] > 0 or from_moved[0] > 0:
            return False, sentence, table
        if from_moved[1] < 0:
            return True, sentence, table
    return None, f"{sentence}: too close to call", table


def _worst_miss(points: pd.DataFrame) -> pd.Series:
    """By the rate wanted, how far from it a seed ended at most, in points."""
    off = 100 * (points.reached - points.wanted)
    return off.groupby(points.wanted).agg(lambda of: of[of.abs().idxmax()])


@_claim("The models read their source, so that deleting from it can cost something.")
def source_is_read(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """What models lose without their source: under it, no deletion costs anything and nothing is shown."""
    rows = runs.loc[runs.kind == "none", ["model", "seed", "deleted", "loss", "source_removed_loss"]]
    rows = rows.rename(columns={"source_removed_loss": "loss_source_removed"})
    known = rows.dropna()
    if known.empty:
        return None, "no ByT5 was measured without its source", rows
    worth = known.loss_source_removed - known.loss
    with_it = known.loss.mean()
    sentence = f"without its source ByT5 loses {worth.mean():.2f} nats a token more ({with_it:.3f} with it)"
    return worth.min() >= SOURCE_WORTH, sentence, rows


@_claim("The controller brings the deletion rate to its target.")
def hits_targets(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """How far each controlled MrT5 ends from its target."""
    rows = runs[["model", "seed", "target", "deleted"]].dropna()
    if rows.empty:
        return None, "no run has a target", rows
    rows["off"] = rows.deleted - rows.target
    worst = rows.loc[rows.off.abs().idxmax()]
    hits = (rows.off.abs() <= TARGET_TOLERANCE).sum()
    sentence = (
        f"{hits} of {len(rows)} runs end within {100 * TARGET_TOLERANCE:g} points of their target; the "
        f"farthest is {worst.model} seed {worst.seed}, {worst.deleted:.1%} for {worst.target:.0%}"
    )
    return hits == len(rows), sentence, rows


@_claim(
    "From every start, a law brings the deletion rate to within 1 point of its target (our own comparison)."
)
def controller_settles(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """By law: how many runs end on target, on the text that they train on, and how they came there; of the
    laws of which all do, the fastest is recommended. Rates on test text stand beside that."""
    if "settling" not in analyses:
        return None, NOT_THERE + "analysis settling", NOTHING
    found = pd.DataFrame(analyses["settling"]["runs"])
    found["missed_on_test"] = found.missed_on_test.astype(float)  # all of None where no run was evaluated
    found["settled"] = found.settled.astype(float).fillna(math.inf)  # never is later than any step
    rows = found.groupby("law", sort=False).agg(
        runs=("missed", "size"),
        within_1_point=("missed", _within),
        farthest_points=("missed", _farthest),
        on_test_within_1_point=("missed_on_test", _within),
        on_test_farthest_points=("missed_on_test", _farthest),
        never_settled=("settled", lambda steps: int(np.isinf(steps).sum())),
        median_settling_step=("settled", "median"),
        worst_overshoot_points=("overshoot", "max"),
        mean_spread_points=("spread", "mean"),
        mean_loss=("loss", "mean"),
    )
    rows = rows.reset_index()
    whole = rows[rows.within_1_point == rows.runs]
    order = ["median_settling_step", "mean_spread_points"]
    first = whole.sort_values(order).law.tolist()[:1]
    each = "; ".join(
        f"{row.law} {row.within_1_point} of {row.runs} (farthest {row.farthest_points:+.1f} points, settled "
        + ("never" if math.isinf(row.median_settling_step) else f"by step {row.median_settling_step:.0f}")
        + f" in the median, spread {row.mean_spread_points:.2f})"
        for row in rows.itertuples()
    )
    advice = (
        f"for new work: {first[0]}" if first else "none has all of its runs there, so none is recommended"
    )
    return (
        bool(first),
        f"runs that end within 1 point: {each}; {advice}",
        rows.replace(math.inf, math.nan),
    )


def _within(points: pd.Series[float]) -> int:
    return int((points.abs() <= WITHIN).sum())


def _farthest(points: pd.Series[float]) -> float:
    known = points.dropna()
    return float(known[known.abs().idxmax()]) if len(known) else math.nan


# --- what is deleted ----------------------------------------------------------------------------------------


@_claim("On diagnostic tasks the gate deletes exactly the letters not needed.")
def gate_finds_the_letters(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """Precision and recall of MrT5's gate on letters, and what deletion costs in tokens right."""
    return _found_letters(runs, "delete_gate")


@_claim("So does a gate that is told how much can go (not in the paper).")
def told_gate_finds_the_letters(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """The same of the quantile gate."""
    return _found_letters(runs, "quantile_gate")


def _found_letters(runs: pd.DataFrame, kind: str) -> Finding:
    names = {"gate_precision": "precision", "gate_recall": "recall"}
    shown = ["task", "seed", "deleted", "precision", "recall", TOKENS, WHOLE_TARGETS]
    rows = runs[runs.kind == kind].rename(columns=names)[shown]
    plain = runs[runs.kind == "none"].drop_duplicates(["task", "seed"], keep="last")
    plain = plain.rename(columns={name: f"byt5_{name}" for name in (TOKENS, WHOLE_TARGETS)})
    columns = ["task", "seed", f"byt5_{TOKENS}", f"byt5_{WHOLE_TARGETS}"]
    rows = rows.merge(plain[columns], how="left", on=["task", "seed"])
    known = rows.dropna(subset="recall")  # a gate that deletes no letter has no precision
    if known.empty:
        return None, "no gate was measured on a task with a known set of letters", rows
    exact = (known.precision >= EXACT_PRECISION) & (known.recall >= EXACT_RECALL)
    as_good = known[TOKENS] >= known[f"byt5_{TOKENS}"] - TOKENS_WITHIN
    each = "; ".join(
        f"{task} precision {_range(of.precision)}, recall {_range(of.recall)} ({len(of)} seeds)"
        for task, of in known.groupby("task", sort=False)
    )
    sentence = (
        f"{exact.sum()} of {len(known)} gates delete the set (precision >= {EXACT_PRECISION:g}, recall >= "
        f"{EXACT_RECALL:g}), {as_good.sum()} with tokens right as often as ByT5 to within "
        f"{100 * TOKENS_WITHIN:g} points: {each}"
    )
    return bool((exact & as_good).all()), sentence, rows


def _range(values: pd.Series[float]) -> str:
    low, high = (NO_NUMBER if math.isnan(end) else f"{end:.3f}" for end in (values.min(), values.max()))
    shown, known = low if low == high else f"{low} to {high}", values.count()
    return f"{shown} in {known} of {len(values)}" if 0 < known < len(values) else shown


@_claim("One multilingual MrT5 deletes at other rates in other scripts.")
def rates_differ_by_script(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """Deletion rates of one model by language, and how much of their spread lies between scripts."""
    gates = runs[(runs.kind == "delete_gate") & (runs.rows.map(len) > 2)]
    if gates.empty:
        return None, "no MrT5 was evaluated by language", NOTHING
    rows = pd.DataFrame(
        {
            "language": LANGUAGES[row.subset].name,
            "script": LANGUAGES[row.subset].script,
            "deleted": row.deletion_rate,
            "loss": row.loss,
        }
        for row in gates.rows.iloc[0]
        if row.subset in LANGUAGES
    )
    scripts = rows.groupby("script", sort=False).deleted
    if len(scripts) < 2:
        return None, "only one script was evaluated", rows
    means = scripts.mean()
    low, high = means.idxmin(), means.idxmax()
    total = ((rows.deleted - rows.deleted.mean()) ** 2).sum()
    between = (scripts.size() * (means - rows.deleted.mean()) ** 2).sum()
    share = between / total if total else 0.0
    # What shares of this size would be between groups of these sizes if script meant nothing.
    chance = (len(means) - 1) / (len(rows) - 1)
    sentence = (
        f"from {means[low]:.1%} ({low}) to {means[high]:.1%} ({high}) deleted; scripts account for "
        f"{share:.0%} of the spread between languages, {chance:.0%} would be chance"
    )
    within = (scripts.max() - scripts.min()).max()
    return means[high] - means[low] > within and share > chance, sentence, rows


# --- samples, softmax, time ---------------------------------------------------------------------------------


@_claim("A sample's deletion rate hardly tells how much worse MrT5 does there; with random deletion it does.")
def rate_does_not_tell_loss(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """Pearson's r of deletion rate and loss increase over samples: the size of MrT5's against random's.

    The increase in nats decides. The paper's percent is shown: of a loss near 0, that of a model that solves
    its task, it is a ratio of two noisy numbers. Where the interval of the difference holds 0, samples are
    too few.
    """
    if "per_sample" not in analyses:
        return None, NOT_THERE + "analysis per_sample", NOTHING
    found = analyses["per_sample"]
    kinds = runs.drop_duplicates("recipe").set_index("recipe").kind
    columns = ["recipe", "seed", "samples", "deleted_sd_points", "r", "r_nats", "low_nats", "high_nats"]
    rows = pd.DataFrame(found["models"]).reindex(columns=columns)
    rows = rows.astype(dict.fromkeys(columns[3:], float))
    rows.insert(0, "model", rows.recipe.map(short_name))
    rows.insert(1, "kind", rows.pop("recipe").map(kinds))
    learned, random = (rows[(rows.kind == kind) & rows.r_nats.notna()] for kind in ("delete_gate", "random"))
    if learned.empty or random.empty or (samples := int(rows.samples.min())) < 4:
        return None, "both MrT5 and random deletion are needed, on four samples or more", rows
    (ours, percent), (theirs, their_percent) = (
        [fisher_mean(of[name].dropna().tolist()) or 0.0 for name in ("r_nats", "r")]
        for of in (learned, random)
    )
    apart, low, high = difference_of_correlations(theirs, ours, samples)
    sentence = (
        f"mean r is {ours:.3f} for MrT5 ({counted(len(learned), 'model')}) and {theirs:.3f} for random "
        f"deletion ({len(random)}) with the increase in nats, {apart:.3f} [{low:.3f}, {high:.3f}] apart in "
        f"Fisher's z; in percent {percent:.3f} and {their_percent:.3f} (the paper: 0.10 and 0.30)"
    )
    if (worth := found.get("source_worth_nats")) is not None:
        sentence += f"; the source is worth {worth:.2f} nats a token"
    if low <= 0 <= high:
        needed = samples_needed(theirs, ours)
        more = (
            "random's is not the larger" if needed is None else f"at these r it would take {needed:,} samples"
        )
        return None, f"{sentence}; open: {more}, there are {samples:,}", rows
    return low > 0, sentence, rows


@_claim("Deletion costs no more with softmax1 than with softmax (our own ablation).")
def softmax1_costs_less(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """What deletion adds to ByT5's loss, with softmax1 less with softmax, of each seed; our own ablation.

    It is known as far as both the seeds and the test examples say: 0 is in neither's 95 % interval.
    """
    plain = runs[runs.kind == "none"].drop_duplicates(["softmax1", "seed"], keep="last")
    rows = runs[runs.kind == "delete_gate"].sort_values("softmax1", ascending=False, kind="stable")
    rows = rows.assign(attention=rows.softmax1.map({True: "softmax1", False: "softmax"}), mrt5_loss=rows.loss)
    rows = rows.merge(
        plain[["softmax1", "seed", "loss"]].rename(columns={"loss": "byt5_loss"}), on=["softmax1", "seed"]
    )
    rows["above_byt5"] = rows.mrt5_loss - rows.byt5_loss
    rows = rows[["attention", "seed", "byt5_loss", "mrt5_loss", "deleted", "above_byt5"]]
    one, other = (rows[rows.attention == name] for name in ("softmax1", "softmax"))
    gaps = (one.groupby("seed").above_byt5.mean() - other.groupby("seed").above_byt5.mean()).dropna()
    if gaps.empty:
        return None, "both attentions are needed, each with ByT5 and MrT5 of one seed", rows
    mean, seeds = gaps.mean(), interval_of_mean(gaps.tolist())
    sentence = (
        f"deletion costs {one.above_byt5.mean():+.4f} nats with softmax1 ({one.deleted.mean():.1%} deleted) "
        f"and {other.above_byt5.mean():+.4f} with softmax ({other.deleted.mean():.1%}), {mean:+.4f} apart "
        f"over {counted(len(gaps), 'seed')}"
    )
    if seeds is not None:
        sentence += f" [{seeds[0]:+.4f}, {seeds[1]:+.4f}]"
    halves: dict[int, list[float]] = {}
    for pair in analyses.get("softmax1", {"pairs": ()})["pairs"]:
        *_, whole = (found for found in pair["differences"] if found["measure"] == "loss")
        halves.setdefault(pair["seed"], []).append((whole["high"] - whole["low"]) / 2)
    if not halves:
        return None, f"{sentence}; {NOT_THERE}analysis softmax1, which says how sure that is", rows
    # Half of the 95 % interval of a difference of differences, from the intervals of ByT5's and of MrT5's own
    # as if they were independent, and of the mean over seeds as if more of them made it no surer. They are of
    # the same examples and likely to go together: rather too wide.
    uncertain = fmean(math.hypot(*of) for of in halves.values())
    sentence += f"; the test text leaves {uncertain:.4f} open"
    agree = seeds is not None and (seeds[0] > 0 or seeds[1] < 0)
    if agree and abs(mean) > uncertain:
        return mean < 0, sentence, rows
    sentence += "; too close to call"
    if seeds is None:
        sentence += ", and one seed says nothing of others"
    elif not agree and (needed := values_needed(gaps.tolist())) is not None:
        sentence += f"; at this spread it would take {needed:,} seeds"
    if 0 < abs(mean) <= uncertain:  # twice as sure takes four times the text
        sentence += f"; it would take {((1 + Z_80 / Z_95) * uncertain / mean) ** 2:,.1f} times the test text"
    return None, sentence, rows


@_claim("Runtime falls with the deletion rate, as the saved arithmetic predicts.")
def runtime_falls_as_predicted(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """Time of a forward pass over ByT5's, beside the ratio of multiply-accumulates of what is kept."""
    timed = runs.rename(columns={"median_ms_per_example": "ms"}).dropna(subset="ms")
    plain = {run.seed: run for run in timed[timed.kind == "none"].itertuples()}
    lines = []
    for run in timed[timed.kind.isin(["delete_gate", "random"]) & timed.seed.isin(plain)].itertuples():
        if run.config:
            base = plain[run.seed]
            time = run.ms / base.ms
            work = _macs(run.config, run.rows[-1]) / _macs(base.config, base.rows[-1])
            share = (1 - time) / (1 - work) if work < 1 else None
            lines.append((run.model, run.seed, run.deleted, run.ms, base.ms, time, work, share))
    names = ["model", "seed", "deleted", "ms", "byt5_ms", "time_ratio", "macs_ratio", "share_of_saving"]
    rows = pd.DataFrame(lines, columns=names)
    known = rows.dropna(subset="share_of_saving").sort_values("deleted", kind="stable")
    if known.empty:
        return None, "nothing that deletes was timed beside a ByT5 of its seed", rows
    falls = bool((known.time_ratio.diff().dropna() < 0).all())
    least = known.share_of_saving.min()
    each = ", ".join(
        f"{run.time_ratio:.2f} at {run.deleted:.0%} (arithmetic {run.macs_ratio:.2f})"
        for run in known.itertuples()
    )
    sentence = f"time over ByT5's: {each}; the least share of the predicted saving is {least:.0%}"
    if not falls:
        sentence += "; it does not fall with every rise of the rate"
    return falls and least >= RUNTIME_SHARE, sentence, rows


def _macs(config: Json, row: Row) -> int:
    """Of one example of the mean lengths: what is deleted costs nothing, padding included."""
    sizes, source = Sizes.of(config), round(row.known("input_length"))
    kept = round(row.known("kept_length")) if row.deletion_rate else source
    return macs(sizes, [source], [kept], [round(row.target_tokens / row.examples)])
