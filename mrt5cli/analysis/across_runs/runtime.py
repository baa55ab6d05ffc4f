"""Time against the baseline's, beside what the multiply-accumulates promise."""

from __future__ import annotations

import statistics
from typing import Any

from mrt5cli.analysis.across_runs.compute import relative_macs
from mrt5cli.analysis.across_runs.shared import Asked, described
from mrt5cli.errors import UserError
from mrt5cli.metrics.results import Row, SavedEvaluation
from mrt5cli.report.results import Ran


def runtime(asked: Asked) -> dict[str, Any]:
    """Each timed run: milliseconds an example, percent less than the baseline, and the promise.

    Runs that were timed on another device, or with another batch size, than the baseline are named in
    `missing`: their times say nothing beside it.

    Raises:
        UserError: the baseline was not timed.
    """
    base = timed(asked.baseline)
    if not base:
        raise UserError(
            f"{asked.experiment.baseline} was not timed, so there is nothing to compare times with",
            "evaluate it with --runtime, on an otherwise idle machine",
        )
    before = statistics.fmean(row.known("ms_per_example") for _, row, _ in base)
    under = base[0][2].timed_on
    found = timed(asked.trained)
    alike = [(ran, row) for ran, row, evaluation in found if evaluation.timed_on == under]
    there = [ran for ran, _ in alike]
    return {
        "device_name": under[0],
        "dtype": under[1],
        "threads": under[2],
        "batch_size": under[3],
        "runs": [
            {
                **described(ran),
                "deletion_rate": row.deletion_rate,
                "ms_per_example": row.ms_per_example,
                "decrease_percent": 100 * (1 - row.known("ms_per_example") / before),
                "macs_decrease_percent": 100 * (1 - relative_macs(ran, row)),
            }
            for ran, row in alike
        ],
        "missing": [f"{ran.name} seed {ran.seed}" for ran in asked.runs if ran not in there],
    }


def timed(runs: list[Ran]) -> list[tuple[Ran, Row, SavedEvaluation]]:
    """The runs that were timed on their own task, with their summary row and the evaluation it is of."""
    found = ((ran, ran.own("ms_per_example")) for ran in runs)
    return [(ran, *row) for ran, row in found if row is not None]
