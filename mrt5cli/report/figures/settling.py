"""The deletion rate over training steps: one panel per controller, one line per run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrt5cli.metrics.results import Json
from mrt5cli.report.figures.style import FAINT, INK, LOOKS, Drawing, draw, legend_above, numbers
from mrt5cli.report.results import Results
from mrt5cli.report.tables import number
from mrt5cli.report.verdicts import Compared

STARTS = {
    "open": ("nothing deleted at first", LOOKS["MrT5"].colour, "-"),
    "half": ("half", LOOKS["Fixed"].colour, "-."),
    "closed": ("nearly all", LOOKS["Random"].colour, "--"),
    "any": ("any start", INK, "-"),
}
"""Label, color and line style of runs, by the gate's start."""
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Fractions of a run at which the table lists the rate."""


def settling(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    """All seeds of a start share a style; the band is the range of a settled rate."""
    document = results.analyses.get("settling", {"runs": []})
    panels: dict[str, list[Json]] = {}
    for line in document["runs"]:
        panels.setdefault(line["law"], []).append(line)
    if not panels:
        return []

    def paint(figure: Figure, *grid: Axes) -> None:
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes, (kind, lines) in zip(grid, panels.items(), strict=False):
            axes.set_title(kind)
            for target in {100 * line["target"] for line in lines}:
                band = target - document["within"], target + document["within"]
                axes.axhspan(*band, color=FAINT, alpha=0.45, linewidth=0)
            for line in lines:
                label, colour, style = STARTS[line["start"]]
                axes.plot(*_curve(line), color=colour, linestyle=style, linewidth=1.0, label=label)
            axes.set_ylim(0, 100)
        figure.supxlabel("step", fontsize=9)
        figure.supylabel("deleted (%)", fontsize=9)
        legend_above(figure)

    caption = (
        f"Deletion rate over training steps, one line per run; the grey band is within "
        f"{document['within']:g} point of the target."
    )
    rows = [
        (kind, start, *_at_shares([line for line in lines if line["start"] == start]))
        for kind, lines in panels.items()
        for start in dict.fromkeys(line["start"] for line in lines)
    ]
    headers = ("controller or gate", "start", *(f"at {100 * share:g} % of the steps" for share in SHARES))
    columns = min(2, len(panels))
    height = -(-len(panels) // columns)
    return [
        draw(
            paint, name, caption, numbers(headers, rows, words=2), height=0.7 + 1.9 * height,
            narrow={"nrows": len(panels), "sharex": True, "sharey": True}, row=2.0,
            nrows=height, ncols=columns, sharex=True, sharey=True,
        )
    ]  # fmt: skip


def _curve(line: Json) -> tuple[list[int], list[float]]:
    return line["curve"]["step"], [100 * rate for rate in line["curve"]["deletion_rate"]]


def _at_shares(lines: Sequence[Json]) -> list[str]:
    """Percent deleted at `SHARES` of the runs, means over seeds."""
    curves = [_curve(line) for line in lines]
    means = (
        np.mean([np.interp(share * steps[-1], steps, rates) for steps, rates in curves]) for share in SHARES
    )
    return [number(float(mean), 1) for mean in means]
