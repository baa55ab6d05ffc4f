"""Loss, deletion and time against the layer that the gate follows."""

from __future__ import annotations

import statistics
from typing import Any

from mrt5cli.analysis.across_runs.runtime import timed
from mrt5cli.analysis.across_runs.shared import Asked, described
from mrt5cli.errors import UserError


def gate_placement(asked: Asked) -> dict[str, Any]:
    """A line each run that has a gate, by layer; times only where the baseline was timed alike.

    Raises:
        UserError: no run was evaluated.
    """
    base = timed([ran for ran in asked.trained if ran.name == asked.experiment.baseline])
    before = statistics.fmean(row.known("ms_per_example") for _, row, _ in base) if base else None
    lines = []
    for ran in asked.trained:
        layer = getattr(ran.recipe.model.shortener, "layer", None)
        found = ran.own()
        if layer is None or found is None:
            continue
        row, evaluation = found
        ms = row.ms_per_example
        alike = bool(base) and ms is not None and evaluation.timed_on == base[0][2].timed_on
        lines.append(
            {
                **described(ran),
                "after_layer": layer,
                "loss": row.loss,
                "bits_per_byte": row.bits_per_byte,
                "deletion_rate": row.deletion_rate,
                "ms_per_example": ms,
                "decrease_percent": 100 * (1 - ms / before) if alike and before and ms is not None else None,
            }
        )
    if not lines:
        raise UserError(f"no run of {asked.experiment.id} with a gate was evaluated")
    return {"runs": sorted(lines, key=lambda line: line["after_layer"]), "missing": asked.missing}
