"""Loss, and time saved or bytes deleted, against the layer that the gate follows: two axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mrt5cli.report.figures.style import Drawing, Look, Point, draw, entry, hollow_entry, plot_line

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
        for axes, points, look, label in ((left, losses, LEFT, unit), (right, others, RIGHT, other)):
            plot_line(axes, points, look, linestyle="-" if look is LEFT else "--")
            axes.set_ylabel(label, color=look.colour)
            axes.tick_params(axis="y", labelcolor=look.colour)
        left.set_xticks(sorted({point.x for point in (*losses, *others)}))
        left.set_xlabel("gate after layer")
        entries = [
            entry(f"{unit} (left)", LEFT.colour, marker=LEFT.marker),
            entry(f"{other} (right)", RIGHT.colour, marker=RIGHT.marker, linestyle="--"),
        ]
        if any(point.published for point in (*losses, *others)):
            entries.append(hollow_entry("published"))
        figure.legend(handles=entries, loc="outside upper center", ncols=3)

    return draw(paint, name, caption, height=3.4)
