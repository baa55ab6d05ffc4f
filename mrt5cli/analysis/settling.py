"""How fast, how accurately and how steadily a deletion rate reaches its target during training.

Everything is read from the lines of metrics, each a mean since the previous line; no model runs. Points are
percentage points of bytes: 48 % is 2 points off 50 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrt5cli.analysis.runs import ExperimentRun, ExperimentRuns
from mrt5cli.errors import UserError
from mrt5cli.metrics.results import Json
from mrt5cli.recipe import Recipe

WINDOW = 20
"""Steps of the running mean. In the miniature, the rate of one step (2,048 bytes, half of them deleted)
varies by 1.1 points with the text alone if batches mix documents; the mean of 20 steps varies by 0.25, well
within a band of 1 point."""
WITHIN = 1.0
"""Half-width of the first band around the target, in points."""
WIDER = 2.0
"""Half-width of the second band, in points."""
HELD = 0.1
"""Final fraction of a run that a settled rate must cover, so that a passing swing does not count."""
QUARTER = 0.25
"""Final fraction of a run over which the spread is measured."""

Floats = NDArray[np.float64]


def settling(runs: ExperimentRuns) -> Json:
    """Each run with a target: its curve, the measures of `settled`, and its distance on test text.

    A line has `law`, the kind of the controller or of a shortener with a built-in rate; `start`, what its
    gate deletes before the first step; `missed_on_test`, the finished model's rate on test text minus the
    target, in points; and `loss` there. Both are None without an evaluation. Controllers see only training
    text, so `missed` measures the controller and `missed_on_test` also the difference between the texts.

    Raises:
        UserError: no run with a target logged its deletion rate to the end.
    """
    lines, found = [], []
    wanted = [(run, *aimed) for run in runs.runs if (aimed := _aim(run.recipe)) is not None]
    for run, law, target in wanted:
        rows = [row for row in run.run.metrics() if row.get("deletion_rate") is not None]
        if run in runs.trained and rows and _whole(rows, run.recipe):
            found.append(run)
            said = {"law": law, "start": _start(run.recipe), "target": target}
            curve = {key: [row[key] for row in rows] for key in ("step", "deletion_rate")}
            measured = settled(curve["step"], curve["deletion_rate"], target)
            lines.append({**run.line(), **said, **measured, **_on_test(run, target), "curve": curve})
    if not lines:
        raise UserError(
            f"no run of {runs.experiment} with a target has logged its deletion rate to its last step",
            "train one first, with controller.target_deletion_rate or a gate that has a rate",
        )
    missing = [run.title for run, *_ in wanted if run not in found]
    return {"window": WINDOW, "within": WITHIN, "wider": WIDER, "runs": lines, "missing": missing}


def _whole(rows: Sequence[Json], recipe: Recipe) -> bool:
    """Whether the log is complete: without its last lines, a swing can look like a settled rate."""
    return bool(rows[-1]["step"] > recipe.training.max_steps - recipe.training.logging_steps)


def settled(steps: ArrayLike, rates: ArrayLike, target: float) -> Json:
    """Measure how a rate reached its target; all but the spread use the mean over `WINDOW` steps.

    Args:
        steps: (lines,) increasing steps, at least one.
        rates: (lines,) deletion rates (0 to 1), each the mean since the previous line.
        target: target deletion rate (0 to 1).

    Returns:
        `settled` and `settled_wider`: the first step from which the rate stays within `WITHIN` or `WIDER`
        points of the target, or None if that covers less than `HELD` of the run. `missed`: final rate minus
        target, in points. `overshoot`: largest distance in points, on either side, after the rate first came
        within `WITHIN` or crossed the target; None if it never did. `spread`: standard deviation of the lines
        of the last quarter, in points.
    """
    at, each = np.asarray(steps, float), np.asarray(rates, float)
    off = 100 * (running_mean(at, each) - target)
    reached = np.flatnonzero(np.sign(off[0]) * off <= WITHIN)
    return {
        "settled": _last_entry(at, off, WITHIN),
        "settled_wider": _last_entry(at, off, WIDER),
        "missed": float(off[-1]),
        "overshoot": float(np.abs(off[reached[0] :]).max()) if reached.size else None,
        "spread": float(100 * each[at > (1 - QUARTER) * at[-1]].std()),
    }


def running_mean(steps: Floats, rates: Floats) -> Floats:
    """(lines,) the mean rate over the last `WINDOW` steps, or over fewer at the start."""
    ends = np.append(0.0, steps)
    total = np.append(0.0, np.cumsum(rates * np.diff(ends)))
    first = np.maximum(0, np.searchsorted(ends, steps - WINDOW, side="right") - 1)
    return np.asarray((total[1:] - total[first]) / (steps - ends[first]))


def _last_entry(steps: Floats, off: Floats, within: float) -> int | None:
    outside = np.flatnonzero(np.abs(off) > within)
    first = outside[-1] + 1 if outside.size else 0
    held = first < len(steps) and (first == 0 or steps[first] <= (1 - HELD) * steps[-1])
    return int(steps[first]) if held else None


def _aim(recipe: Recipe) -> tuple[str, float] | None:
    """The kind of controller or gate that steers the rate, and its target; None without one."""
    if recipe.target_deletion_rate is not None:
        return recipe.controller.kind, recipe.target_deletion_rate
    gate = recipe.model.shortener
    rate = gate.share_deleted(None) if gate.gates and gate.has_weights else 0.0
    return (gate.kind, rate) if rate else None


def _start(recipe: Recipe) -> str:
    """What a fresh gate deletes according to its bias; "any" for a gate without a bias."""
    bias: float | None = getattr(recipe.model.shortener, "bias_init", None)
    if bias is None:
        return "any"
    return "open" if bias > 0 else "closed" if bias < 0 else "half"


def _on_test(run: ExperimentRun, target: float) -> dict[str, Any]:
    own = run.own()
    if own is None:
        return {"missed_on_test": None, "loss": None}
    row = own[0]
    return {"missed_on_test": 100 * ((row.deletion_rate or 0.0) - target), "loss": row.loss}
