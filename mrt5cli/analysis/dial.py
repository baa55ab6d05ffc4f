"""Runs with a learned gate at other rates than their own: what each has lost where its threshold is moved."""

from __future__ import annotations

from dataclasses import replace

from mrt5cli.analysis.runs import ExperimentRun, ExperimentRuns
from mrt5cli.errors import UserError
from mrt5cli.metrics.results import Json

WANTED = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)


def dial(runs: ExperimentRuns) -> Json:
    """Of each run a point at its own threshold, whose `wanted` is None, and one at each of `WANTED`: the
    share of test positions `reached`, 0 to 1, and the loss there in nats a token. The baseline has its own
    alone.

    The threshold of a delete gate is found on validation text; a gate that is told its rate needs none.

    Raises:
        UserError: no finished run has a gate whose threshold can be moved.
    """
    if not any(map(_moves, runs.trained)):
        raise UserError(
            f"no finished run of {runs.experiment} has a learned gate, whose threshold could be moved",
            "train one with model.shortener.kind: delete_gate or quantile_gate",
        )
    looked_at = [run for run in runs.trained if _moves(run) or run.name == runs.baseline]
    return {"points": [point for run in looked_at for point in _points(runs, run)]}


def _moves(run: ExperimentRun) -> bool:
    shortener = run.recipe.model.shortener
    return shortener.gates and shortener.refuses_threshold is None


def _points(runs: ExperimentRuns, run: ExperimentRun) -> list[Json]:
    from mrt5cli.evaluation.compare import compare
    from mrt5cli.evaluation.options import EvaluationOptions

    options = replace(
        EvaluationOptions.of(run.recipe.evaluation),
        hard_delete=True,
        deletion_rates=WANTED if _moves(run) else (),
        source_removed=False,
        measures=(),
    )
    found = compare(
        [run.subject()], run.recipe.task, options, device=runs.device, progress=runs.progress
    ).results
    said = {"kind": run.recipe.model.shortener.kind, "target": run.recipe.target_deletion_rate}
    return [
        {
            **run.line(),
            **said,
            "wanted": None if one.calibration is None else one.calibration.rate,
            "reached": one.summary.deletion_rate or 0.0,
            "loss": one.summary.loss,
        }
        for one in found
    ]
