"""The paper's numbers as data: readers of `published.yaml` and `unmatched.yaml`.

A recipe lists the numbers it is compared with in `paper.rows`. `unmatched.yaml` accounts for all others: they
come from an analysis of several runs or of none, or are not reproduced, with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from mrt5cli.metrics.results import Json


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        id: its id in `paper.rows` of recipes, e.g. "r1435".
        version: "v1", "v3", or a preliminary notebook between the two ("interim-...").
        experiment: name of the experiment, e.g. "xnli".
        model: the paper's name of the model: ByT5, MrT5, BP, CP ...
        setting: settings of its run; empty for a comparison of runs.
        subset: name of a language or split, "total", or None.
        metric, value, unit: e.g. "f1", 80.3, "percent".
        precision: how it was obtained: "printed", "vector", "digitized", "derived" ...
        tolerance: reading error of a digitized value, in its unit; None for others.
        source: the notebook or figure of the authors' repository that contains it.
    """

    id: str
    version: str
    experiment: str
    model: str
    setting: Mapping[str, str | float]
    subset: str | None
    metric: str
    value: float
    unit: str
    precision: str
    tolerance: float | None = None
    source: str = ""


COLUMNS = ("subset", "metric", "value", "unit", "precision", "tolerance")


def read_yaml(name: str) -> Any:
    """The content of a YAML file in this package."""
    import yaml

    # libyaml, if available, reads 2,400 rows in a third of a second instead of two seconds.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((resources.files("mrt5cli.paper") / name).read_text(encoding="utf-8"), Loader=loader)


@cache
def published() -> Mapping[str, Published]:
    """All published numbers by id, in the paper's order."""
    rows: dict[str, Published] = {}
    for group in read_yaml("published.yaml"):
        of = {name: group[name] for name in ("version", "experiment", "model", "source")}
        of["setting"] = group["setting"] or {}
        for id_, row in group["rows"].items():
            # Only values read from a figure have the last column, a tolerance.
            rows[id_] = Published(id=id_, **of, **dict(zip(COLUMNS, row, strict=False)))
    return MappingProxyType(dict(sorted(rows.items())))


@cache
def unmatched() -> Mapping[str, list[Json]]:
    """Numbers without a recipe (`analyses`, `without`) and recipes without a number (`recipes`)."""
    return MappingProxyType(read_yaml("unmatched.yaml"))


def chosen(numbers: Json) -> list[str]:
    """The ids in a part of `unmatched.yaml`: listed ones, or all of a version's experiment."""
    if "rows" in numbers:
        return list(numbers["rows"])
    wanted = (numbers["version"], numbers["experiment"])
    return [number.id for number in published().values() if (number.version, number.experiment) == wanted]


@cache
def from_analyses() -> Mapping[str, str]:
    """The suite's experiment whose analysis produces a number, by the number's id."""
    parts = unmatched()["analyses"]
    return MappingProxyType({id_: part["experiment"] for part in parts for id_ in chosen(part["numbers"])})
