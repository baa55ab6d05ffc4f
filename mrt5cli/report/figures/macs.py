"""Multiply-accumulates left against the share deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.lines import Line2D

from mrt5cli.report.figures.style import (
    FAINT,
    INK,
    Drawing,
    drawn,
    hollow,
    hollow_entry,
    look_of,
    sheet,
    styled,
)

Curve = Sequence[tuple[float, float]]
"""Percent deleted, and percent of multiply-accumulates left."""


def macs(
    *,
    paper: Curve,
    exact: Curve,
    published: Curve = (),
    runs: Mapping[str, Curve] | None = None,
    name: str,
    caption: str,
) -> Drawing:
    """Draw it.

    Args:
        paper: by the paper's formula.
        exact: as the matrices multiply.
        published: the paper's values.
        runs: where evaluated runs lie, by family.
    """
    with styled():
        figure, axes = sheet(height=3.6)
        blue = look_of("MrT5").colour
        axes.plot(*_columns(paper), color=blue, linestyle="-")
        axes.plot(*_columns(exact), color=INK, linestyle="--")
        axes.plot([0, 100], [100, 0], color=FAINT, linewidth=0.8, linestyle=(0, (1, 3)))
        axes.plot(*_columns(published), color=blue, **(hollow("o") | {"linestyle": ""}))
        for family, points in (runs or {}).items():
            look = look_of(family)
            axes.plot(*_columns(points), color=look.colour, marker=look.marker, linestyle="")
        entries = [
            Line2D([], [], color=blue, label="the paper's formula"),
            Line2D([], [], color=INK, linestyle="--", label="exact"),
            Line2D([], [], color=FAINT, linestyle=(0, (1, 3)), label="in proportion"),
        ]
        if published:
            entries.append(hollow_entry("published", line=""))
        for family in runs or {}:
            look = look_of(family)
            entries.append(
                Line2D([], [], color=look.colour, marker=look.marker, linestyle="", label=f"runs of {family}")
            )
        axes.set_xlim(-2, 102)
        axes.set_ylim(0, 104)
        axes.set_xlabel("bytes deleted (%)")
        axes.set_ylabel("multiply-accumulates left (%)")
        axes.legend(handles=entries, loc="center left", bbox_to_anchor=(1.01, 0.5))
        return drawn(figure, name, caption)


def _columns(points: Curve) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
