"""Published numbers without a recipe, recipes without a published number: `unmatched.yaml` and its reader.

What a recipe is held against stands in its own `paper.rows`. The rest is listed, so that nothing is left out
unsaid: a number comes from an analysis of several runs or of none, or it is not reproduced, for a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from mrt5cli.paper.published import published


@cache
def unmatched() -> Mapping[str, list[dict[str, Any]]]:
    """The file: its parts `analyses`, `without` and `recipes`."""
    import yaml

    text = (resources.files("mrt5cli.paper") / "unmatched.yaml").read_text(encoding="utf-8")
    return MappingProxyType(yaml.safe_load(text))


def chosen(numbers: Mapping[str, Any]) -> list[str]:
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
