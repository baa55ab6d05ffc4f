"""Loss and reduction by language: bars, a group a language, published values as hollow marks on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.patches import Patch

from mrt5cli.report.figures.style import (
    FAINT,
    INK,
    OTHER_LOOKS,
    Drawing,
    Look,
    draw,
    hollow,
    hollow_entry,
    look_of,
)

MOST = 20
"""Languages that keep their order; more of them are sorted by how much goes."""


@dataclass(frozen=True)
class Model:
    """One model's numbers by language; a language may lack any.

    Attributes:
        label: in the legend.
        family: as the paper calls it.
        loss, reduction: ours, in the figure's unit and percent.
        published_loss, published_reduction: the same, published.
    """

    label: str
    family: str
    loss: Mapping[str, float] = field(default_factory=dict)
    reduction: Mapping[str, float] = field(default_factory=dict)
    published_loss: Mapping[str, float] = field(default_factory=dict)
    published_reduction: Mapping[str, float] = field(default_factory=dict)


def per_language(
    models: Sequence[Model], languages: Sequence[str], *, unit: str, name: str, caption: str
) -> Drawing:
    """Draw it.

    Args:
        models: at least one.
        languages: from top to bottom.
        unit: of the losses, in words.
    """
    if len(languages) > MOST:
        most = models[-1].reduction or models[-1].published_reduction
        languages = sorted(languages, key=lambda language: -most.get(language, 0.0))
    looks = _looks(models)
    gone = [model for model in models if any({**model.published_reduction, **model.reduction}.values())]
    thickness = 0.8 / len(models)

    def paint(figure: Any, both: Any) -> None:
        left, right = both
        for axes, shown, which in ((left, models, "loss"), (right, gone, "reduction")):
            for model in shown:
                place = list(models).index(model)
                offset = (place - (len(models) - 1) / 2) * thickness
                _bars(axes, model, languages, which, offset, thickness, looks[place])
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        left.set_yticks(range(len(languages)), languages)
        left.set_ylim(len(languages) - 0.4, -0.6)
        left.set_xlabel(unit)
        right.set_xlabel("reduction of the sequence length (%)")
        entries: list[object] = [
            Patch(facecolor=look.colour, label=model.label) for model, look in zip(models, looks, strict=True)
        ]
        if any(model.published_loss or model.published_reduction for model in models):
            entries.append(hollow_entry("published", line=""))
        figure.legend(handles=entries, loc="outside upper center", ncols=min(5, len(entries)))

    height = 1.1 + len(languages) * max(0.17, 0.1 * len(models))
    return draw(paint, name, caption, height=height, ncols=2, sharey=True, width_ratios=[3, 2])


def _looks(models: Sequence[Model]) -> list[Look]:
    """A look a model; a second model of one family gets another colour."""
    looks: list[Look] = []
    spare = [Look("#E69F00", "v"), OTHER_LOOKS[0], Look("#009E73", "s"), Look("#CC79A7", "D")]
    for model in models:
        look = Look(FAINT, "*") if model.family == "ByT5" else look_of(model.family)
        looks.append(spare.pop(0) if look in looks and spare else look)
    return looks


def _bars(
    axes: Any,
    model: Model,
    languages: Sequence[str],
    which: str,
    offset: float,
    thickness: float,
    look: Look,
) -> None:
    ours: Mapping[str, float] = getattr(model, which)
    known: Mapping[str, float] = getattr(model, f"published_{which}")
    places = {language: place + offset for place, language in enumerate(languages)}
    mine = {places[language]: ours[language] for language in languages if language in ours}
    theirs = {places[language]: known[language] for language in languages if language in known}
    axes.barh(list(mine), list(mine.values()), height=thickness, color=look.colour)
    settings = hollow("o") | {"markersize": 3.5, "linestyle": "", "zorder": 3}
    axes.plot(list(theirs.values()), list(theirs), color=INK if mine else look.colour, **settings)
