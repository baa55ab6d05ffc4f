"""How fast, how far beside and how steadily a deletion rate comes to its target while a model trains.

All is read off the lines of metrics, each of which is a mean since the line before; nothing is computed by a
model. Points are percent of the bytes, as in "2 points off": 48 % for 50 %.
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
"""Steps of the running mean. The rate of one step of the miniature, over 2,048 bytes of which half go, varies
by 1.1 points with the text alone if batches mix documents; of 20 steps by 0.25, which leaves room in a band
of 1 point."""
WITHIN = 1.0
"""Points around the target that a rate is to come to."""
WIDER = 2.0
"""Points of the second band."""
HELD = 0.1
"""The last part of a run in which a rate must have stayed, or a swing that passes by would have settled."""
QUARTER = 0.25
"""The last part of a run, over which the spread is taken."""

Floats = NDArray[np.float64]


def settling(runs: ExperimentRuns) -> Json:
    """Each run that has a target: its curve, what `settled` finds in that, and its miss on test text.

    Lines have `law`, the kind of the controller, or of a shortener that aims at a rate by itself; `start`,
    what its gate deletes before the first step; `missed_on_test`, how many points the finished model's rate
    on test text is above the target, and `loss` there, both None where it was not evaluated. A law sees
    training text alone: `missed` tells how well it steers, `missed_on_test` also how the two texts differ.

    Raises:
        UserError: no run with a target has logged its deletion rate to the end.
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
            "train them first; a target is controller.target_deletion_rate, or a gate's own rate",
        )
    missing = [run.title for run, *_ in wanted if run not in found]
    return {"window": WINDOW, "within": WITHIN, "wider": WIDER, "runs": lines, "missing": missing}


def _whole(rows: Sequence[Json], recipe: Recipe) -> bool:
    """Whether lines go to the end: where the last ones were lost, a swing can look like a settled rate."""
    return bool(rows[-1]["step"] > recipe.training.max_steps - recipe.training.logging_steps)


def settled(steps: ArrayLike, rates: ArrayLike, target: float) -> Json:
    """How a rate came to its target. All but the spread is of its running mean over `WINDOW` steps.

    Args:
        steps: (lines,) at least one, rising.
        rates: (lines,) fractions, each the mean since the step before.
        target: fraction.

    Returns:
        `settled` and `settled_wider`: the first step from which on it is within `WITHIN`, or `WIDER`, points
        of the target to the end, or None if that is for less than `HELD` of the run. `missed`: points that
        it ends above the target. `overshoot`: points it was away at most, on either side, once it had come
        within `WITHIN` or past the target; None if it never had. `spread`: standard deviation of the lines of
        the last quarter, points.
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
    """(lines,) the mean rate of as many lines as cover `WINDOW` steps, as far as there are any."""
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
    """What steers the rate, and to what; None where nothing does."""
    if recipe.target_deletion_rate is not None:
        return recipe.controller.kind, recipe.target_deletion_rate
    gate = recipe.model.shortener
    rate = gate.share_deleted(None) if gate.gates and gate.has_weights else 0.0
    return (gate.kind, rate) if rate else None


def _start(recipe: Recipe) -> str:
    """What a fresh gate deletes, by its bias; "any" where it has none to set."""
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
