"""Published numbers in the units of our rows, to set below them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from mrt5cli.data.languages import LANGUAGES
from mrt5cli.metrics.catalog import BY_PUBLISHED_NAME
from mrt5cli.metrics.results import TOTAL
from mrt5cli.paper.published import Published, published
from mrt5cli.tasks.base import Task


@dataclass(frozen=True)
class PublishedRow:
    """What was published of one model on one subset.

    Attributes:
        version: "v1" or "v3" of the paper.
        setting: of its run, such as delta or seed.
        subset: as our rows name it.
        numbers: by the names and in the units of `Row`.
        ids: of the published numbers.
    """

    version: str
    model: str
    setting: dict[str, Any]
    subset: str
    numbers: dict[str, float]
    ids: list[str]


def published_rows(task: Task, subsets: Sequence[str], named: Collection[str] = ()) -> list[PublishedRow]:
    """The published numbers of a task's experiment, models in the paper's order, camera-ready before v1.

    Args:
        task: its `experiment` is looked up; without one there is nothing.
        subsets: of the task, as many as were evaluated; the published total is there when all of them were.
        named: ids that recipes name; where some are of this experiment, only models that have one are given,
            else all of them.
    """
    rows = [
        row
        for row in sorted(published().values(), key=lambda row: row.version != "v3")
        if row.experiment == task.experiment and row.setting and row.version in ("v1", "v3")
    ]
    ours = {_key(row) for row in rows if row.id in named}
    there = {row.subset for row in rows} - {TOTAL}
    languages = {subset: LANGUAGES.get(task.language_of(subset) or "") for subset in subsets}
    names = {subset if language is None else language.name: subset for subset, language in languages.items()}
    if there and there <= names.keys():
        names[TOTAL] = TOTAL
    found: dict[tuple[Any, ...], PublishedRow] = {}
    for row in rows:
        if row.subset not in names or (ours and _key(row) not in ours):
            continue
        entry = found.setdefault(
            (*_key(row), row.subset),
            PublishedRow(row.version, row.model, dict(row.setting), names[row.subset], {}, []),
        )
        metric = BY_PUBLISHED_NAME[row.metric]
        entry.numbers[metric.name] = row.value if metric.factor == 1 else row.value / metric.factor
        entry.ids.append(row.id)
    models = list(dict.fromkeys(key[:-1] for key in found))
    places = {name: place for place, name in enumerate(names)}
    return [found[key] for key in sorted(found, key=lambda key: (models.index(key[:-1]), places[key[-1]]))]


def _key(row: Published) -> tuple[Any, ...]:
    return row.version, row.model, str(row.setting)
