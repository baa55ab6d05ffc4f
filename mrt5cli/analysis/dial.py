"""Runs with a learned gate at requested deletion rates: the loss of each when its threshold is moved."""

from __future__ import annotations

from dataclasses import replace

from mrt5cli.analysis.runs import ExperimentRun, ExperimentRuns
from mrt5cli.errors import UserError
from mrt5cli.metrics.results import Json

WANTED = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)


def dial(runs: ExperimentRuns) -> Json:
    """One point per run at its own threshold (`wanted` is None), and one at each rate in `WANTED`.

    A point has the share of test positions that is deleted (`reached`, 0 to 1) and the loss in nats per
    token. The baseline has only its own point. The threshold of a delete gate is calibrated on validation
    text; a gate conditioned on its rate needs no threshold.

    Raises:
        UserError: no finished run has a gate whose threshold can be moved.
    """
    if not any(map(_moves, runs.trained)):
        raise UserError(
            f"no finished run of {runs.experiment} has a learned gate whose threshold could be moved",
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
