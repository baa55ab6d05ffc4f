"""The paper's claims, and whether an experiment supports them.

A claim is a pure function of evidence. It returns a verdict, a sentence with the numbers, and the rows of a
table. Thresholds are constants with reasons; none was chosen after seeing a result. Three rules were added
after one: softmax1 and softmax may be too close to call, there may be too few samples to separate two
correlations, and correlations use the loss increase in nats.
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
"""Largest distance of a deletion rate from its target; the paper's five MrT5s are up to 3.7 points off."""

EXACT_PRECISION, EXACT_RECALL = 0.99, 0.95
"""Least precision and recall of a gate that deletes "exactly" a set of letters; the paper's gate deletes the
whole set and a few others."""

TOKENS_WITHIN = 0.002
"""Additional share of tokens that a model with such a gate may get wrong, compared with ByT5."""

EXTRAPOLATION = 0.05
"""How far outside MrT5's rates a baseline is still compared, by extending the nearest segment."""

SOURCE_WORTH = 0.2
"""Nats per token that a model must lose without its source before comparing deletions means anything."""

RUNTIME_SHARE = 0.7
"""Share of the predicted time saving that must be measured for runtime to fall "as predicted"."""

NOT_THERE = "not run yet: "
NO_NUMBER = "none"


@dataclass(frozen=True)
class Claim:
    """A claim and its verdict.

    Attributes:
        name: key in `CLAIMS`.
        statement: the claim.
        holds: the verdict; None if runs are missing or the evidence cannot decide.
        sentence: the reason, with the numbers.
        rows: rows of a table, all with the same keys; values are numbers, strings or None.
    """

    name: str
    statement: str
    holds: bool | None
    sentence: str
    rows: Sequence[Json]


Find = Callable[[pd.DataFrame, Analyses], Finding]
CLAIMS: dict[str, tuple[str, Find]] = {}
"""Each claim's statement and the function that judges it, by name."""


def _claim(statement: str) -> Callable[[Find], Find]:
    def add(find: Find) -> Find:
        CLAIMS[find.__name__] = statement, find
        return find

    return add


def judge(name: str, evidence: Evidence) -> Claim:
    """Judge a claim; if runs are missing, give the numbers of the existing ones and no verdict.

    Raises:
        KeyError: no claim has that name.
    """
    statement, find = CLAIMS[name]
    missing = ", ".join(evidence.missing)
    if evidence.runs.empty:
        return Claim(name, statement, None, NOT_THERE + (missing or "no runs to judge by"), [])
    holds, sentence, rows = find(evidence.runs, evidence.analyses)
    if missing:
        # A claim that an analysis alone decides has already reported it.
        holds = None
        sentence += "" if sentence == NOT_THERE + missing else f" ({NOT_THERE}{missing})"
    return Claim(name, statement, None if holds is None else bool(holds), sentence, rows.to_dict("records"))


# --- quality against reduction ------------------------------------------------------------------------------


