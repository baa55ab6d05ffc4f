"""Figures in matplotlib, an optional dependency: import this package only where it is installed.

A figure is a function of an experiment's results and comparisons; `style` defines the common look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mrt5cli.errors import UserError
from mrt5cli.report.figures.against_reduction import gate_placement, loss_against_reduction, macs, runtime
from mrt5cli.report.figures.any_rate import any_rate
from mrt5cli.report.figures.deletion_patterns import deletion_patterns
from mrt5cli.report.figures.gate_training import gate_training
from mrt5cli.report.figures.per_language import per_language
from mrt5cli.report.figures.per_sample import per_sample
from mrt5cli.report.figures.settling import settling
from mrt5cli.report.figures.style import Drawing
from mrt5cli.report.results import Results
from mrt5cli.report.verdicts import Compared

FIGURES: Mapping[str, Callable[[Results, Sequence[Compared], str], list[Drawing]]] = {
    figure.__name__: figure
    for figure in (
        loss_against_reduction,
        per_language,
        gate_placement,
        macs,
        per_sample,
        deletion_patterns,
        gate_training,
        runtime,
        settling,
        any_rate,
    )
}


def draw(name: str, results: Results, compared: Sequence[Compared]) -> list[Drawing]:
    """The drawings of a figure in `FIGURES`; empty if there is nothing to draw yet.

    Raises:
        UserError: no figure has that name.
    """
    if name not in FIGURES:
        raise UserError(f"no figure is named {name!r}", f"choose from {', '.join(FIGURES)}")
    return FIGURES[name](results, compared, f"{results.experiment.id}-{name}")
