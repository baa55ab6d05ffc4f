"""Curves of runs, one panel per metric, on a shared x axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrt5cli.report.figures.style import FAINT, LOOKS, OTHER_LOOKS, Drawing, draw, save_picture
from mrt5cli.runs.curves import AXES, Panel
from mrt5cli.text import duration, listed, visible

LINES = ("-", "--", ":", "-.")
"""Line styles, for more curves than colors."""
HEIGHT, LEGEND_LINE = 2.4, 0.22
"""Height of a panel and of a legend line, in inches."""


def curve_drawings(panels: Sequence[Panel]) -> list[Drawing]:
    """One figure per panel."""
    return [
        draw(
            lambda figure, axes, panel=panel: _paint(figure, [axes], [panel]),
            f"curve-{panel.metric}",
            _caption(panel),
            height=HEIGHT + _legend_height(panel),
            narrow={},
        )
        for panel in panels
    ]


def curves_picture(path: Path, panels: Sequence[Panel]) -> None:
    """Write all panels to one file in the format of its suffix.

    Raises:
        UserError: the format is not supported.
    """
    height = len(panels) * HEIGHT + _legend_height(panels[0])
    save_picture(
        path,
        lambda figure, *axes: _paint(figure, axes, panels),
        height=height,
        nrows=len(panels),
        sharex=True,
    )


def _legend_height(panel: Panel) -> float:
    return LEGEND_LINE * len(panel.curves) if len(panel.curves) > 1 else 0.0


def _caption(panel: Panel) -> str:
    ends = [f"{curve.y[-1]:.4g} ({curve.label.partition('  ')[0]})" for curve in panel.curves]
    if len(ends) == 1:
        ends = [f"{panel.curves[0].y[-1]:.4g}"]
    aim = "; dotted is the target" if any(one.target is not None for one in panel.curves) else ""
    title = panel.title[0].upper() + panel.title[1:]
    return visible(f"{title}, by {AXES[panel.by]}; at the end {listed(ends, 8)}{aim}.", lines=False)


def _paint(figure: Figure, every: Sequence[Axes], panels: Sequence[Panel]) -> None:
    looks = [look.colour for look in (*LOOKS.values(), *OTHER_LOOKS)]
    looks = [*looks[1:], looks[0]]  # MrT5's before the black of ByT5
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    handles: dict[str, Any] = {}
    for axes, panel in zip(every, panels, strict=True):
        for curve in panel.curves:
            place = labels.index(curve.label)
            style = LINES[place // len(looks) % len(LINES)]
            colour = looks[place % len(looks)]
            [handles[curve.label]] = axes.plot(curve.x, curve.y, color=colour, linestyle=style, linewidth=1.3)
        for target in {curve.target for curve in panel.curves if curve.target is not None}:
            axes.axhline(target, color=FAINT, linestyle=":", linewidth=1.0)
        axes.set_ylabel(panel.title)
        axes.margins(x=0.01)
    last = panels[-1]
    every[-1].set_xlabel(AXES[last.by])
    if last.by == "seconds":
        every[-1].xaxis.set_major_formatter(lambda value, _: duration(value) if value >= 0 else "")
    if len(labels) > 1:
        named = {label: visible(label, lines=False).replace("$", r"\$") for label in handles}
        figure.legend(
            [*handles.values()], [named[label] for label in handles], loc="outside upper left", ncols=1
        )
