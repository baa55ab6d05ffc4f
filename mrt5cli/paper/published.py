"""The paper's numbers as data: `published.yaml` beside this file, and the one reader of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any


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
    setting: Mapping[str, Any]
    subset: str | None
    metric: str
    value: float
    unit: str
    precision: str
    tolerance: float | None = None
    source: str = ""


COLUMNS = ("subset", "metric", "value", "unit", "precision", "tolerance")


@cache
def published() -> Mapping[str, Published]:
    """All numbers, by their ids, in the paper's order."""
    import yaml

    # libyaml, where it is there, reads 2,400 rows in a third of a second instead of two.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (resources.files("mrt5cli.paper") / "published.yaml").read_text(encoding="utf-8")
    rows: dict[str, Published] = {}
    for group in yaml.load(text, Loader=loader):
        of = {name: group[name] for name in ("version", "experiment", "model", "source")}
        of["setting"] = group["setting"] or {}
        for id_, row in group["rows"].items():
            # Only what was measured on a figure has a tolerance, the last column.
            rows[id_] = Published(id=id_, **of, **dict(zip(COLUMNS, row, strict=False)))
    return MappingProxyType(dict(sorted(rows.items())))
