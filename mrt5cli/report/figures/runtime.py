"""Time saved against the reduction of the sequence length, beside what the multiply-accumulates promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.lines import Line2D

from mrt5cli.report.figures.style import INK, Drawing, drawn, hollow, key, look_of, sheet, styled


@dataclass(frozen=True)
class Timed:
    """One model.

    Attributes:
        family: as the paper calls it.
        reduction: percent of positions that are gone.
        decrease: percent less time than ByT5.
        promised: percent fewer multiply-accumulates; None where not counted.
        published: or ours.
    """

    family: str
    reduction: float
    decrease: float
    promised: float | None = None
    published: bool = False


def runtime(points: Sequence[Timed], *, name: str, caption: str) -> Drawing:
    """Draw it.

    Args:
        points: at least one.
    """
    with styled():
        figure, axes = sheet(height=3.6)
        families = list(dict.fromkeys(point.family for point in points))
        for family in families:
            look = look_of(family)
            for published in (True, False):
                line = sorted(
                    (point.reduction, point.decrease)
                    for point in points
                    if point.family == family and point.published is published
                )
                style = {"linestyle": ":", **hollow(look.marker)} if published else {"marker": look.marker}
                axes.plot([x for x, _ in line], [y for _, y in line], color=look.colour, **style)
        promised = sorted((p.reduction, p.promised) for p in points if p.promised is not None)
        axes.plot([x for x, _ in promised], [y for _, y in promised], color=INK, marker="_", linestyle="")
        there = {point.published for point in points}
        entries = key(families, ours=False in there, published=True in there)
        if promised:
            entries.append(
                Line2D([], [], color=INK, marker="_", linestyle="", label="multiply-accumulates saved")
            )
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_xlabel("reduction of the sequence length (%)")
        axes.set_ylabel("less time than ByT5 (%)")
        axes.legend(handles=entries, loc="center left", bbox_to_anchor=(1.01, 0.5))
        return drawn(figure, name, caption)
