"""How delete gates learn: logits and gradients of each class of byte over steps, and how well the gate, and a
linear probe of its inputs, separate bytes that can be deleted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrt5cli.metrics.results import Json
from mrt5cli.report.figures.style import INK, Drawing, draw, legend_above, numbers
from mrt5cli.report.results import Results, short_name
from mrt5cli.report.tables import MISSING, Table, in_powers, interval, number
from mrt5cli.report.verdicts import Compared

CLASSES = {"needed": "#0072B2", "not_needed": "#D55E00", "markers": "#8a8a8a"}
STATES = {"open": "-", "closed": "--"}
"""States of gates, and the line styles of their gradients."""
ENDS = ("low", "median", "high")
JUDGES = {"gate": "-", "probe": ":"}
PANELS = ("logit", "gradient (nats)", "ROC area")
ROW, ABOVE = 1.8, 0.8
"""Height of a recipe's panels and of legend and labels, in inches."""


def gate_training(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    """One drawing per task, one row per recipe, with its seeds overlaid."""
    tasks: dict[str, dict[str, list[Json]]] = {}
    for model in results.analyses.get("gate_training", {"models": ()})["models"]:
        tasks.setdefault(model["task"], {}).setdefault(model["recipe"], []).append(model)
    return [_of_task(task, recipes, f"{name}-{task}") for task, recipes in tasks.items()]


def _of_task(task: str, recipes: Mapping[str, Sequence[Json]], name: str) -> Drawing:
    models = [model for of in recipes.values() for model in of]

    def paint(figure: Figure, *grid: Axes) -> None:
        for place, (recipe, of) in enumerate(recipes.items()):
            row = grid[len(PANELS) * place :][: len(PANELS)]
            for model in of:
                _paint(row, model["checkpoints"])
            for axes, label in zip(row, PANELS, strict=True):
                axes.set_ylabel(label)
            row[0].axhline(0, color=INK, linewidth=0.6)
            row[0].set_title(short_name(recipe), fontsize=8.5, loc="left")
            row[1].set_yscale("log")
            # The default labels are mathtext, which these figures avoid.
            row[1].yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}"))
            row[1].minorticks_off()
            row[2].set_ylim(top=1.03)
        for axes in grid[-len(PANELS) :]:
            axes.set_xlabel("step")
        legend_above(figure)

    seeds = " Seeds are overlaid." if len(models) > len(recipes) else ""
    caption = (
        f"{task}, {models[0]['examples']:,} test strings, soft gates: the gate's logits (median and 10 to "
        "90 % of each class; a gate is closed at 0 and below); the mean size of the gradient of a string's "
        "cross-entropy with respect to the logit; and how well the logits, and a logistic regression on the "
        f"gate's inputs, separate bytes that can be deleted.{seeds}"
    )
    return draw(
        paint, name, caption, _numbers(models),
        height=ABOVE + ROW * len(recipes), nrows=len(recipes), ncols=len(PANELS), sharey="col",
        narrow={"nrows": len(recipes) * len(PANELS)}, row=ROW,
    )  # fmt: skip


def _paint(row: Sequence[Axes], checkpoints: Sequence[Json]) -> None:
    """Paint the lines of one run, with gaps where values are missing."""
    steps = [one["step"] for one in checkpoints]
    logits, gradients, areas = row
    mark: dict[str, Any] = {"marker": ".", "markersize": 3.5, "linewidth": 1.1}
    for kind, colour in CLASSES.items():
        unknown = dict.fromkeys(ENDS, math.nan)
        low, median, high = ([(one["logits"][kind] or unknown)[end] for one in checkpoints] for end in ENDS)
        logits.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        logits.plot(steps, median, color=colour, label=kind.replace("_", " "), **mark)
        for state, line in STATES.items():
            # A gradient of exactly 0 has no position on a logarithmic axis.
            size = [one["gradients"][kind][state] or math.nan for one in checkpoints]
            gradients.plot(steps, size, line, color=colour, **mark)
            gradients.plot([], [], line, color=INK, label=f"gate {state}")
    for judge, line in JUDGES.items():
        area = [math.nan if (of := one[f"{judge}_auc"]) is None else of for one in checkpoints]
        areas.plot(steps, area, line, color="#009E73", label=f"area of the {judge}", **mark)


def _numbers(models: Sequence[Json]) -> Table:
    headers = ["model", "seed", "step"]
    for kind in CLASSES:
        words = kind.replace("_", " ")
        headers += [f"{words}: logit [10, 90 %]", *(f"{words}: gradient, {state}" for state in STATES)]
    every = [one["gradients"] for model in models for one in model["checkpoints"]]
    powers = {
        (kind, state): in_powers(one[kind][state] for one in every) for kind in CLASSES for state in STATES
    }
    rows = []
    for model in models:
        for one in model["checkpoints"]:
            cells = [model["recipe"], str(model["seed"]), f"{one['step']:,}"]
            for kind in CLASSES:
                of = one["logits"][kind]
                ends = None if of is None else (of["low"], of["high"])
                cells.append(MISSING if of is None else number(of["median"], 1) + interval(ends, 1))
                cells += [number(one["gradients"][kind][state], 4, powers[kind, state]) for state in STATES]
            cells += [number(one[f"{judge}_auc"], 3) for judge in JUDGES]
            rows.append(tuple(cells))
    return numbers((*headers, *(f"{judge}: ROC area" for judge in JUDGES)), rows, words=2)
