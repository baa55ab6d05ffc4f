"""What the paper claims, and whether an experiment bears it out, in numbers.

A claim is a pure function of evidence: it returns a verdict, a sentence with the numbers, and the rows of a
table. It says so when a claim does not hold. Thresholds are constants with their reasons; none was chosen
after looking at a result. What was added after one: that softmax1 and softmax may be too close to call.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from mrt5cli.analysis.compute import Sizes, macs
from mrt5cli.analysis.per_sample import fisher_mean
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.metrics.catalog import WHOLE_TARGETS
from mrt5cli.recipe.shorteners import SHORTENERS
from mrt5cli.report.results import EvaluatedRun, Evidence

Line = dict[str, Any]
Finding = tuple[bool | None, str, list[Line]]

TARGET_TOLERANCE = 0.04
"""Of a deletion rate around its target: the paper's own five MrT5s end up to 3.7 points away from theirs."""

EXACT_PRECISION, EXACT_RECALL = 0.99, 0.95
"""Of a gate that deletes "exactly" a set of letters; the paper's deletes all of it, and a few others."""

EXTRAPOLATION = 0.05
"""How far beyond the highest rate of an MrT5 a baseline is still compared with it, along the last stretch."""

SOURCE_WORTH = 0.2
"""Nats a token that a model must lose without its source for a comparison of deletions to mean anything."""

RUNTIME_SHARE = 0.7
"""Of the time that the saved arithmetic would save, what must really be saved to call it as predicted."""

NOT_THERE = "not run yet: "
NO_RUNS = "no runs to judge by"


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
    rows: list[Line]


Find = Callable[[Evidence], Finding]
CLAIMS: dict[str, tuple[str, Find]] = {}
"""What the paper says, and the function that looks for it, by its name."""


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
    if not evidence.results:
        return Claim(name, statement, None, NOT_THERE + (", ".join(evidence.missing) or NO_RUNS), [])
    holds, sentence, rows = find(evidence)
    if evidence.missing:
        holds, sentence = None, f"{sentence} ({NOT_THERE}{', '.join(evidence.missing)})"
    return Claim(name, statement, holds, sentence, rows)


# --- quality against reduction ------------------------------------------------------------------------------


@_claim("At equal reduction MrT5 loses less than every baseline.")
def less_loss_at_equal_reduction(evidence: Evidence) -> Finding:
    """MrT5's losses, joined by straight lines from ByT5 on, against each baseline's at the baseline's rate.

    A straight line lies above a curve that bends upwards, as losses over rates do: where it decides, it
    decides against MrT5. Seeds are compared with the same seed. Shorteners that the paper knows
    nothing of are no part of what it claims.
    """
    gaps: dict[str, list[tuple[EvaluatedRun, float, float]]] = defaultdict(list)
    beyond = []
    baselines = {kind for section in SHORTENERS if section.baseline for kind in section.kinds()}
    for seed, results in _by_seed(evidence.results).items():
        base = [result for result in results if result.kind == "none"]
        learned = [result for result in results if result.kind == "delete_gate"]
        if not base or not learned:
            continue
        curve = sorted([(0.0, base[0].loss), *((result.rate, result.loss) for result in learned)])
        for result in results:
            if result.kind not in baselines:
                continue
            expected = _along(curve, result.rate)
            if expected is None:
                beyond.append(f"{result.name} seed {seed}")
            else:
                gaps[result.recipe].append((result, expected, base[0].loss))
    rows = [_tradeoff_row(found) for found in gaps.values()]
    if not rows:
        return None, f"no baseline can be set beside an MrT5 at its rate ({', '.join(beyond) or 'none'})", []
    worse = [row for row in rows if row["seeds_mrt5_lower"] < row["seeds"]]
    nearest = min(rows, key=lambda row: row["above_mrt5"])
    pairs = sum(row["seeds"] for row in rows)
    won = sum(row["seeds_mrt5_lower"] for row in rows)
    sentence = (
        f"at the rate of the baseline MrT5's loss is lower in {won} of {pairs} comparisons; the nearest is "
        f"{nearest['model']}, {nearest['above_mrt5']:+.3f} nats above MrT5 at {nearest['deleted']:.1%}"
    )
    if worse:
        sentence += "; not lower than " + ", ".join(
            f"{row['model']} ({row['above_mrt5']:+.3f})" for row in worse
        )
    if beyond:
        sentence += f"; not compared, beyond MrT5's rates: {', '.join(beyond)}"
    return not worse, sentence, rows


