"""Loss against the share deleted, for one model conditioned on its rate and for the alternatives."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrt5cli.metrics.student_t import interval_of_mean
from mrt5cli.report.claims import CONDITIONED, MOVED, ONE_EACH, rate_lines
from mrt5cli.report.figures.against_reduction import DELETED
from mrt5cli.report.figures.style import (
    INK,
    LOOKS,
    Drawing,
    Look,
    Point,
    draw,
    legend_above,
    numbers_of,
    plot_line,
)
from mrt5cli.report.results import Results
from mrt5cli.report.verdicts import Compared

LINES = {ONE_EACH: LOOKS["MrT5"], MOVED: LOOKS["Random"], CONDITIONED: Look(LOOKS["Fixed"].colour, "D")}
ABOVE = "loss above ByT5 (nats per token)"
LINEAR = 0.1
"""Nats up to which the axis is linear; beyond, a moved threshold's losses would dwarf the others."""
TICKS = (0.0, 0.02, 0.05, LINEAR, 0.2, 0.5, 1.0, 2.0, 5.0)


def any_rate(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    """One line per method, with means over seeds at each requested rate."""
    if "dial" not in results.analyses:
        return []
    found = rate_lines(results.analyses["dial"]["points"])
    points = [
        Point(line, 100 * of.reached.mean(), of.above_byt5.mean(), interval_of_mean(of.above_byt5.tolist()))
        for (line, _), of in found.groupby(["line", "wanted"], sort=False)
    ]
    if not points:
        return []

    def paint(figure: Figure, axes: Axes) -> None:
        for line, look in LINES.items():
            plot_line(axes, [point for point in points if point.family == line], look, line)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_yscale("symlog", linthresh=LINEAR)
        # The default labels are mathtext, which these figures avoid.
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}"))
        ends = [end for point in points for end in (point.y, *(point.interval or ()))]
        low = min(0.0, *ends) - LINEAR / 10
        below = [-tick for tick in TICKS if 0 < tick <= -low]
        axes.set(xlabel=DELETED, ylabel=ABOVE, yticks=[*below, *TICKS])
        axes.set_ylim(low, 1.3 * max(LINEAR, *ends))
        legend_above(figure, columns=3)

    caption = (
        "Loss above ByT5 of the same seed against the share deleted of the test text: one MrT5 per rate, one "
        "of them with its threshold moved, and one model conditioned on the rate. "
        f"The axis is logarithmic above {LINEAR:g}."
    )
    if any(point.interval for point in points):
        caption += " Bars: 95 % over seeds."
    return [draw(paint, name, caption, numbers_of(points, DELETED, ABOVE), narrow={})]
