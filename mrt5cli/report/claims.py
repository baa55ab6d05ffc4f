"""What the paper claims, and whether an experiment bears it out, in numbers.

A claim is a pure function of evidence: it returns a verdict, a sentence with the numbers, and the rows of a
table. It says so when a claim does not hold. Thresholds are constants with their reasons; none was chosen
after looking at a result. What was added after one: that softmax1 and softmax may be too close to call.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mrt5cli.analysis.compute import Sizes, macs
from mrt5cli.analysis.per_sample import fisher_mean
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.metrics import Z_95
from mrt5cli.metrics.catalog import WHOLE_TARGETS
from mrt5cli.metrics.results import Json, Row
from mrt5cli.metrics.student_t import interval_of_mean
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

EXTRAPOLATION = 0.05
"""How far beyond the rates of MrT5s another model is still compared with them, along the nearest stretch."""

SOURCE_WORTH = 0.2
"""Nats a token that a model must lose without its source for a comparison of deletions to mean anything."""

RUNTIME_SHARE = 0.7
"""Of the time that the saved arithmetic would save, what must really be saved to call it as predicted."""

NOT_THERE = "not run yet: "


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
        holds, sentence = None, f"{sentence} ({NOT_THERE}{missing})"
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
    the one `reached` (0 to 1), and the loss `above_byt5` of the same seed, in nats a token.

    The threshold that is moved is that of the MrT5 whose target is nearest to a half: the middle of the dial,
    from where the way to either end is as long. What it is at its own threshold has no `wanted`.
    """
    found = pd.DataFrame(points).astype({"wanted": float, "target": float})
    byt5 = found[found.kind == "none"].drop_duplicates("seed").set_index("seed").loss
    found["above_byt5"] = found.loss - found.seed.map(byt5)
    gates = found[(found.kind == "delete_gate") & found.target.notna()]
    each = gates[gates.wanted.isna()]
    middle = each.recipe[(each.target - 0.5).abs().sort_values().index[:1]]
    told = found[(found.kind == "quantile_gate") & found.wanted.notna()]
    lines = {ONE_EACH: each.assign(wanted=each.target), MOVED: gates[gates.recipe.isin(middle)], TOLD: told}
    whole = pd.concat([of.assign(line=line) for line, of in lines.items()], ignore_index=True)
    return whole.dropna(subset="above_byt5")