def _tradeoff_row(found: Sequence[tuple[EvaluatedRun, float, float]]) -> Line:
    """A baseline's means over seeds beside MrT5's at the same rates."""
    gaps = [result.loss - expected for result, expected, _ in found]
    return {
        "model": found[0][0].name,
        "seeds": len(found),
        "deleted": fmean(result.rate for result, _, _ in found),
        "loss": fmean(result.loss for result, _, _ in found),
        "above_byt5": fmean(result.loss - base for result, _, base in found),
        "mrt5_above_byt5": fmean(expected - base for _, expected, base in found),
        "above_mrt5": fmean(gaps),
        "above_mrt5_low": min(gaps),
        "above_mrt5_high": max(gaps),
        "seeds_mrt5_lower": sum(gap > 0 for gap in gaps),
    }


def _along(curve: Sequence[tuple[float, float]], rate: float) -> float | None:
    """The loss at a rate on a broken line of (rate, loss), in order; None too far beyond its end."""
    if rate > curve[-1][0] + EXTRAPOLATION:
        return None
    for (low, first), (high, last) in itertools.pairwise(curve):
        if rate <= high or high == curve[-1][0]:
            return first if high == low else first + (last - first) * (rate - low) / (high - low)
    return None


@_claim("The models read their source, so that deleting from it can cost something.")
def source_is_read(evidence: Evidence) -> Finding:
    """What models lose without their source: under it, no deletion costs anything and nothing is shown."""
    rows: list[Line] = [
        {
            "model": result.name,
            "seed": result.seed,
            "deleted": result.rate,
            "loss": result.loss,
            "loss_source_removed": result.total.source_removed_loss,
        }
        for result in evidence.of_kind("none")
    ]
    known = [row for row in rows if row["loss_source_removed"] is not None]
    if not known:
        return None, "no ByT5 was measured without its source", rows
    worth = [row["loss_source_removed"] - row["loss"] for row in known]
    sentence = (
        f"without its source ByT5 loses {fmean(worth):.2f} nats a token more "
        f"({fmean(row['loss'] for row in known):.3f} with it)"
    )
    return min(worth) >= SOURCE_WORTH, sentence, rows


@_claim("The controller brings the deletion rate to its target.")
def hits_targets(evidence: Evidence) -> Finding:
    """How far each controlled MrT5 ends from its target."""
    rows: list[Line] = [
        {
            "model": result.name,
            "seed": result.seed,
            "target": result.target,
            "deleted": result.rate,
            "off": result.rate - result.target,
        }
        for result in evidence.results
        if result.target is not None
    ]
    if not rows:
        return None, "no run has a target", rows
    worst = max(rows, key=lambda row: abs(row["off"]))
    hits = sum(abs(row["off"]) <= TARGET_TOLERANCE for row in rows)
    sentence = (
        f"{hits} of {len(rows)} runs end within {100 * TARGET_TOLERANCE:g} points of their target; the "
        f"farthest is {worst['model']} seed {worst['seed']}, {worst['deleted']:.1%} for {worst['target']:.0%}"
    )
    return hits == len(rows), sentence, rows


# --- what is deleted ----------------------------------------------------------------------------------------


@_claim("On diagnostic tasks the gate deletes exactly the letters not needed.")
def gate_finds_the_letters(evidence: Evidence) -> Finding:
    """Precision and recall of the gate on letters, and what deletion costs in sequences right."""
    plain = {(result.task, result.seed): result for result in evidence.of_kind("none")}
    rows: list[Line] = []
    for result in evidence.of_kind("delete_gate"):
        base = plain.get((result.task, result.seed))
        rows.append(
            {
                "task": result.task,
                "seed": result.seed,
                "deleted": result.rate,
                "precision": result.total.gate_precision,
                "recall": result.total.gate_recall,
                WHOLE_TARGETS: result.total.sequence_accuracy,
                f"byt5_{WHOLE_TARGETS}": None if base is None else base.total.sequence_accuracy,
            }
        )
    known = [row for row in rows if row["precision"] is not None and row["recall"] is not None]
    if not known:
        return None, "no gate was measured on a task with a known set of letters", rows
    exact = [row for row in known if row["precision"] >= EXACT_PRECISION and row["recall"] >= EXACT_RECALL]
    each = "; ".join(
        f"{row['task']} seed {row['seed']} precision {row['precision']:.3f}, recall {row['recall']:.3f}"
        for row in known
    )
    sentence = (
        f"{len(exact)} of {len(known)} gates delete the set (precision >= {EXACT_PRECISION:g}, recall >= "
        f"{EXACT_RECALL:g}): {each}"
    )
    return len(exact) == len(known), sentence, rows


