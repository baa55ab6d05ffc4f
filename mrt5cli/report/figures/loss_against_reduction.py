"""Loss against the reduction of the sequence length, a line a family of models: the paper's main figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mrt5cli.report.figures.style import Drawing, drawn, hollow, key, look_of, sheet, styled


@dataclass(frozen=True)
class Point:
    """One model.

    Attributes:
        family: as the paper calls it.
        reduction: percent of positions that are gone.
        loss: in the figure's unit.
        interval: of the loss, over seeds; None with one.
        published: or ours.
    """

    family: str
    reduction: float
    loss: float
    interval: tuple[float, float] | None = None
    published: bool = False


def loss_against_reduction(points: Sequence[Point], *, unit: str, name: str, caption: str) -> Drawing:
    """Draw it.

    Args:
        points: at least one.
        unit: of the losses, in words.
    """
    with styled():
        figure, axes = sheet(height=4.0)
        families = list(dict.fromkeys(point.family for point in points))
        for family in families:
            for published in (True, False):
                line = [point for point in points if point.family == family and point.published is published]
                line.sort(key=lambda point: point.reduction)
                _line(axes, family, line, published)
        base = [point for point in points if point.family == "ByT5"]
        if base:
            level = next((point.loss for point in base if not point.published), base[0].loss)
            axes.axhline(level, color=look_of("ByT5").colour, linestyle=(0, (1, 3)), linewidth=0.8, zorder=0)
        axes.set_xlabel("reduction of the sequence length (%)")
        axes.set_ylabel(unit)
        axes.set_xlim(left=min(-2.0, min(point.reduction for point in points) - 2))
        there = {point.published for point in points}
        entries = key(families, ours=False in there, published=True in there)
        axes.legend(handles=entries, loc="center left", bbox_to_anchor=(1.01, 0.5))
        return drawn(figure, name, caption)


def _line(axes: Any, family: str, line: Sequence[Point], published: bool) -> None:
    look = look_of(family)
    x, y = [point.reduction for point in line], [point.loss for point in line]
    if published:
        settings = hollow(look.marker)
        axes.plot(x, y, color=look.colour, linestyle=":", zorder=2, **settings)
        return
    axes.plot(x, y, color=look.colour, marker=look.marker, zorder=3)
    for point in line:
        if point.interval is not None:
            axes.vlines(point.reduction, *point.interval, color=look.colour, linewidth=1.0)
