"""Each sample's loss increase against its deletion rate, one panel per model, with Pearson's r."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mrt5cli.metrics.results import Json
from mrt5cli.report.figures.style import INK, Drawing, draw, look_of, numbers
from mrt5cli.report.results import Results, short_name
from mrt5cli.report.tables import number
from mrt5cli.report.verdicts import Compared

COLUMNS = 5
DOTS = 1_000
"""Largest number of dots per panel: more of them blur together and take megabytes."""


def per_sample(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    """One or more rows per family of models, with shared axes so that panels can be compared."""
    document = results.analyses.get("per_sample", {"models": []})
    families: dict[str, list[Json]] = {}
    for model in document["models"]:
        families.setdefault(model["family"], []).append(model)
    if not families:
        return []
    known = {one.recipe: one.value for one in compared if one.row.metric == "pearson_r"}
    # Percent where the paper has numbers; otherwise nats, which also suit a model that solves its task.
    # Documents of older versions have no nats.
    nats = not known and "r_nats" in document["models"][0]
    unit, r, rise = ("nats", "r_nats", "loss_increase_nats") if nats else ("%", "r", "loss_increase_percent")
    seeds = len({model["seed"] for model in document["models"]}) > 1 and bool(results.experiment.seeds)
    columns = min(COLUMNS, max(map(len, families.values())))
    lines = [of[start : start + columns] for of in families.values() for start in range(0, len(of), columns)]

    def paint(figure: Figure, *grid: Axes) -> None:
        panels = [model for line in lines for model in (*line, *[None] * (columns - len(line)))]
        for axes, model in zip(grid, panels, strict=True):
            axes.set_visible(model is not None)
            if model is None:
                continue
            # Two lines, because a panel is hardly wider than a recipe's name.
            title = short_name(model["recipe"]) + (f"\nseed {model['seed']}" if seeds else "")
            title += ", r = " if seeds else "\nr = "
            title += "none" if model[r] is None else number(model[r], 2)
            if model["recipe"] in known:
                title += f"\npublished {number(known[model['recipe']], 2)}"
            axes.set_title(title, fontsize=7.5)
            _panel(axes, model["family"], np.array([model["deleted_percent"], model[rise]], float))
        for above, model in zip(grid[-2 * columns : -columns], panels[-columns:], strict=False):
            if model is None:  # the panel above an empty place has the tick labels
                above.tick_params(labelbottom=True)
        figure.supxlabel("deleted from the sample (%)", fontsize=9)
        figure.supylabel(f"loss increase over ByT5 ({unit})", fontsize=9)

    few = f"; {DOTS:,} evenly spaced samples are drawn" if document["samples"] > DOTS else ""
    caption = (
        f"{document['samples']:,} samples, batch size 1: each sample's loss increase over ByT5 against the "
        f"share deleted from it, with the least-squares line{few}."
    )
    shown = [
        (model["recipe"], str(model["seed"]), number(model[r], 3), number(known.get(model["recipe"]), 3))
        for model in document["models"]
    ]
    return [
        draw(
            paint, name, caption, numbers(("model", "seed", "r", "published"), shown, words=2),
            width=max(3.6, 1.44 * columns), height=0.5 + 1.55 * len(lines),
            nrows=len(lines), ncols=columns, sharex=True, sharey=True,
        )
    ]  # fmt: skip


def _panel(axes: Axes, family: str, points: NDArray[np.float64]) -> None:
    """Paint (2, n) points, skipping NaN (samples without a percentage)."""
    points = points[:, np.isfinite(points).all(axis=0)]
    shown = points[:, np.linspace(0, points.shape[1] - 1, min(DOTS, points.shape[1])).astype(int)]
    # All dots are one path of zero-length strokes with round caps, which takes a tenth of the space of
    # markers.
    dots = [list(chain.from_iterable((value, value, math.nan) for value in column)) for column in shown]
    colour = look_of(family).colour
    axes.plot(*dots, color=colour, linewidth=2.2, alpha=0.45, solid_capstyle="round")
    x, y = points
    if x.size and np.ptp(x) > 0:
        slope, level = np.polyfit(x, y, 1)
        ends = np.array([x.min(), x.max()])
        axes.plot(ends, slope * ends + level, color=INK, linewidth=1.1)
