"""Analyses of several runs of an experiment together, or of none, by name.

An analysis is a function of an experiment's runs that returns a document, a JSON object. Modules import torch
inside functions, so that listing the analyses is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mrt5cli.analysis.compute import compute
from mrt5cli.analysis.deletion_patterns import deletion_patterns
from mrt5cli.analysis.dial import dial
from mrt5cli.analysis.gate_training import gate_training
from mrt5cli.analysis.per_sample import per_sample
from mrt5cli.analysis.runs import ExperimentRuns
from mrt5cli.analysis.runtime import gate_placement, runtime
from mrt5cli.analysis.settling import settling
from mrt5cli.analysis.softmax1 import softmax1
from mrt5cli.errors import UserError
from mrt5cli.metrics.results import Json

ANALYSES: Mapping[str, Callable[[ExperimentRuns], Json]] = {
    "per_sample": per_sample,
    "compute": compute,
    "runtime": runtime,
    "deletion_patterns": deletion_patterns,
    "gate_training": gate_training,
    "gate_placement": gate_placement,
    "softmax1": softmax1,
    "settling": settling,
    "dial": dial,
}
COMPARING = {"per_sample", "runtime"}
"""Analyses that compare with the baseline of the experiment."""


def run_analysis(name: str, runs: ExperimentRuns) -> Json:
    """The document of an analysis in `ANALYSES`; its `missing` lists the runs that it does not cover.

    Raises:
        UserError: no analysis has that name, or there is too little data for it.
    """
    if name not in ANALYSES:
        raise UserError(f"no analysis is named {name!r}", f"choose from {', '.join(ANALYSES)}")
    document = ANALYSES[name](runs)
    return document | {"missing": document.get("missing", runs.missing())}
