"""Loss (the paper's main figure), saved time and saved arithmetic against the deletion rate.

Also loss and saved time against the gate's layer.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrt5cli.metrics.catalog import POSITIVE
from mrt5cli.metrics.student_t import interval_of_mean
from mrt5cli.paper.published import Published, published
from mrt5cli.paper.tolerances import AVERAGES, DECREASE, ENGLISH, LOSSES, REDUCTION, TIMES
from mrt5cli.report.figures.style import (
    FAINT,
    HOLLOW,
    INK,
    Drawing,
    Look,
    Point,
    draw,
    hollow,
    legend_above,
    legend_beside,
    look_of,
    numbers_of,
    plot_families,
    plot_line,
)
from mrt5cli.report.results import Results
from mrt5cli.report.verdicts import Compared

DELETED = "deleted (%)"
SAVED = "less time than ByT5 (%)"
PROMISED, LEFT = "multiply-accumulates saved", "multiply-accumulates left (%)"
DOTTED: dict[str, Any] = {"linestyle": (0, (1, 3)), "linewidth": 0.8}
WHOLE = (*AVERAGES, *ENGLISH)
"""Published subsets that represent a complete test set."""


def loss_of(compared: Sequence[Compared]) -> tuple[str, str, str]:
    """The loss that the paper reports here, else bits per byte: published metric, axis label, our field."""
    metrics = {one.row.metric for one in compared if one.row.metric in LOSSES}
    if metrics == {"test_cross_entropy"}:
        return "test_cross_entropy", "cross-entropy (nats per token)", "loss"
    return "bits_per_byte", "bits per byte", "bits_per_byte"


def loss_against_reduction(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    """One line per family of models, ours and published."""
    metric, unit, number = loss_of(compared)
    points = []
    for runs in results.runs.values():
        rows = [found[0] for ran in runs if (found := ran.own(number)) is not None]
        if rows:
            losses = [row.known(number) for row in rows]
            gone = 100 * statistics.fmean(row.deletion_rate or 0.0 for row in rows)
            interval = interval_of_mean(losses, POSITIVE)
            points.append(Point(runs[0].family, gone, statistics.fmean(losses), interval))
    averaged = any(one.row.subset in AVERAGES for one in compared)
    wanted = AVERAGES if averaged else WHOLE  # English is a part where there is an average
    known: dict[tuple[str, str], dict[str, float]] = {}
    for row in (one.row for one in compared if one.row.subset in wanted):
        known.setdefault((row.model, str(row.setting)), {})[row.metric] = row.value
    for (model, _), values in known.items():
        if metric in values:
            points.append(Point(model, values.get(REDUCTION, 0.0), values[metric], published=True))
    if not points:
        return []

    def paint(figure: Figure, axes: Axes) -> None:
        plot_families(figure, axes, points)
        base = sorted((point for point in points if point.family == "ByT5"), key=lambda one: one.published)
        if base:
            axes.axhline(base[0].y, color=look_of("ByT5").colour, zorder=0, **DOTTED)
        axes.set(xlabel=DELETED, ylabel=unit)
        axes.set_xlim(left=min(-2.0, min(point.x for point in points) - 2))

    theirs = hollow(any(point.published for point in points))
    caption = f"{unit.capitalize()} against the share deleted, one point per model{theirs}."
    if any(point.interval for point in points):
        caption += " Bars: 95 % over seeds."
    return [draw(paint, name, caption, numbers_of(points, DELETED, unit), narrow={})]


def runtime(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    """Saved time, and the saving that the multiply-accumulates predict."""
    document = results.analyses.get("runtime", {"runs": []})
    points, promised = [], []
    for line in document["runs"]:
        if line["recipe"] != results.experiment.baseline:
            gone = 100 * (line["deletion_rate"] or 0.0)
            points.append(Point(line["family"], gone, line["decrease_percent"]))
            promised.append((gone, line["macs_decrease_percent"]))
    for one in compared:
        reduction = _published_reduction(one.row)
        if one.row.metric == DECREASE and one.verdict != "not compared" and reduction is not None:
            points.append(Point(one.row.model, reduction, one.value, published=True))
    if not points:
        return []

    def paint(figure: Figure, axes: Axes) -> None:
        _plot(axes, sorted(promised), PROMISED, INK, marker="_", linestyle="")
        plot_families(figure, axes, points)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set(xlabel=DELETED, ylabel=SAVED)

    theirs = hollow(any(point.published for point in points))
    caption = f"Time of a forward pass, in percent below ByT5's{theirs}."
    if document["runs"]:
        caption += f" Ours: {document['device_name']}, batches of {document['batch_size']}."
    shown = [*points, *(Point(PROMISED, *place) for place in sorted(promised))]
    return [draw(paint, name, caption, numbers_of(shown, DELETED, SAVED), height=3.6, narrow={})]


def _published_reduction(row: Published) -> float | None:
    """The published reduction of a published number's model, from any experiment."""
    run = row.version, row.model, row.setting
    for other in published().values():
        whole = other.metric == REDUCTION and other.subset in WHOLE
        if whole and (other.version, other.model, other.setting) == run:
            return other.value
    return None


