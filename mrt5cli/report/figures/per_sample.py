"""Each sample's rise of loss against the share deleted from it: a panel a model, with Pearson's r."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from mrt5cli.report.figures.style import INK, Drawing, draw, look_of

COLUMNS = 5
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Scatter:
    """One model.

    Attributes:
        label: of its panel.
        family: as the paper calls it.
        deleted, increase: of each sample, in percent.
        r: Pearson's, or None where it has none.
        published_r: the paper's, or None.
    """

    label: str
    family: str
    deleted: Sequence[float]
    increase: Sequence[float]
    r: float | None
    published_r: float | None = None


def per_sample(scatters: Sequence[Scatter], *, name: str, caption: str) -> Drawing:
    """Draw it: a family a row, or more where it has many models; axes are shared, so that panels compare.

    Args:
        scatters: at least one, those of a family next to each other.
    """
    families = list(dict.fromkeys(scatter.family for scatter in scatters))
    of = {family: [scatter for scatter in scatters if scatter.family == family] for family in families}
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
    look = look_of(scatter.family)
    x, y = np.asarray(scatter.deleted, float), np.asarray(scatter.increase, float)
    # A dot a sample as one path, each a stroke too short to see but for its round ends: a tenth of the file
    # that as many markers make.
    dots = [list(chain.from_iterable((value, value, math.nan) for value in column)) for column in (x, y)]
    axes.plot(*dots, color=look.colour, linewidth=2.2, alpha=0.45, solid_capstyle="round")
    if scatter.r is not None:
        slope, level = np.polyfit(x, y, 1)
        ends = np.array([x.min(), x.max()])
        axes.plot(ends, slope * ends + level, color=INK, linewidth=1.1)
    title = f"{scatter.label}\nr = {_signed(scatter.r)}"
    if scatter.published_r is not None:
        title += f"\npublished {_signed(scatter.published_r)}"
    axes.set_title(title, fontsize=7.5)


def _signed(r: float | None) -> str:
    return "none" if r is None else f"{r:.2f}".replace("-", MINUS)