@_claim("One multilingual MrT5 deletes at other rates in other scripts.")
def rates_differ_by_script(evidence: Evidence) -> Finding:
    """Deletion rates of one model by language, and how much of their spread lies between scripts."""
    result = next((one for one in evidence.of_kind("delete_gate") if len(one.rows) > 2), None)
    if result is None:
        return None, "no MrT5 was evaluated by language", []
    rows: list[Line] = [
        {
            "language": LANGUAGES[row.subset].name,
            "script": LANGUAGES[row.subset].script,
            "deleted": row.deletion_rate,
            "loss": row.loss,
        }
        for row in result.rows
        if row.subset in LANGUAGES
    ]
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        groups[row["script"]].append(row["deleted"])
    if len(groups) < 2:
        return None, "only one script was evaluated", rows
    means = {script: fmean(rates) for script, rates in groups.items()}
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    overall = fmean(row["deleted"] for row in rows)
    total = sum((row["deleted"] - overall) ** 2 for row in rows)
    between = sum(len(rates) * (means[script] - overall) ** 2 for script, rates in groups.items())
    share = between / total if total else 0.0
    # What shares of this size would be between groups of these sizes if script meant nothing.
    chance = (len(groups) - 1) / (len(rows) - 1)
    sentence = (
        f"from {means[low]:.1%} ({low}) to {means[high]:.1%} ({high}) deleted; scripts account for "
        f"{share:.0%} of the spread between languages, {chance:.0%} would be chance"
    )
    within = max(max(rates) - min(rates) for rates in groups.values())
    return means[high] - means[low] > within and share > chance, sentence, rows


# --- samples, softmax, time ---------------------------------------------------------------------------------


@_claim("A sample's deletion rate hardly tells how much worse MrT5 does there; with random deletion it does.")
def rate_does_not_tell_loss(evidence: Evidence) -> Finding:
    """Pearson's r of deletion rate and loss increase over samples: MrT5's against random deletion's."""
    document = evidence.analyses.get("per_sample")
    if document is None:
        return None, NOT_THERE + "analysis per_sample", []
    kinds = {result.recipe: result.kind for result in evidence.results}
    rows: list[Line] = [
        {
            "model": str(row["recipe"]).rpartition("/")[2],
            "kind": kinds.get(row["recipe"]),
            "seed": row.get("seed"),
            "samples": row["samples"],
            "r": row["r"],
            "p_value": row["p_value"],
        }
        for row in document["models"]
    ]
    learned = [row for row in rows if row["kind"] == "delete_gate" and row["r"] is not None]
    random = [row for row in rows if row["kind"] == "random" and row["r"] is not None]
    if not learned or not random:
        return None, "both MrT5 and random deletion are needed", rows
    ours, theirs = (fisher_mean([row["r"] for row in of]) or 0.0 for of in (learned, random))
    # Two means of independent z: each r over n samples has variance 1 / (n - 3).
    spread = math.sqrt(
        sum(sum(1 / (row["samples"] - 3) for row in of) / len(of) ** 2 for of in (learned, random))
    )
    apart = (math.atanh(theirs) - math.atanh(abs(ours))) / spread
    sentence = (
        f"mean r is {ours:.3f} for MrT5 ({len(learned)} models) and {theirs:.3f} for random deletion "
        f"({len(random)}), {apart:.1f} standard errors apart (the paper: 0.10 and 0.30)"
    )
    return apart > 1.96, sentence, rows


