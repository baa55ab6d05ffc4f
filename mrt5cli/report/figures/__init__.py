"""Figures, drawn with matplotlib, which is an extra: this package is imported only where it is installed.

A figure is a function of an experiment's results and its compared numbers: it gathers what is to be drawn,
and the function beside it draws plain numbers. `style` is the one look of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mrt5cli.errors import UserError
from mrt5cli.report.figures import against_reduction, deletion_patterns, per_language, per_sample
from mrt5cli.report.figures.style import Drawing
from mrt5cli.report.results import Results
from mrt5cli.report.verdicts import Compared

FIGURES: Mapping[str, Callable[[Results, Sequence[Compared], str], list[Drawing]]] = {
    "loss_against_reduction": against_reduction.loss_figure,
    "per_language": per_language.figures,
    "gate_placement": against_reduction.gate_figure,
    "macs": against_reduction.macs_figure,
    "per_sample": per_sample.figures,
    "deletion_patterns": deletion_patterns.figures,
    "runtime": against_reduction.runtime_figure,
}


def draw(name: str, results: Results, compared: Sequence[Compared]) -> list[Drawing]:
    """The drawings of one of `FIGURES` from an experiment's results; none where there is nothing to draw yet.

    Raises:
        UserError: there is no such figure.
    """
    if name not in FIGURES:
        raise UserError(f"no figure is called {name!r}", f"there are: {', '.join(FIGURES)}")
    return FIGURES[name](results, compared, f"{results.experiment.id}-{name}")
