"""Each sample's rise of loss against the share deleted from it: a panel a model, with Pearson's r."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from mrt5cli.report.figures.style import INK, Drawing, draw, look_of
from mrt5cli.report.results import Results, short_name
from mrt5cli.report.tables import number
from mrt5cli.report.verdicts import Compared

COLUMNS = 5


class Scatter(NamedTuple):
    """One model of a family: each sample's two numbers, in percent, and whether they vary together."""

    title: str
    family: str
    deleted: Sequence[float]
    increase: Sequence[float]
    varies: bool = True


def per_sample(scatters: Sequence[Scatter], *, name: str, caption: str) -> Drawing:
    """Draw it: a family a row, or more where it has many models; axes are shared, so that panels compare.

    Args:
        scatters: at least one.
    """
    of: dict[str, list[Scatter]] = {}
    for scatter in scatters:
        of.setdefault(scatter.family, []).append(scatter)
    columns = min(COLUMNS, max(len(line) for line in of.values()))
    lines = [line[start : start + columns] for line in of.values() for start in range(0, len(line), columns)]

    def paint(figure: Any, grid: Any) -> None:
        for axes in grid.flat:
            axes.set_visible(False)
        for row, line in zip(grid, lines, strict=True):
            for axes, scatter in zip(row, line, strict=False):
                axes.set_visible(True)
                _panel(axes, scatter)
        for column in range(columns):
            if column >= len(lines[-1]) and len(lines) > 1:  # nothing below: the panel above has the ticks
                grid[-2][column].tick_params(labelbottom=True)
        figure.supxlabel("deleted from the sample (%)", fontsize=9)
        figure.supylabel("rise of its loss over ByT5's (%)", fontsize=9)

    return draw(
        paint, name, caption, width=max(3.6, 1.44 * columns), height=0.5 + 1.55 * len(lines),
        nrows=len(lines), ncols=columns, squeeze=False, sharex=True, sharey=True,
    )  # fmt: skip


def _panel(axes: Any, scatter: Scatter) -> None:
    x, y = np.asarray(scatter.deleted, float), np.asarray(scatter.increase, float)
    # A dot a sample as one path, each a stroke too short to see but for its round ends: a tenth of the file
    # that as many markers make.
    dots = [list(chain.from_iterable((value, value, math.nan) for value in column)) for column in (x, y)]
    colour = look_of(scatter.family).colour
    axes.plot(*dots, color=colour, linewidth=2.2, alpha=0.45, solid_capstyle="round")
    if scatter.varies:
        slope, level = np.polyfit(x, y, 1)
        ends = np.array([x.min(), x.max()])
        axes.plot(ends, slope * ends + level, color=INK, linewidth=1.1)
    axes.set_title(scatter.title, fontsize=7.5)


def figures(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    document = results.analyses.get("per_sample", {"models": []})
    models = document["models"]
    if not models:
        return []
    known = {one.recipe: one.value for one in compared if one.row.metric == "pearson_r"}
    several = len({model["seed"] for model in models}) > 1 and bool(results.experiment.seeds)
    scatters = []
    for model in models:
        title = short_name(model["recipe"]) + (f", seed {model['seed']}" if several else "")
        title += f"\nr = {'none' if model['r'] is None else number(model['r'], 2)}"
        if model["recipe"] in known:
            title += f"\npublished {number(known[model['recipe']], 2)}"
        samples = model["deleted_percent"], model["loss_increase_percent"]
        scatters.append(Scatter(title, model["family"], *samples, varies=model["r"] is not None))
    caption = (
        f"{document['samples']:,} samples, batch size 1: rise of each sample's loss over ByT5's against the "
        "share deleted from it, with the line of least squares."
    )
    return [per_sample(scatters, name=name, caption=caption)]
