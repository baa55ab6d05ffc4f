"""The report section of each published number: exactly one, even if experiments share runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from mrt5cli.paper.published import Published, from_analyses, published
from mrt5cli.recipe import load
from mrt5cli.recipe.loading import shipped
from mrt5cli.suite.jobs import Experiment

Placed = tuple[Published, str | None]
"""A published number and the recipe whose runs it belongs to; None for a number of several runs."""

_ABOUT = {
    "runtime": "runtime",
    "gate_placement": "gate_placement",
    "per_sample": "per_sample",
    "compute_savings": "compute",
    "diagnostic_deletion_patterns": "deletion_patterns",
    "span_corruption_per_language_delta0.5": "per_language",
    "per_language_span_corruption": "per_language",
}
"""The analysis or figure of each published experiment; a section with it shows the number, if one exists."""


def place(experiments: Sequence[Experiment]) -> dict[str, list[Placed]]:
    """The published numbers of each experiment, by its id, in the paper's order.

    A number belongs to the experiment that is about it, else to the first that evaluates its recipe, else to
    the first that lists the recipe. Numbers of recipes in no experiment are omitted.
    """
    recipe_of: dict[str, str] = {}
    for name in dict.fromkeys(name for experiment in experiments for name in experiment.recipes):
        for id_ in _rows_of(name):
            recipe_of.setdefault(id_, name)
    rows: dict[str, list[Placed]] = {experiment.id: [] for experiment in experiments}
    for number in published().values():
        recipe, analysed = recipe_of.get(number.id), from_analyses().get(number.id)
        holders = [
            one for one in experiments if (one.id == analysed if recipe is None else recipe in one.recipes)
        ]
        if holders:
            about = _ABOUT.get(number.experiment)
            best = min(
                holders,
                key=lambda one: (about not in (*one.analyses, *one.figures), not one.evaluations),
            )
            rows[best.id].append((number, recipe))
    return rows


@cache
def _rows_of(recipe: str) -> tuple[str, ...]:
    """The ids in a shipped recipe; cached, because resolving a hundred recipes takes seconds."""
    path = shipped().get(recipe)
    paper = load(path).paper if path else None
    return tuple(paper.rows) if paper else ()
