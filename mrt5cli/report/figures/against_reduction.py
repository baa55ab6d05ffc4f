"""Against the share of bytes that is gone: the loss (the paper's main figure), time and arithmetic saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrt5cli.report.figures.style import (
    FAINT,
    INK,
    Drawing,
    Point,
    draw,
    entry,
    hollow,
    hollow_entry,
    legend_beside,
    look_of,
    plot_families,
)

REDUCTION = "reduction of the sequence length (%)"
DOTTED = (0, (1, 3))

Curve = Sequence[tuple[float, float]]
"""Percent deleted, and a percentage."""


def loss_against_reduction(points: Sequence[Point], *, unit: str, name: str, caption: str) -> Drawing:
    """A line a family of models.

    Args:
        points: at least one: percent of positions that are gone, and the loss.
        unit: of the losses, in words.
    """

    def paint(figure: Any, axes: Any) -> None:
        entries = plot_families(axes, points)
        base = [point for point in points if point.family == "ByT5"]
        if base:
            level = next((point.y for point in base if not point.published), base[0].y)
            axes.axhline(level, color=look_of("ByT5").colour, linestyle=DOTTED, linewidth=0.8, zorder=0)
        axes.set(xlabel=REDUCTION, ylabel=unit)
        axes.set_xlim(left=min(-2.0, min(point.x for point in points) - 2))
        legend_beside(axes, entries)

    return draw(paint, name, caption)


def runtime(points: Sequence[Point], promised: Curve = (), *, name: str, caption: str) -> Drawing:
    """Time saved, beside what the multiply-accumulates promise.

    Args:
        points: at least one: percent of positions that are gone, and percent less time than ByT5.
        promised: percent of positions that are gone, and percent fewer multiply-accumulates.
    """

    def paint(figure: Any, axes: Any) -> None:
        entries = plot_families(axes, points)
        marks: dict[str, Any] = {"marker": "_", "linestyle": ""}
        axes.plot(*_columns(sorted(promised)), color=INK, **marks)
        if promised:
            entries.append(entry("multiply-accumulates saved", **marks))
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set(xlabel=REDUCTION, ylabel="less time than ByT5 (%)")
        legend_beside(axes, entries)

    return draw(paint, name, caption, height=3.6)


def macs(
    *, paper: Curve, exact: Curve, published: Curve, runs: Mapping[str, Curve], name: str, caption: str
) -> Drawing:
    """Multiply-accumulates left, in percent.

    Args:
        paper: by the paper's formula.
        exact: as the matrices multiply.
        published: the paper's values.
        runs: where evaluated runs lie, by family.
    """
    blue = look_of("MrT5").colour

    def paint(figure: Any, axes: Any) -> None:
        entries = []
        for label, curve, colour, style in (
            ("the paper's formula", paper, blue, {}),
            ("exact", exact, INK, {"linestyle": "--"}),
            ("in proportion", [(0, 100), (100, 0)], FAINT, {"linestyle": DOTTED, "linewidth": 0.8}),
        ):
            axes.plot(*_columns(curve), color=colour, **style)
            entries.append(entry(label, colour, **style))
        axes.plot(*_columns(published), color=blue, **hollow("o"), linestyle="")
        if published:
            entries.append(hollow_entry("published", line=""))
        for family, points in runs.items():
            look = look_of(family)
            axes.plot(*_columns(points), color=look.colour, marker=look.marker, linestyle="")
            entries.append(entry(f"runs of {family}", look.colour, marker=look.marker, linestyle=""))
        axes.set(xlim=(-2, 102), ylim=(0, 104))
        axes.set(xlabel="bytes deleted (%)", ylabel="multiply-accumulates left (%)")
        legend_beside(axes, entries)

    return draw(paint, name, caption, height=3.6)


def _columns(points: Curve) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