def _plot(axes: Axes, curve: Sequence[tuple[float, float]], label: str, colour: str, **style: Any) -> None:
    if curve:
        axes.plot(*zip(*curve, strict=True), color=colour, label=label, **style)


def macs(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    """Remaining multiply-accumulates in percent: the paper's formula, exact, published, and our runs."""
    document = results.analyses.get("compute")
    if document is None:
        return []
    blue = look_of("MrT5").colour
    known = [
        (100 * float(one.row.setting["delta"]), 100 * one.value)
        for one in compared
        if one.row.metric == "macs_relative_to_byt5"
    ]

    paper, exact = (
        [(100 * point["deletion_rate"], 100 * point[which]) for point in document["curve"]]
        for which in ("paper_relative", "relative")
    )
    runs = [line for line in document["runs"] if line["deletion_rate"]]

    def paint(figure: Figure, axes: Axes) -> None:
        _plot(axes, paper, "the paper's formula", blue)
        _plot(axes, exact, "exact", INK, linestyle="--")
        _plot(axes, [(0, 100), (100, 0)], "in proportion", FAINT, **DOTTED)
        _plot(axes, known, "published", blue, marker="o", linestyle="", **HOLLOW)
        for family in dict.fromkeys(line["family"] for line in runs):
            look, of = look_of(family), [line for line in runs if line["family"] == family]
            places = [(100 * line["deletion_rate"], 100 * line["relative"]) for line in of]
            _plot(axes, places, f"runs of {family}", look.colour, marker=look.marker, linestyle="")
        axes.set(xlim=(-2, 102), ylim=(0, 104))
        axes.set(xlabel=DELETED, ylabel=LEFT)
        legend_beside(figure, axes)

    sizes = document["sizes"]
    caption = (
        f"Multiply-accumulates of a forward pass, {document['source']:,} positions in and "
        f"{document['target']:,} out, width {sizes['d_model']:,}, {sizes['encoder_layers']} + "
        f"{sizes['decoder_layers']} layers, gate after layer {sizes['gate_layer']}."
    )
    shown = [Point("the paper's formula", *place) for place in paper]
    shown += [Point("exact", *place) for place in exact]
    shown += [Point("the paper's formula", *place, published=True) for place in known]
    shown += [Point(line["family"], 100 * line["deletion_rate"], 100 * line["relative"]) for line in runs]
    return [draw(paint, name, caption, numbers_of(shown, DELETED, LEFT), height=3.6, narrow={})]


def gate_placement(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    """Loss (left axis) and saved time, or else the deletion rate (right axis), by gate layer."""
    metric, unit, number = loss_of(compared)
    columns = ["after_layer", number, "decrease_percent", "deletion_rate"]
    runs = results.analyses.get("gate_placement", {"runs": []})["runs"]
    ours = pd.DataFrame(runs, columns=columns, dtype=float).groupby("after_layer", sort=False).mean()
    known: dict[int, dict[str, float]] = {}
    for one in compared:
        layer = one.row.setting.get("gate_after_layer")
        if layer is not None:
            what = DECREASE if one.row.metric in TIMES else one.row.metric
            known.setdefault(int(layer), {})[what] = one.value
    timed = ours.decrease_percent.notna().any() or any(DECREASE in values for values in known.values())

    def points(label: str, column: str, factor: float, published: str) -> list[Point]:
        found = [Point(label, layer, factor * value) for layer, value in ours[column].dropna().items()]
        of = {layer: values[published] for layer, values in known.items() if published in values}
        return found + [Point(label, layer, value, published=True) for layer, value in of.items()]

    losses = points(unit, number, 1, metric)
    if timed:
        other, others = SAVED, points(SAVED, "decrease_percent", 1, DECREASE)
    else:
        other, others = DELETED, points(DELETED, "deletion_rate", 100, REDUCTION)
    if not losses and not others:
        return []

    def paint(figure: Figure, left: Axes) -> None:
        right = left.twinx()
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
        for axes, points, look, label, side, linestyle in (
            (left, losses, Look("#0072B2", "o"), unit, "left", "-"),
            (right, others, Look("#D55E00", "s"), other, "right", "--"),
        ):
            plot_line(axes, points, look, f"{label} ({side})", linestyle)
            axes.set_ylabel(label, color=look.colour)
            axes.tick_params(axis="y", labelcolor=look.colour)
        left.set_xticks(sorted({point.x for point in (*losses, *others)}))
        left.set_xlabel("gate after layer")
        legend_above(figure)

    axes = f"{unit.capitalize()} (left axis) and {other} (right axis)"
    caption = f"{axes} against the gate's layer{hollow(bool(known))}."
    shown = numbers_of([*losses, *others], "gate after layer", "")
    return [draw(paint, name, caption, shown, height=3.4, narrow={})]
