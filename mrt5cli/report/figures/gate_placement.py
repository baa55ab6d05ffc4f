"""Loss, and time saved or bytes deleted, against the layer that the gate follows: two axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mrt5cli.paper.tolerances import DECREASE, REDUCTION, TIMES
from mrt5cli.report.figures.against_reduction import REDUCTION_LABEL, loss_of
from mrt5cli.report.figures.style import Drawing, Look, Point, draw, entry, plot_line, published_entry
from mrt5cli.report.results import Results
from mrt5cli.report.verdicts import Compared

LEFT, RIGHT = Look("#0072B2", "o"), Look("#D55E00", "s")


def gate_placement(
    losses: Sequence[Point], others: Sequence[Point], *, unit: str, other: str, name: str, caption: str
) -> Drawing:
    """Draw it.

    Args:
        losses: of models, by the layer that their gate follows, from 1, on the left axis; at least one layer.
        others: on the right axis: percent less time than ByT5, or percent deleted.
        unit: of the losses, in words.
        other: what the right axis shows, in words.
    """

    def paint(figure: Any, left: Any) -> None:
        right = left.twinx()
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
        entries = []
        for axes, points, look, label, side, style in (
            (left, losses, LEFT, unit, "left", "-"),
            (right, others, RIGHT, other, "right", "--"),
        ):
            plot_line(axes, points, look, linestyle=style)
            axes.set_ylabel(label, color=look.colour)
            axes.tick_params(axis="y", labelcolor=look.colour)
            entries.append(entry(f"{label} ({side})", look.colour, marker=look.marker, linestyle=style))
        left.set_xticks(sorted({point.x for point in (*losses, *others)}))
        left.set_xlabel("gate after layer")
        if any(point.published for point in (*losses, *others)):
            entries.append(published_entry())
        figure.legend(handles=entries, loc="outside upper center", ncols=3)

    return draw(paint, name, caption, height=3.4)


def figures(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
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

    def points(column: str, factor: float, published: str) -> list[Point]:
        found = [Point("", layer, factor * value) for layer, value in ours[column].dropna().items()]
        of = {layer: values[published] for layer, values in known.items() if published in values}
        return found + [Point("", layer, value, published=True) for layer, value in of.items()]

    losses = points(number, 1, metric)
    others = points("decrease_percent", 1, DECREASE) if timed else points("deletion_rate", 100, REDUCTION)
    if not losses and not others:
        return []
    other = "less time than ByT5 (%)" if timed else REDUCTION_LABEL
    caption = f"{unit.capitalize()} (left axis) and {other} (right axis) against the gate's layer."
    return [gate_placement(losses, others, unit=unit, other=other, name=name, caption=caption)]