@_claim(
    "One MrT5 that is told its rate is as good as one trained for each rate, and better than one whose "
    "threshold is moved (beyond the paper)."
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
        line = {"wanted": wanted, "seeds": len(of), **of[["reached", "above_byt5"]].mean()}
        for gap in gaps:
            low, high = interval_of_mean(of[gap].tolist()) or (math.nan, math.nan)
            line |= {gap: of[gap].mean(skipna=False), f"{gap}_low": low, f"{gap}_high": high}
        misses = {f"{name}_misses_by_points": points.get(wanted) for name, points in missed.items()}
        found.append(line | misses)
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


# --- what is deleted ----------------------------------------------------------------------------------------


@_claim("On diagnostic tasks the gate deletes exactly the letters not needed.")
def gate_finds_the_letters(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """Precision and recall of the gate on letters, and what deletion costs in sequences right."""
    names = {"gate_precision": "precision", "gate_recall": "recall"}
    shown = ["task", "seed", "deleted", "precision", "recall", WHOLE_TARGETS]
    rows = runs[runs.kind == "delete_gate"].rename(columns=names)[shown]
    plain = runs[runs.kind == "none"].drop_duplicates(["task", "seed"], keep="last")
    plain = plain.rename(columns={WHOLE_TARGETS: f"byt5_{WHOLE_TARGETS}"})
    rows = rows.merge(plain[["task", "seed", f"byt5_{WHOLE_TARGETS}"]], how="left", on=["task", "seed"])
    known = rows.dropna(subset=["precision", "recall"])
    if known.empty:
        return None, "no gate was measured on a task with a known set of letters", rows
    exact = ((known.precision >= EXACT_PRECISION) & (known.recall >= EXACT_RECALL)).sum()
    each = "; ".join(
        f"{row.task} seed {row.seed} precision {row.precision:.3f}, recall {row.recall:.3f}"
        for row in known.itertuples()
    )
    sentence = (
        f"{exact} of {len(known)} gates delete the set (precision >= {EXACT_PRECISION:g}, recall >= "
        f"{EXACT_RECALL:g}): {each}"
    )
    return exact == len(known), sentence, rows


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
    """Pearson's r of deletion rate and loss increase over samples: MrT5's against random deletion's."""
    if "per_sample" not in analyses:
        return None, NOT_THERE + "analysis per_sample", NOTHING
    found = pd.DataFrame(analyses["per_sample"]["models"]).astype({"r": float})
    kinds = runs.drop_duplicates("recipe").set_index("recipe").kind
    rows = found.assign(model=found.recipe.map(short_name), kind=found.recipe.map(kinds))
    rows = rows[["model", "kind", "seed", "samples", "r", "p_value"]]
    learned, random = (rows[(rows.kind == kind) & rows.r.notna()] for kind in ("delete_gate", "random"))
    if learned.empty or random.empty:
        return None, "both MrT5 and random deletion are needed", rows
    ours, theirs = (fisher_mean(of.r.tolist()) or 0.0 for of in (learned, random))
    # Two means of independent z: each r over n samples has variance 1 / (n - 3).
    spread = math.sqrt(sum((1 / (of.samples - 3)).sum() / len(of) ** 2 for of in (learned, random)))
    apart = (math.atanh(theirs) - math.atanh(abs(ours))) / spread
    sentence = (
        f"mean r is {ours:.3f} for MrT5 ({len(learned)} models) and {theirs:.3f} for random deletion "
        f"({len(random)}), {apart:.1f} standard errors apart (the paper: 0.10 and 0.30)"
    )
    return apart > Z_95, sentence, rows


@_claim("Deletion costs no more with softmax1 than with softmax (our own ablation).")
def softmax1_costs_less(runs: pd.DataFrame, analyses: Analyses) -> Finding:
    """What deletion adds to ByT5's loss, with softmax1 and with softmax; our own ablation."""
    plain = runs[runs.kind == "none"].drop_duplicates(["softmax1", "seed"], keep="last")
    rows = runs[runs.kind == "delete_gate"].sort_values("softmax1", ascending=False, kind="stable")
    rows = rows.assign(attention=rows.softmax1.map({True: "softmax1", False: "softmax"}), mrt5_loss=rows.loss)
    rows = rows.merge(
        plain[["softmax1", "seed", "loss"]].rename(columns={"loss": "byt5_loss"}), on=["softmax1", "seed"]
    )
    rows["above_byt5"] = rows.mrt5_loss - rows.byt5_loss
    rows = rows[["attention", "seed", "byt5_loss", "mrt5_loss", "deleted", "above_byt5"]]
    one, other = (rows[rows.attention == name] for name in ("softmax1", "softmax"))
    if one.empty or other.empty:
        return None, "both attentions are needed, each with ByT5 and MrT5", rows
    ours, theirs = one.above_byt5.mean(), other.above_byt5.mean()
    sentence = (
        f"deletion costs {ours:+.4f} nats with softmax1 ({one.deleted.mean():.1%} deleted) and {theirs:+.4f} "
        f"with softmax ({other.deleted.mean():.1%}); {len(one)} and {len(other)} runs"
    )
    losses = [
        found
        for pair in analyses.get("softmax1", {"pairs": ()})["pairs"]
        for found in pair["differences"]
        if found["measure"] == "loss"
    ]
    if not losses:
        return None, f"{sentence}; {NOT_THERE}analysis softmax1, which says how sure that is", rows
    # Half of the 95 % interval of a difference of differences, from the intervals of ByT5's and of MrT5's own
    # as if they were independent. They are of the same examples and likely to go together: rather too wide.
    uncertain = math.hypot(*((found["high"] - found["low"]) / 2 for found in losses))
    if abs(ours - theirs) <= uncertain:
        return None, f"{sentence}: too close to call, the test text leaves {uncertain:.4f} open", rows
    return ours < theirs, sentence, rows


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
