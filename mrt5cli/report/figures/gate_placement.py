"""Loss, and time saved or bytes deleted, against the layer that the gate follows: two axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.lines import Line2D

from mrt5cli.report.figures.style import Drawing, drawn, hollow, hollow_entry, sheet, styled

LOSS, OTHER = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Place:
    """One model.

    Attributes:
        layer: that the gate follows, from 1.
        loss: in the figure's unit, or None.
        other: percent less time than ByT5, or percent deleted; None where not known.
        published: or ours.
    """

    layer: int
    loss: float | None
    other: float | None
    published: bool = False


def gate_placement(places: Sequence[Place], *, unit: str, other: str, name: str, caption: str) -> Drawing:
    """Draw it.

    Args:
        places: at least one.
        unit: of the losses, in words.
        other: what the right axis shows, in words.
    """
    with styled():
        figure, left = sheet(height=3.4)
        right = left.twinx()
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
        for axes, which, colour, marker, style in (
            (left, "loss", LOSS, "o", "-"),
            (right, "other", OTHER, "s", "--"),
        ):
            for published in (True, False):
                line = [
                    (place.layer, value)
                    for place in places
                    if place.published is published and (value := getattr(place, which)) is not None
                ]
                line.sort()
                look = {"marker": marker, "linestyle": style}
                if published:
                    look = {"linestyle": ":", **hollow(marker)}
                axes.plot([x for x, _ in line], [y for _, y in line], color=colour, **look)
        left.set_xticks(sorted({place.layer for place in places}))
        left.set_xlabel("gate after layer")
        left.set_ylabel(unit, color=LOSS)
        right.set_ylabel(other, color=OTHER)
        left.tick_params(axis="y", labelcolor=LOSS)
        right.tick_params(axis="y", labelcolor=OTHER)
        entries = [
            Line2D([], [], color=LOSS, marker="o", label=f"{unit} (left)"),
            Line2D([], [], color=OTHER, marker="s", linestyle="--", label=f"{other} (right)"),
        ]
        if any(place.published for place in places):
            entries.append(hollow_entry("published"))
        figure.legend(handles=entries, loc="outside upper center", ncols=3)
        return drawn(figure, name, caption)
