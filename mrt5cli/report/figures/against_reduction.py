"""Loss against the share of bytes that is gone, the paper's main figure; what other figures need of losses."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from mrt5cli.metrics.results import TOTAL
from mrt5cli.metrics.student_t import interval_of_mean
from mrt5cli.paper.tolerances import AVERAGES, LOSSES, REDUCTION
from mrt5cli.report.figures.style import Drawing, Point, draw, legend_beside, look_of, plot_families
from mrt5cli.report.results import Results
from mrt5cli.report.verdicts import Compared

REDUCTION_LABEL = "reduction of the sequence length (%)"
ENGLISH = ("English", "English (10000 examples)")
WHOLE = (*AVERAGES, TOTAL, *ENGLISH)
"""Published subsets that stand for all of a test set."""


def loss_against_reduction(points: Sequence[Point], *, unit: str, name: str, caption: str) -> Drawing:
    """A line a family of models.

    Args:
        points: at least one: percent of positions that are gone, and the loss.
        unit: of the losses, in words.
    """

    def paint(figure: Any, axes: Any) -> None:
        entries = plot_families(axes, points)
        base = sorted((point for point in points if point.family == "ByT5"), key=lambda one: one.published)
        if base:
            line = {"linestyle": (0, (1, 3)), "linewidth": 0.8, "zorder": 0}
            axes.axhline(base[0].y, color=look_of("ByT5").colour, **line)
        axes.set(xlabel=REDUCTION_LABEL, ylabel=unit)
        axes.set_xlim(left=min(-2.0, min(point.x for point in points) - 2))
        legend_beside(axes, entries)

    return draw(paint, name, caption)


def figures(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    metric, unit, number = loss_of(compared)
    points = []
    for runs in results.runs.values():
        rows = [found[0] for ran in runs if (found := ran.own(number)) is not None]
        if rows:
            losses = [row.known(number) for row in rows]
            gone = 100 * statistics.fmean(row.deletion_rate or 0.0 for row in rows)
            interval = interval_of_mean(losses)
            points.append(Point(runs[0].family, gone, statistics.fmean(losses), interval))
    averaged = any(one.row.subset in (*AVERAGES, TOTAL) for one in compared)
    wanted = (*AVERAGES, TOTAL) if averaged else WHOLE  # English is a part where there is an average
    known: dict[tuple[str, str], dict[str, float]] = {}
    for row in (one.row for one in compared if one.row.subset in wanted):
        known.setdefault((row.model, str(row.setting)), {})[row.metric] = row.value
    for (model, _), values in known.items():
        if metric in values:
            points.append(Point(model, values.get(REDUCTION, 0.0), values[metric], published=True))
    if not points:
        return []
    caption = f"{unit.capitalize()} against the reduction of the sequence length, a point a model."
    if any(point.interval for point in points):
        caption += " Bars: 95 % over seeds."
    return [loss_against_reduction(points, unit=unit, name=name, caption=caption)]


def loss_of(compared: Sequence[Compared]) -> tuple[str, str, str]:
    """The loss that the paper gives here, or bits per byte: its metric, in words, and our number."""
    metrics = {one.row.metric for one in compared if one.row.metric in LOSSES}
    if metrics == {"test_cross_entropy"}:
        return "test_cross_entropy", "cross-entropy (nats per token)", "loss"
    return "bits_per_byte", "bits per byte", "bits_per_byte"
