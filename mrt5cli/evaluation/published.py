"""The paper's numbers for a task, in the units of our rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mrt5cli.data.languages import LANGUAGES
from mrt5cli.metrics.catalog import BY_PUBLISHED_NAME
from mrt5cli.metrics.results import TOTAL, Json
from mrt5cli.paper.published import Published, published
from mrt5cli.tasks.base import Task


@dataclass(frozen=True)
class PublishedRow:
    """The published numbers of one model on one subset.

    Attributes:
        version: "v1" or "v3" of the paper.
        setting: settings of the published run, such as delta or seed.
        subset: subset name, as in our rows.
        numbers: numbers with the names and units of `Row`.
        ids: ids of the published numbers.
    """

    version: str
    model: str
    setting: Json
    subset: str
    numbers: dict[str, float]
    ids: list[str]


def published_rows(task: Task, subsets: Sequence[str], named: Collection[str] = ()) -> list[PublishedRow]:
    """The published numbers of a task's experiment, models in the paper's order, camera-ready before v1.

    Args:
        task: its `experiment` is looked up; a task without one has no published numbers.
        subsets: the task's evaluated subsets; the published total is included if they are complete.
        named: ids named by recipes; if any belong to this experiment, only models with such an id are
            returned, else all.
    """
    rows = [
        row
        for row in sorted(published().values(), key=lambda row: row.version != "v3")
        if row.experiment == task.experiment and row.setting and row.version in ("v1", "v3")
    ]
    ours = {_key(row) for row in rows if row.id in named}
    published_subsets = {row.subset for row in rows} - {TOTAL}
    languages = {subset: LANGUAGES.get(task.language_of(subset) or "") for subset in subsets}
    names = {subset if language is None else language.name: subset for subset, language in languages.items()}
    if published_subsets and published_subsets <= names.keys():
        names[TOTAL] = TOTAL
    found: dict[tuple[str, str, str], dict[str, PublishedRow]] = {}
    for row in rows:
        if row.subset in names and (not ours or _key(row) in ours):
            subset = names[row.subset]
            fresh = PublishedRow(row.version, row.model, dict(row.setting), subset, {}, [])
            entry = found.setdefault(_key(row), {}).setdefault(subset, fresh)
            metric = BY_PUBLISHED_NAME[row.metric]
            entry.numbers[metric.name] = row.value if metric.factor == 1 else row.value / metric.factor
            entry.ids.append(row.id)
    return [of[subset] for of in found.values() for subset in names.values() if subset in of]


def _key(row: Published) -> tuple[str, str, str]:
    return row.version, row.model, str(row.setting)
