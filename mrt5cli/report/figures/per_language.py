"""Loss and reduction by language, as grouped bars with published values as hollow marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrt5cli.data.languages import LANGUAGES
from mrt5cli.metrics.results import TOTAL
from mrt5cli.paper.tolerances import AVERAGES, REDUCTION
from mrt5cli.report.figures.against_reduction import DELETED, loss_of
from mrt5cli.report.figures.style import (
    FAINT,
    HOLLOW,
    INK,
    Drawing,
    draw,
    hollow,
    legend_above,
    looks_of,
    numbers,
)
from mrt5cli.report.results import Ran, Results, short_name
from mrt5cli.report.tables import in_powers
from mrt5cli.report.tables import number as in_digits
from mrt5cli.report.verdicts import Compared

MOST = 20
"""Largest number of languages that keep their order; more are sorted by deletion rate."""


def per_language(results: Results, compared: Sequence[Compared], name: str) -> list[Drawing]:
    """Losses in the paper's unit (left) and percent deleted (right)."""
    metric, unit, number = loss_of(compared)
    names = [short_name(recipe) for recipe in results.runs]
    ours, known, families = {}, {}, []
    for recipe, runs in results.runs.items():
        label = short_name(recipe) if names.count(short_name(recipe)) == 1 else recipe
        mine = _by_language(runs, number)
        theirs = _published(recipe, metric, compared)
        if mine.loss.notna().any() or theirs.loss.notna().any():
            ours[label], known[label] = mine, theirs
            families.append(runs[0].family if runs else "MrT5")
    if not ours:
        return []
    return [by_language(ours, known, families, unit, name)]


def by_language(
    ours: Mapping[str, pd.DataFrame],
    known: Mapping[str, pd.DataFrame],
    families: Sequence[str],
    unit: str,
    name: str,
) -> Drawing:
    """Bars of several models.

    Args:
        ours: `loss` and percent `deleted` by language, by model label.
        known: the published values in the same form; an empty frame where there are none.
        families: the family of each model.
        unit: the name of `loss` on the axis.
        name: the drawing's name.
    """
    listed = [(ours[label] if len(ours[label]) else known[label]).index for label in ours]
    languages = list(dict.fromkeys(language for of in listed for language in of))
    if len(languages) > MOST:
        last = list(ours)[-1]
        gone = ours[last].deleted.combine_first(known[last].deleted).fillna(0.0)
        languages.sort(key=lambda language: -gone.get(language, 0.0))
    colours = [FAINT if look.colour == INK else look.colour for look in looks_of(families)]
    thickness = 0.8 / len(ours)

    def paint(figure: Figure, *both: Axes) -> None:
        for axes, column, words in zip(both, ("loss", "deleted"), (unit, DELETED), strict=True):
            for place, (label, colour) in enumerate(zip(ours, colours, strict=True)):
                mine, theirs = (of[label][column].reindex(languages) for of in (ours, known))
                if column == "deleted" and not (mine.any() or theirs.any()):
                    continue  # ByT5
                lines = [line + (place - (len(ours) - 1) / 2) * thickness for line in range(len(languages))]
                axes.barh(lines, mine.fillna(0), height=thickness, color=colour, label=label)
                mark = INK if mine.notna().any() else colour
                axes.plot(theirs, lines, "o", color=mark, markersize=3.5, zorder=3, **HOLLOW)
            axes.set_xlabel(words)
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        both[0].set_yticks(range(len(languages)), languages)
        both[0].set_ylim(len(languages) - 0.4, -0.6)
        legend_above(figure, 5)

    theirs = hollow(any(len(of) for of in known.values()))
    caption = f"{unit[0].upper()}{unit[1:]} and percent deleted by language{theirs}."
    height = 1.1 + len(languages) * max(0.17, 0.1 * len(ours))
    powers = in_powers(loss for of in (*ours.values(), *known.values()) for loss in of.loss)
    shown = numbers(
        ("language", "model", unit, "published", DELETED, "published"),
        [
            (language, label, *_cells(ours[label], known[label], language, powers))
            for language in languages
            for label in ours
        ],
        words=2,
    )
    return draw(
        paint, name, caption, shown,
        height=height, ncols=2, sharey=True, width_ratios=[3, 2],
        narrow={"nrows": 2, "sharey": True}, row=height,
    )  # fmt: skip


def _cells(mine: pd.DataFrame, theirs: pd.DataFrame, language: str, powers: bool) -> list[str]:
    """Loss and percent deleted as cells, each ours and published."""
    losses = [in_digits(of.loss.get(language), 4, powers) for of in (mine, theirs)]
    return losses + [in_digits(of.deleted.get(language), 1) for of in (mine, theirs)]


def _by_language(runs: Sequence[Ran], number: str) -> pd.DataFrame:
    """`loss` and percent `deleted` by language, means over runs.

    Each run contributes its first evaluation with several languages, else its first.
    """
    lines = []
    for ran in runs:
        several = [one for one in ran.evaluations if len(one.rows) > 1]
        for row in (row for one in [*several, *ran.evaluations][:1] for row in one.rows):
            language = LANGUAGES[row.subset].name if row.subset in LANGUAGES else row.subset
            if row.subset != TOTAL:
                deleted = None if row.deletion_rate is None else 100 * row.deletion_rate
                lines.append((language, row.number(number), deleted))
    frame = pd.DataFrame(lines, columns=["language", "loss", "deleted"])
    return frame.astype({"loss": float, "deleted": float}).groupby("language", sort=False).mean()


def _published(recipe: str, metric: str, compared: Sequence[Compared]) -> pd.DataFrame:
    """The published values of a recipe, in the same form."""
    rows = [one.row for one in compared if one.recipe == recipe and one.row.subset]
    values = {
        column: {row.subset: row.value for row in rows if row.metric == of and row.subset not in AVERAGES}
        for column, of in (("loss", metric), ("deleted", REDUCTION))
    }
    return pd.DataFrame(values, columns=["loss", "deleted"], dtype=float)