@_claim("Deletion costs no more with softmax1 than with softmax (our own ablation).")
def softmax1_costs_less(evidence: Evidence) -> Finding:
    """What deletion adds to ByT5's loss, with softmax1 and with softmax; our own ablation."""
    rows: list[Line] = []
    for softmax1 in (True, False):
        same = [result for result in evidence.results if result.softmax1 is softmax1]
        base = {result.seed: result for result in same if result.kind == "none"}
        for result in same:
            if result.kind == "delete_gate" and result.seed in base:
                rows.append(
                    {
                        "attention": "softmax1" if softmax1 else "softmax",
                        "seed": result.seed,
                        "byt5_loss": base[result.seed].loss,
                        "mrt5_loss": result.loss,
                        "deleted": result.rate,
                        "above_byt5": result.loss - base[result.seed].loss,
                    }
                )
    one = [row for row in rows if row["attention"] == "softmax1"]
    other = [row for row in rows if row["attention"] == "softmax"]
    if not one or not other:
        return None, "both attentions are needed, each with ByT5 and MrT5", rows
    ours, theirs = (fmean(row["above_byt5"] for row in of) for of in (one, other))
    rates = [fmean(row["deleted"] for row in of) for of in (one, other)]
    sentence = (
        f"deletion costs {ours:+.4f} nats with softmax1 ({rates[0]:.1%} deleted) and {theirs:+.4f} with "
        f"softmax ({rates[1]:.1%}); {len(one)} and {len(other)} runs"
    )
    uncertain = _uncertainty(evidence.analyses.get("softmax1"))
    if uncertain is None:
        return None, f"{sentence}; {NOT_THERE}analysis softmax1, which says how sure that is", rows
    if abs(ours - theirs) <= uncertain:
        return None, f"{sentence}: too close to call, the test text leaves {uncertain:.4f} open", rows
    return ours < theirs, sentence, rows


def _uncertainty(document: Mapping[str, Any] | None) -> float | None:
    """Half of the 95 % interval, nats, of a difference of differences: softmax1's minus softmax's cost.

    From the intervals of ByT5's and of MrT5's own difference as if they were independent, of test examples
    alone. The two are of the same examples and likely to go together, so this is rather too wide.
    """
    losses = [
        one
        for pair in (document or {}).get("pairs", ())
        for one in pair["differences"]
        if one["measure"] == "loss"
    ]
    if not losses:
        return None
    return math.sqrt(math.fsum(((one["high"] - one["low"]) / 2) ** 2 for one in losses))


@_claim("Runtime falls with the deletion rate, as the saved arithmetic predicts.")
def runtime_falls_as_predicted(evidence: Evidence) -> Finding:
    """Time of a forward pass over ByT5's, beside the ratio of multiply-accumulates of what is kept."""
    plain = {result.seed: result for result in evidence.of_kind("none") if _time(result) is not None}
    rows: list[Line] = []
    for result in evidence.of_kind("delete_gate", "random"):
        base, time = plain.get(result.seed), _time(result)
        if base is None or time is None or not result.config:
            continue
        measured, predicted = time / (_time(base) or math.nan), _macs(result) / _macs(base, result.config)
        rows.append(
            {
                "model": result.name,
                "seed": result.seed,
                "deleted": result.rate,
                "ms": time,
                "byt5_ms": _time(base),
                "time_ratio": measured,
                "macs_ratio": predicted,
                "share_of_saving": (1 - measured) / (1 - predicted) if predicted < 1 else None,
            }
        )
    known = sorted(
        (row for row in rows if row["share_of_saving"] is not None), key=lambda row: row["deleted"]
    )
    if not known:
        return None, "nothing that deletes was timed beside a ByT5 of its seed", rows
    falls = all(a["time_ratio"] > b["time_ratio"] for a, b in itertools.pairwise(known))
    least = min(known, key=lambda row: row["share_of_saving"])
    each = ", ".join(
        f"{row['time_ratio']:.2f} at {row['deleted']:.0%} (arithmetic {row['macs_ratio']:.2f})"
        for row in known
    )
    sentence = (
        f"time over ByT5's: {each}; the least share of the predicted saving is {least['share_of_saving']:.0%}"
    )
    if not falls:
        sentence += "; it does not fall with every rise of the rate"
    return falls and least["share_of_saving"] >= RUNTIME_SHARE, sentence, rows


def _time(result: EvaluatedRun) -> float | None:
    """Milliseconds an example, of the median batch, which another program's interference does not move."""
    return result.total.median_ms_per_example


def _macs(result: EvaluatedRun, config: Any = None) -> int:
    """Of one example of the mean lengths: what is deleted costs nothing, padding included."""
    row, config = result.total, config or result.config
    gated = str(config["feed_forward_proj"]).startswith("gated")
    sizes = Sizes.of(SimpleNamespace(**{"is_gated_act": gated, **config}))
    source = round(row.input_length or 0)
    target = round(row.target_tokens / row.examples)
    kept = source if result.kind == "none" else round(row.kept_length or 0)
    return macs(sizes, [source], [kept], [target])


# --- shared --------------------------------------------------------------------------------------------


def _by_seed(results: Sequence[EvaluatedRun]) -> dict[int, list[EvaluatedRun]]:
    groups: dict[int, list[EvaluatedRun]] = defaultdict(list)
    for result in results:
        groups[result.seed].append(result)
    return groups
