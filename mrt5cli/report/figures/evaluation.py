"""Figures of one evaluation: quality over requested deletion rates, and quality by language."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrt5cli.data.languages import LANGUAGES
from mrt5cli.evaluation.compare import Comparison, Result
from mrt5cli.metrics.catalog import METRICS, Metric
from mrt5cli.metrics.results import TOTAL
from mrt5cli.report.figures.against_reduction import DELETED
from mrt5cli.report.figures.per_language import by_language
from mrt5cli.report.figures.style import (
    FAINT,
    HOLLOW,
    INK,
    Drawing,
    Look,
    draw,
    legend_above,
    look_of,
    numbers,
)
from mrt5cli.report.tables import in_powers, number, percent

GIVEN = Look(look_of("Random").colour, "s")
"""The look of rates on validation text, next to those on test text."""


def dial(comparison: Comparison) -> list[Drawing]:
    """Loss and the task's headline metric over the share deleted, and that share over the requested one."""
    own, moved = comparison.results[0], [one for one in comparison.results if one.calibration is not None]
    if not moved:
        return []
    moved.sort(key=lambda one: one.summary.deletion_rate or 0.0)
    metrics = [METRICS["loss"], *([] if not comparison.measures else [_headline(comparison)])]
    bare = own.summary.source_removed_loss
    conditioned = any(one.calibration is not None and one.calibration.conditioned for one in moved)
    as_it_is = "at its default rate" if conditioned else "as trained"

    def paint(figure: Figure, *all_axes: Axes) -> None:
        for axes, metric in zip(all_axes, metrics, strict=False):
            line = sorted((_gone(one), _value(one, metric)) for one in (own, *moved))
            look = look_of("MrT5")
            label = "conditioned on each rate" if conditioned else "threshold moved"
            axes.plot(*zip(*line, strict=True), color=look.colour, marker=look.marker, label=label)
            place = [_gone(own)], [_value(own, metric)]
            axes.plot(*place, "*", color=INK, markersize=10, zorder=4, label=as_it_is)
            if metric.name == "loss" and bare is not None:
                axes.plot([100], [bare], "X", color=FAINT, label="source removed")
            axes.set(xlabel=DELETED, ylabel=metric.heading)
            axes.set_xlim(left=-3)
        axes = all_axes[-1]
        axes.axline((0, 0), slope=1, color=FAINT, linestyle=":", linewidth=0.8)
        wanted = [100 * one.calibration.rate for one in moved if one.calibration is not None]
        found = [100 * one.calibration.reached for one in moved if one.calibration is not None]
        axes.plot(wanted, found, GIVEN.marker, color=GIVEN.colour, label="validation", **HOLLOW)
        axes.plot(wanted, [_gone(one) for one in moved], "o", color=look_of("MrT5").colour, markersize=4)
        axes.set(xlabel="requested (%)", ylabel=DELETED)
        legend_above(figure)

    caption = (
        f"{own.subject.name} {'conditioned on each rate' if conditioned else 'with its threshold moved'}: "
        f"{' and '.join(metric.title for metric in metrics)} against the share deleted of the "
        f"{comparison.options.split} text; the last panel shows that share against the requested one, "
        f"{'an input of the model' if conditioned else 'to which validation text calibrated the threshold'}."
    )
    every = [own, *moved]
    powers = [in_powers((_value(one, metric) for one in every), metric.digits) for metric in metrics]
    rows = [
        (
            one.label if one.calibration else f"{one.label}, {as_it_is}",
            percent(None if one.calibration is None else one.calibration.rate),
            percent(None if one.calibration is None else one.calibration.reached),
            number(_gone(one), 1),
            *(
                number(_value(one, metric), metric.digits, small)
                for metric, small in zip(metrics, powers, strict=True)
            ),
        )
        for one in every
    ]
    headers = ("", "requested, %", "validation, %", DELETED, *(metric.heading for metric in metrics))
    columns = len(metrics) + 1
    shown = numbers(headers, rows)
    return [
        draw(
            paint, "dial", caption, shown,
            width=7.2 if columns == 2 else 9.2, height=3.4, narrow={"nrows": columns}, ncols=columns,
        )
    ]  # fmt: skip


def per_subset(comparison: Comparison) -> list[Drawing]:
    """Bars grouped by language; empty for a single language."""
    headline = _headline(comparison)
    results = [one for one in comparison.results if len(one.rows) > 1]
    if not results:
        return []
    ours = {one.label: _by_language(one, headline) for one in results}
    nothing = pd.DataFrame(columns=["loss", "deleted"], dtype=float)
    families = [one.shortener.paper_name for one in results]
    return [by_language(ours, dict.fromkeys(ours, nothing), families, headline.heading, "by-language")]


def _by_language(result: Result, metric: Metric) -> pd.DataFrame:
    lines = {
        LANGUAGES[row.subset].name if row.subset in LANGUAGES else row.subset: (
            None if row.number(metric.name) is None else metric.factor * row.known(metric.name),
            None if row.deletion_rate is None else 100 * row.deletion_rate,
        )
        for row in result.rows
        if row.subset != TOTAL
    }
    return pd.DataFrame.from_dict(lines, orient="index", columns=["loss", "deleted"], dtype=float)


def _headline(comparison: Comparison) -> Metric:
    """The task's first metric: bits per byte for text, and the loss for a task without metrics."""
    kind = comparison.task["kind"]
    names = [name for name in comparison.numbers if name in METRICS]
    return METRICS[(*names, "bits_per_byte" if kind == "span_corruption" else "loss")[0]].on(kind)


def _gone(result: Result) -> float:
    """Percent deleted."""
    return 100 * (result.summary.deletion_rate or 0.0)


def _value(result: Result, metric: Metric) -> float:
    return metric.factor * result.summary.known(metric.name)