@_claim("At equal reduction MrT5 loses less than every baseline.")
def less_loss_at_equal_reduction(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """Compare each baseline's loss with MrT5's at the same rate, interpolated linearly from ByT5 on.

    A straight line lies above a convex curve, which losses over rates are, so interpolation can only favor
    the baseline. Runs are compared within a seed. Shorteners that are not in the paper are ignored.
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
        return None, f"no baseline has a rate within the range of an MrT5's ({named})", NOTHING
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
        f"at the baseline's rate, MrT5's loss is lower in {rows.seeds_mrt5_lower.sum()} of {len(frame)} "
        f"comparisons; the nearest baseline is {nearest.model}, {nearest.above_mrt5:+.3f} nats above MrT5 at "
        f"{nearest.deleted:.1%}"
    )
    if len(worse):
        each = (f"{row.model} ({row.above_mrt5:+.3f})" for row in worse.itertuples())
        sentence += f"; not lower than {', '.join(each)}"
    if beyond:
        sentence += f"; not compared, outside MrT5's rates: {', '.join(beyond)}"
    return worse.empty, sentence, rows


def _along(curve: Sequence[tuple[float, float]], rate: float) -> float | None:
    """The loss at a rate, interpolated along sorted points (rate, loss); None too far outside them."""
    if not curve or not curve[0][0] - EXTRAPOLATION <= rate <= curve[-1][0] + EXTRAPOLATION:
        return None
    for (low, first), (high, last) in itertools.pairwise(curve):
        if rate <= high or high == curve[-1][0]:
            return first if high == low else first + (last - first) * (rate - low) / (high - low)
    return None


ONE_EACH, MOVED = "one MrT5 per rate", "one MrT5, threshold moved"
CONDITIONED = "one gate conditioned on the rate"


def rate_lines(points: Sequence[Json]) -> pd.DataFrame:
    """The points of a `dial` analysis that belong to a line over rates.

    Columns are the `line`, the `seed`, the requested rate `wanted` and the measured rate `reached` (0 to 1),
    and the loss `above_byt5` in nats, relative to ByT5 of the same seed or else of the first. The moved
    threshold is that of the MrT5 whose target is nearest to one half, the middle of the dial; at its own
    threshold it has no `wanted`.
    """
    found = pd.DataFrame(points).astype({"wanted": float, "target": float})
    byt5 = found[found.kind == "none"].drop_duplicates("seed").set_index("seed").loss
    found["above_byt5"] = found.loss - found.seed.map(byt5).fillna(byt5.iloc[0] if len(byt5) else math.nan)
    gates = found[(found.kind == "delete_gate") & found.target.notna()]
    each = gates[gates.wanted.isna()]
    middle = each.recipe[(each.target - 0.5).abs().sort_values().index[:1]]
    lines = {
        ONE_EACH: each.assign(wanted=each.target),
        MOVED: gates[gates.recipe.isin(middle)],
        CONDITIONED: found[(found.kind == "quantile_gate") & found.wanted.notna()],
    }
    whole = pd.concat([of.assign(line=line) for line, of in lines.items()], ignore_index=True)
    return whole.dropna(subset="above_byt5")


@_claim(
    "One MrT5 conditioned on its rate is not measurably worse than one MrT5 per rate, and better than one "
    "whose threshold is moved (beyond the paper)."
)
def one_model_any_rate(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """How much more the conditioned model loses than either alternative, at the rates that it reached.

    The alternatives are interpolated linearly. The mean over the requested rates at which every seed has all
    three decides. Interpolation overestimates a convex curve, but hardly near a point, and both lines have a
    point near each of these rates.
    """
    if "dial" not in analyses:
        return None, NOT_THERE + "analysis dial", NOTHING
    lines = rate_lines(analyses["dial"]["points"])
    rows = lines[lines.line == CONDITIONED].reset_index(drop=True)
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
    missed = {"conditioned": _worst_miss(rows), "moved": _worst_miss(lines[lines.line == MOVED])}
    found: list[Json] = []
    for wanted, of in rows.groupby("wanted"):
        row: Json = {"wanted": wanted, "seeds": len(of), **of[["reached", "above_byt5"]].mean()}
        for gap in gaps:
            low, high = interval_of_mean(of[gap].tolist()) or (math.nan, math.nan)
            row |= {gap: of[gap].mean(skipna=False), f"{gap}_low": low, f"{gap}_high": high}
        misses = {f"{name}_misses_by_points": points.get(wanted) for name, points in missed.items()}
        found.append(row | misses)
    table = pd.DataFrame(found)
    if known.empty:
        return (
            None,
            "at no rate do the conditioned model, one MrT5 per rate and a moved threshold exist",
            table,
        )
    means = known.groupby("seed")[gaps].mean()
    from_each, from_moved = (interval_of_mean(means[gap].tolist()) for gap in gaps)
    rates = ", ".join(f"{100 * rate:g}" for rate in sorted(known.wanted.unique()))
    said = [
        f"{means[gap].mean():+.4f} nats" + ("" if ends is None else f" [{ends[0]:+.4f}, {ends[1]:+.4f}]")
        for gap, ends in zip(gaps, (from_each, from_moved), strict=True)
    ]
    sentence = (
        f"conditioned on its rate, one model is {said[0]} above MrT5s trained for each, and {said[1]} above "
        f"one whose threshold is moved (means of {counted(seeds, 'seed')}, over {rates} %); it misses a rate "
        f"by up to {missed['conditioned'].abs().max():.1f} points, the threshold by "
        f"{missed['moved'].abs().max():.1f}"
    )
    if from_each and from_moved:
        if from_each[0] > 0 or from_moved[0] > 0:
            return False, sentence, table
        if from_moved[1] < 0:
            return True, sentence, table
    return None, f"{sentence}: too close to call", table


def _worst_miss(points: pd.DataFrame) -> pd.Series:
    """The largest signed distance of any seed from each requested rate, in points."""
    off = 100 * (points.reached - points.wanted)
    return off.groupby(points.wanted).agg(lambda of: of[of.abs().idxmax()])


@_claim("The models read their source, so that deleting from it can cost something.")
def source_is_read(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """How much loss ByT5 adds without its source: if little, deletion costs nothing and proves nothing."""
    rows = runs.loc[runs.kind == "none", ["model", "seed", "deleted", "loss", "source_removed_loss"]]
    rows = rows.rename(columns={"source_removed_loss": "loss_source_removed"})
    known = rows.dropna()
    if known.empty:
        return None, "no ByT5 was evaluated without its source", rows
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
    "From every start, some controller or gate brings the deletion rate within 1 point of its target (our "
    "own comparison)."
)
def controller_settles(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """Per controller: how many runs end on target on training text, and how they settled.

    The fastest controller whose runs all end on target is recommended. Rates on test text are listed too.
    """
    if "settling" not in analyses:
        return None, NOT_THERE + "analysis settling", NOTHING
    found = pd.DataFrame(analyses["settling"]["runs"])
    found["missed_on_test"] = found.missed_on_test.astype(float)  # all None if no run was evaluated
    found["settled"] = found.settled.astype(float).fillna(math.inf)  # never: later than any step
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
        f"for new work: {first[0]}" if first else "none has all of its runs on target, so none is recommended"
    )
    return (
        bool(first),
        f"runs that end within 1 point: {each}; {advice}",
        rows.replace(math.inf, math.nan).rename(columns={"law": "controller_or_gate"}),
    )


def _within(points: pd.Series[float]) -> int:
    return int((points.abs() <= WITHIN).sum())


def _farthest(points: pd.Series[float]) -> float:
    known = points.dropna()
    return float(known[known.abs().idxmax()]) if len(known) else math.nan


# --- deleted bytes ------------------------------------------------------------------------------------------


@_claim("On diagnostic tasks, the gate deletes exactly the letters that are not needed.")
def gate_finds_the_letters(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """Precision and recall of MrT5's gate on letters, and the cost of deletion in token accuracy."""
    return _found_letters(runs, "delete_gate")


@_claim("So does a gate conditioned on the share that can be deleted (not in the paper).")
def told_gate_finds_the_letters(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """The same for the quantile gate."""
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
        return None, "no gate was evaluated on a task with a known set of letters", rows
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


@_claim("One multilingual MrT5 deletes at different rates in different scripts.")
def rates_differ_by_script(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """Deletion rates of one model by language, and the share of their spread that lies between scripts."""
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
    # The expected share for groups of these sizes if script did not matter.
    chance = (len(means) - 1) / (len(rows) - 1)
    sentence = (
        f"from {means[low]:.1%} ({low}) to {means[high]:.1%} ({high}) deleted; scripts account for "
        f"{share:.0%} of the spread between languages, {chance:.0%} expected by chance"
    )
    within = (scripts.max() - scripts.min()).max()
    return means[high] - means[low] > within and share > chance, sentence, rows


# --- samples, softmax, time ---------------------------------------------------------------------------------


@_claim(
    "A sample's deletion rate hardly predicts its loss increase under MrT5; under random deletion it does."
)
def rate_does_not_tell_loss(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """Compare Pearson's r of deletion rate and loss increase over samples, MrT5's with random deletion's.

    The increase in nats decides; the paper's percent is listed as well. For a model that solves its task,
    whose loss is near 0, percent is a ratio of two noisy numbers. If the interval of the difference contains
    0, there are too few samples.
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
        return None, "both MrT5 and random deletion are needed, on at least four samples", rows
    (ours, percent), (theirs, their_percent) = (
        [fisher_mean(of[name].dropna().tolist()) or 0.0 for name in ("r_nats", "r")]
        for of in (learned, random)
    )
    apart, low, high = difference_of_correlations(theirs, ours, samples)
    sentence = (
        f"mean r is {ours:.3f} for MrT5 ({counted(len(learned), 'model')}) and {theirs:.3f} for random "
        f"deletion ({len(random)}) with the increase in nats; they differ by {apart:.3f} [{low:.3f}, "
        f"{high:.3f}] in Fisher's z; in percent {percent:.3f} and {their_percent:.3f} (the paper: 0.10, 0.30)"
    )
    if (worth := found.get("source_worth_nats")) is not None:
        sentence += f"; the source is worth {worth:.2f} nats per token"
    if low <= 0 <= high:
        needed = samples_needed(theirs, ours)
        more = (
            "random's is not the larger" if needed is None else f"at these r it would take {needed:,} samples"
        )
        return None, f"{sentence}; open: {more}, and there are {samples:,}", rows
    return low > 0, sentence, rows


@_claim("Deletion costs no more with softmax1 than with softmax (our own ablation).")
def softmax1_costs_less(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """The loss that deletion adds to ByT5's, with softmax1 minus with softmax, per seed (our own ablation).

    It is decided if neither the 95 % interval over seeds nor that over test examples contains 0.
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
        return None, "both kinds of attention are needed, each with ByT5 and MrT5 of one seed", rows
    mean, seeds = gaps.mean(), interval_of_mean(gaps.tolist())
    sentence = (
        f"deletion costs {one.above_byt5.mean():+.4f} nats with softmax1 ({one.deleted.mean():.1%} deleted) "
        f"and {other.above_byt5.mean():+.4f} with softmax ({other.deleted.mean():.1%}), a difference of "
        f"{mean:+.4f} over {counted(len(gaps), 'seed')}"
    )
    if seeds is not None:
        sentence += f" [{seeds[0]:+.4f}, {seeds[1]:+.4f}]"
    halves: dict[int, list[float]] = {}
    for pair in analyses.get("softmax1", {"pairs": ()})["pairs"]:
        *_, whole = (found for found in pair["differences"] if found["measure"] == "loss")
        halves.setdefault(pair["seed"], []).append((whole["high"] - whole["low"]) / 2)
    if not halves:
        return None, f"{sentence}; {NOT_THERE}analysis softmax1, which gives its uncertainty", rows
    # Half of the 95 % interval of a difference of differences. ByT5's and MrT5's intervals are treated as
    # independent, and averaging over seeds as if it did not narrow them. They come from the same examples and
    # are likely correlated, so this is rather too wide.
    uncertain = fmean(math.hypot(*of) for of in halves.values())
    sentence += f"; the test text leaves an uncertainty of {uncertain:.4f}"
    agree = seeds is not None and (seeds[0] > 0 or seeds[1] < 0)
    if agree and abs(mean) > uncertain:
        return mean < 0, sentence, rows
    sentence += "; too close to call"
    if seeds is None:
        sentence += ", and one seed says nothing about others"
    elif not agree and (needed := values_needed(gaps.tolist())) is not None:
        sentence += f"; at this spread it would take {needed:,} seeds"
    if 0 < abs(mean) <= uncertain:  # twice the precision needs four times the text
        sentence += f"; it would take {((1 + Z_80 / Z_95) * uncertain / mean) ** 2:,.1f} times the test text"
    return None, sentence, rows


@_claim("Runtime falls with the deletion rate as the saved arithmetic predicts.")
def runtime_falls_as_predicted(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """Time of a forward pass relative to ByT5's, and the ratio of multiply-accumulates."""
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
        return None, "no model that deletes was timed together with ByT5 of the same seed", rows
    falls = bool((known.time_ratio.diff().dropna() < 0).all())
    least = known.share_of_saving.min()
    each = ", ".join(
        f"{run.time_ratio:.2f} at {run.deleted:.0%} (arithmetic {run.macs_ratio:.2f})"
        for run in known.itertuples()
    )
    sentence = f"time relative to ByT5: {each}; the smallest share of the predicted saving is {least:.0%}"
    if not falls:
        sentence += "; it does not fall with every increase of the rate"
    return falls and least >= RUNTIME_SHARE, sentence, rows


def _macs(config: Json, row: Row) -> int:
    """Of one example with the mean lengths; deleted bytes and padding cost nothing."""
    sizes, source = Sizes.of(config), round(row.known("input_length"))
    kept = round(row.known("kept_length")) if row.deletion_rate else source
    return macs(sizes, [source], [kept], [round(row.target_tokens / row.examples)])
