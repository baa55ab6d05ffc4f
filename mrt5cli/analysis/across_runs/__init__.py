"""What is found by looking at several runs of an experiment together, or at none.

An analysis is a function of a plan's experiment that returns a document, a JSON object, in a module of this
package. Modules import torch in their functions, so that the names of analyses are there at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mrt5cli.analysis.across_runs.compute import compute
from mrt5cli.analysis.across_runs.deletion_patterns import deletion_patterns
from mrt5cli.analysis.across_runs.gate_placement import gate_placement
from mrt5cli.analysis.across_runs.per_sample import per_sample
from mrt5cli.analysis.across_runs.runtime import runtime
from mrt5cli.analysis.across_runs.shared import Asked, Progress
from mrt5cli.analysis.across_runs.softmax1 import softmax1
from mrt5cli.errors import UserError
from mrt5cli.suite.jobs import Experiment, Plan

ANALYSES: Mapping[str, Callable[[Asked], dict[str, Any]]] = {
    "per_sample": per_sample,
    "compute": compute,
    "runtime": runtime,
    "deletion_patterns": deletion_patterns,
    "gate_placement": gate_placement,
    "softmax1": softmax1,
}


def run_analysis(
    name: str,
    experiment: Experiment,
    plan: Plan,
    *,
    device: Any = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The document of an analysis. Runs that are not there are left out, and named in `missing`.

    Args:
        name: one of `ANALYSES`.
        experiment: of the plan, whose runs are looked at.
        device: where models compute; by default where they are loaded, the CPU.
        progress: called with what is looked at, a part of it, and the examples done.

    Raises:
        UserError: there is no such analysis, or so little that it would say nothing.
    """
    if name not in ANALYSES:
        raise UserError(f"no analysis is called {name!r}", f"there are: {', '.join(ANALYSES)}")
    return ANALYSES[name](Asked(experiment, plan, device, progress))
