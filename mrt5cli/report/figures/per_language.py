"""Loss and reduction by language: bars, a group a language, published values as hollow marks on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from mrt5cli.data.languages import LANGUAGES
from mrt5cli.metrics.results import TOTAL
from mrt5cli.paper.tolerances import AVERAGES, REDUCTION
from mrt5cli.report.figures.against_reduction import DELETED, loss_of
from mrt5cli.report.figures.style import FAINT, HOLLOW, INK, Drawing, draw, looks_of
from mrt5cli.report.results import Ran, Results, short_name
from mrt5cli.report.verdicts import Compared

MOST = 20
"""Languages that keep their order; more of them are sorted by how much goes."""


class Model(NamedTuple):
    """One model's numbers by language, as far as known: loss in the figure's unit, reduction in percent."""

    label: str
    family: str
    loss: Mapping[str, float] = {}
    reduction: Mapping[str, float] = {}
    published_loss: Mapping[str, float] = {}
    published_reduction: Mapping[str, float] = {}


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
    looks = looks_of([model.family for model in models])
    thickness = 0.8 / len(models)

    def bars(
        axes: Any, place: int, ours: Mapping[str, float], known: Mapping[str, float], label: str
    ) -> None:
        offset = (place - (len(models) - 1) / 2) * thickness
        places = {language: line + offset for line, language in enumerate(languages)}
        mine, theirs = ({places[one]: of[one] for one in languages if one in of} for of in (ours, known))
        colour = FAINT if looks[place].colour == INK else looks[place].colour
        axes.barh(list(mine), list(mine.values()), height=thickness, color=colour, label=label)
        style = {"marker": "o", "markersize": 3.5, "linestyle": "", "zorder": 3, **HOLLOW}
        axes.plot(list(theirs.values()), list(theirs), color=INK if mine else colour, **style)

    def paint(figure: Any, both: Any) -> None:
        left, right = both
        for place, model in enumerate(models):
            bars(left, place, model.loss, model.published_loss, model.label)
            if any({**model.published_reduction, **model.reduction}.values()):
                bars(right, place, model.reduction, model.published_reduction, "")
        for axes in both:
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        left.set_yticks(range(len(languages)), languages)
        left.set_ylim(len(languages) - 0.4, -0.6)
        left.set_xlabel(unit)
        right.set_xlabel(DELETED)
        figure.legend(loc="outside upper center", ncols=min(5, len(models)))

    height = 1.1 + len(languages) * max(0.17, 0.1 * len(models))
    return draw(paint, name, caption, height=height, ncols=2, sharey=True, width_ratios=[3, 2])


def figures(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    metric, unit, number = loss_of(compared)
    labels = [short_name(recipe) for recipe in results.runs]
    languages: dict[str, None] = {}
    models = []
    for (recipe, runs), label in zip(results.runs.items(), labels, strict=True):
        ours = _by_language(runs, number)
        known, gone = (
            {
                one.row.subset: one.row.value
                for one in compared
                if one.recipe == recipe
                and one.row.metric == which
                and one.row.subset
                and one.row.subset not in (*AVERAGES, TOTAL)
            }
            for which in (metric, REDUCTION)
        )
        languages |= dict.fromkeys(ours.index if len(ours) else known)
        losses = ours[number].dropna().to_dict()
        if losses or known:
            reduction = (100 * ours.deletion_rate).dropna().to_dict()
            label = label if labels.count(label) == 1 else recipe
            family = runs[0].family if runs else "MrT5"
            models.append(Model(label, family, losses, reduction, known, gone))
    if not models:
        return []
    caption = f"{unit.capitalize()} and percent deleted by language; hollow marks are published."
    return [per_language(models, list(languages), unit=unit, name=name, caption=caption)]


def _by_language(runs: Sequence[Ran], number: str) -> pd.DataFrame:
    """Means over runs, of the first evaluation of each that has several languages, else of its first."""
    lines = []
    for ran in runs:
        several = [one for one in ran.evaluations if len(one.rows) > 1]
        for row in (row for one in [*several, *ran.evaluations][:1] for row in one.rows):
            language = LANGUAGES[row.subset].name if row.subset in LANGUAGES else row.subset
            if row.subset != TOTAL:
                lines.append((language, row.number(number), row.deletion_rate))
    frame = pd.DataFrame(lines, columns=["language", number, "deletion_rate"])
    return frame.astype({number: float, "deletion_rate": float}).groupby("language", sort=False).mean()
