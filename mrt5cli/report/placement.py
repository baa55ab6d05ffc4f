"""Which section of the report each published number stands in: one, even where experiments share runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from mrt5cli.paper.published import Published, from_analyses, published
from mrt5cli.recipe import load
from mrt5cli.recipe.loading import shipped
from mrt5cli.suite.jobs import Experiment

Placed = tuple[Published, str | None]
"""A number, and the recipe whose runs it belongs to; None where an analysis of several finds it."""

_ABOUT = {
    "runtime": "runtime",
    "gate_placement": "gate_placement",
    "per_sample": "per_sample",
    "compute_savings": "compute",
    "diagnostic_deletion_patterns": "deletion_patterns",
    "span_corruption_per_language_delta0.5": "per_language",
    "per_language_span_corruption": "per_language",
}
"""The analysis or figure that a published experiment is about; a section that has it should show it."""


def place(experiments: Sequence[Experiment]) -> dict[str, list[Placed]]:
    """The published numbers of each experiment, by its id, in the paper's order.

    A number goes to the experiment that is about it, else to the first one that evaluates its recipe, else
    to the first one that has the recipe at all. Numbers of recipes in no experiment are left out.
    """
    rows: dict[str, list[Placed]] = {experiment.id: [] for experiment in experiments}
    for number, recipe in _numbers(experiments):
        holders = [experiment for experiment in experiments if recipe in experiment.recipes]
        if recipe is None:
            holders = [one for one in experiments if one.id == from_analyses()[number.id]]
        if not holders:
            continue
        best = min(holders, key=partial(_distance, number))  # the first of the nearest
        rows[best.id].append((number, recipe))
    return rows


@cache
def _rows_of(recipe: Path) -> tuple[str, ...]:
    """The ids a recipe names; read once, since resolving a hundred recipes takes seconds."""
    paper = load(recipe).paper
    return tuple(paper.rows) if paper else ()


def _distance(number: Published, experiment: Experiment) -> tuple[bool, bool]:
    shown = (*experiment.analyses, *experiment.figures)
    return _ABOUT.get(number.experiment) not in shown, not experiment.evaluations


def _numbers(experiments: Sequence[Experiment]) -> list[Placed]:
    """Every number that one of the experiments' recipes names, once, and those of analyses."""
    files = shipped()
    of: dict[str, str | None] = {}
    for name in dict.fromkeys(name for experiment in experiments for name in experiment.recipes):
        for id_ in _rows_of(files[name]) if name in files else ():
            of.setdefault(id_, name)
    for id_ in from_analyses():
        of.setdefault(id_, None)
    return [(number, of[number.id]) for number in published().values() if number.id in of]
