"""Time of a forward pass relative to the baseline: savings by deletion, and the cost of a gate's layer."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from mrt5cli.analysis.compute import relative_macs
from mrt5cli.analysis.runs import ExperimentRun, ExperimentRuns
from mrt5cli.errors import UserError
from mrt5cli.metrics.results import Json, Row, SavedEvaluation


def runtime(runs: ExperimentRuns) -> Json:
    """Each timed run: milliseconds per example, the decrease in percent, and the decrease of arithmetic.

    Runs timed on another device or with another batch size than the baseline cannot be compared; `missing`
    lists them.

    Raises:
        UserError: the baseline was not timed.
    """
    base = _timed(runs.baselines)
    if not base:
        raise UserError(
            f"the baseline {runs.baseline} was not timed",
            "evaluate it with --runtime, on an otherwise idle machine",
        )
    before, conditions = [row for _, row, _ in base], base[0][2].timed_on
    alike = [(run, row) for run, row, found in _timed(runs.trained) if found.timed_on == conditions]
    return {
        **dict(zip(("device_name", "dtype", "threads", "batch_size"), conditions, strict=True)),
        "runs": [
            {
                **run.line(),
                "deletion_rate": row.deletion_rate,
                "ms_per_example": row.known("ms_per_example"),
                "decrease_percent": time_saved(row, before),
                "macs_decrease_percent": 100 * (1 - relative_macs(run.config, row)),
            }
            for run, row in alike
        ],
        "missing": runs.missing([run for run, _ in alike]),
    }


def gate_placement(runs: ExperimentRuns) -> Json:
    """Loss, deletion rate and time of each run with a gate, by layer.

    Raises:
        UserError: no run with a gate was evaluated.
    """
    base = _timed(run for run in runs.trained if run.name == runs.baseline)
    lines: list[Json] = []
    for run in runs.trained:
        layer, found = getattr(run.recipe.model.shortener, "layer", None), run.own()
        if layer is None or found is None:
            continue
        row, evaluation = found
        alike = base and row.ms_per_example is not None and evaluation.timed_on == base[0][2].timed_on
        lines.append(
            {
                **run.line(),
                "after_layer": layer,
                "loss": row.loss,
                "bits_per_byte": row.bits_per_byte,
                "deletion_rate": row.deletion_rate,
                "ms_per_example": row.ms_per_example,
                "decrease_percent": time_saved(row, [before for _, before, _ in base]) if alike else None,
            }
        )
    if not lines:
        raise UserError(f"no run of {runs.experiment} with a gate was evaluated")
    return {"runs": sorted(lines, key=lambda line: line["after_layer"])}


def _timed(runs: Iterable[ExperimentRun]) -> list[tuple[ExperimentRun, Row, SavedEvaluation]]:
    """The runs timed on their own task."""
    return [(run, *found) for run in runs if (found := run.own("ms_per_example")) is not None]


def time_saved(row: Row, base: Sequence[Row]) -> float:
    """The decrease of a run's time relative to the baseline's mean, in percent."""
    before = statistics.fmean(one.known("ms_per_example") for one in base)
    return 100 * (1 - row.known("ms_per_example") / before)
