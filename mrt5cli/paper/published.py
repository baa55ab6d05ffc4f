"""The paper's numbers as data: `published.yaml` beside this file, `unmatched.yaml`, and the readers of both.

What a recipe is held against stands in its own `paper.rows`. The rest is in `unmatched.yaml`, so that nothing
is left out unsaid: a number comes from an analysis of several runs or of none, or it is not reproduced, for a
reason.
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
        id: what `paper.rows` in recipes calls it, e.g. "r1435".
        version: "v1", "v3", or a notebook between the two ("interim-..."), which is not final.
        experiment: e.g. "xnli".
        model: as the paper calls it: ByT5, MrT5, BP, CP ...
        setting: of its run; empty where runs are compared.
        subset: language or split in words, "total", or None.
        metric, value, unit: e.g. "f1", 80.3, "percent".
        precision: how it came to us: "printed", "vector", "digitized", "derived" ...
        tolerance: of a digitized value, in its unit.
        source: where the authors give it, in words: a notebook or figure of their repository.
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
    """One of the YAML files beside this one."""
    import yaml

    # libyaml, where it is there, reads 2,400 rows in a third of a second instead of two.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((resources.files("mrt5cli.paper") / name).read_text(encoding="utf-8"), Loader=loader)


@cache
def published() -> Mapping[str, Published]:
    """All numbers, by their ids, in the paper's order."""
    rows: dict[str, Published] = {}
    for group in read_yaml("published.yaml"):
        of = {name: group[name] for name in ("version", "experiment", "model", "source")}
        of["setting"] = group["setting"] or {}
        for id_, row in group["rows"].items():
            # Only what was measured on a figure has a tolerance, the last column.
            rows[id_] = Published(id=id_, **of, **dict(zip(COLUMNS, row, strict=False)))
    return MappingProxyType(dict(sorted(rows.items())))


@cache
def unmatched() -> Mapping[str, list[Json]]:
    """Numbers without a recipe, recipes without a number: the parts `analyses`, `without` and `recipes`."""
    return MappingProxyType(read_yaml("unmatched.yaml"))


def chosen(numbers: Json) -> list[str]:
    """The ids of a part's numbers: those it lists, or all of a version's experiment."""
    if "rows" in numbers:
        return list(numbers["rows"])
    wanted = (numbers["version"], numbers["experiment"])
    return [number.id for number in published().values() if (number.version, number.experiment) == wanted]


@cache
def from_analyses() -> Mapping[str, str]:
    """The experiment of the suite one of whose analyses gives a number, by the number's id."""
    parts = unmatched()["analyses"]
    return MappingProxyType({id_: part["experiment"] for part in parts for id_ in chosen(part["numbers"])})
