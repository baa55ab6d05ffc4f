"""The recipe schema in plain words: what a key expects, and what is wrong with a recipe that breaks it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mrt5cli.recipe.schema import DURATION, Misfit, Recipe, Section

Path = tuple[str | int, ...]

PAPER_NAMES = {
    "byt5": "none",
    "mrt5": "delete_gate",
    "bp": "boundary_predictor",
    "bpt5": "boundary_predictor",
    "cp": "convolution",
    "canine": "convolution",
    "caninet5": "convolution",
    "decoder_only": "source_removed",
    "decoder_baseline": "source_removed",
}
"""What the paper and its code call our kinds."""

NAME_RULE = "lower-case letters, digits and any of . _ - (a letter or digit first)"
DURATION_RULE = "a time such as 90s, 30m or 2h"


class Key(NamedTuple):
    """One setting a recipe may give."""

    path: str
    """Dotted key, e.g. "model.shortener.layer"."""
    kind: str | None
    """The kind of section it belongs to, where a section comes in several."""
    field: FieldInfo


def all_keys() -> list[Key]:
    """Every setting of the schema, sections included, in the order of the schema."""
    return list(_keys(Recipe, "", None))


def _keys(section: type[Section], prefix: str, kind: str | None) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        yield Key(path, kind, field)
        found = sections(field.annotation)
        for inner in found:
            inner_kind = ", ".join(kinds(inner)) if len(found) > 1 else None
            yield from _keys(inner, f"{path}.", inner_kind)


def sections(annotation: Any) -> list[type[Section]]:
    """The section classes a value may be: several where `kind` chooses, none for a plain value."""
    inner, _ = _unwrap(annotation)
    options = get_args(inner) or (inner,)
    return [option for option in options if isinstance(option, type) and issubclass(option, Section)]


def kinds(section: type[Section]) -> tuple[str, ...]:
    """The values of `kind` that choose this section class; none where there is nothing to choose."""
    field = section.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


def same_settings(kind: Any, other: Any) -> bool:
    """Whether two kinds are read by the same section class, so that the settings of one suit the other."""
    owners = {name: section for section in Section.__subclasses__() for name in kinds(section)}
    return kind == other or (
        isinstance(kind, str)
        and isinstance(other, str)
        and owners.get(kind, kind) is owners.get(other, other)
    )


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` is most likely a slip of."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.65)), None)


def dotted(path: Path) -> str:
    """A path as recipes' readers write it: "task.languages[0]"."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


# --- what a key expects -------------------------------------------------------------------------------------


def expected(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a value must be, e.g. "a whole number of at least 1, or null"."""
    inner, rules = _unwrap(annotation, metadata)
    options = [option for option in get_args(inner) if option is not NoneType]
    if NoneType in get_args(inner) and len(options) == 1:
        return f"{expected(options[0], rules)}, or null"
    found = sections(inner)
    if len(found) > 1:
        return f"a section with kind {_either(kind for section in found for kind in kinds(section))}"
    if found:
        return "a section (key: value lines)"
    if get_origin(inner) is Literal:
        return _either(f"'{choice}'" for choice in get_args(inner))
    if get_origin(inner) is list:
        least = "non-empty " if any(getattr(rule, "min_length", 0) for rule in rules) else ""
        return f"a {least}list of {expected(get_args(inner)[0]).removeprefix('some ')}"
    if inner is bool:
        return "true or false"
    if inner is str:
        pattern = next((rule.pattern for rule in rules if getattr(rule, "pattern", None)), None)
        return {None: "some text", DURATION: DURATION_RULE}.get(pattern, NAME_RULE)
    return f"{'a whole number' if inner is int else 'a number'}{_bounds(rules)}"


def _unwrap(annotation: Any, metadata: Iterable[Any] = ()) -> tuple[Any, list[Any]]:
    """An annotation without `Annotated`, and the rules that were in it."""
    rules = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        rules += [rule for extra in extras for rule in getattr(extra, "metadata", [extra])]
    return annotation, rules


def _bounds(rules: list[Any]) -> str:
    limits = {
        name: f"{getattr(rule, name):g}"
        if isinstance(getattr(rule, name), float)
        else str(getattr(rule, name))
        for rule in rules
        for name in ("ge", "gt", "le", "lt")
        if getattr(rule, name, None) is not None
    }
    if {"ge", "le"} <= limits.keys():
        return f" from {limits['ge']} to {limits['le']}"
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    text = " and ".join(f"{words[name]} {limit}" for name, limit in limits.items())
    return f" {text}" if text else ""


def _either(choices: Iterable[str]) -> str:
    *some, last = choices
    return f"{', '.join(some)} or {last}" if some else last


# --- what is wrong ------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where in the schema a problem is."""

    path: Path
    owner: type[Section]
    kind: str | None
    field: FieldInfo | None


def problems(error: ValidationError) -> list[tuple[Path, str]]:
    """Every problem pydantic found, as (path in the recipe, one plain sentence)."""
    found: list[tuple[Path, str]] = []
    for item in error.errors(include_url=False):
        place = _follow(item["loc"])
        if item["type"] == "value_error" and isinstance(item["ctx"]["error"], Misfit):
            found += [((*place.path, *key.split(".")), text) for key, text in item["ctx"]["error"].problems]
        elif item["type"] == "union_tag_not_found":
            found.append(((*place.path, "kind"), f"missing; expected {_either(_kinds_of(place))}"))
        elif item["type"] == "union_tag_invalid":
            found.append(((*place.path, "kind"), _wrong_kind(place, item["input"]["kind"])))
        elif item["type"] == "missing":
            found.append((place.path, f"missing; expected {_expected_at(place)}"))
        elif item["type"] == "extra_forbidden":
            found.append((place.path, _unknown(place)))
        else:
            found.append((place.path, _wrong_value(place, item["input"])))
    return found


def _follow(location: tuple[int | str, ...]) -> _Place:
    """The place of a pydantic location, which puts the chosen kind between a section and its settings."""
    path: Path = ()
    owner: type[Section] = Recipe
    inside: list[type[Section]] = [Recipe]
    kind: str | None = None
    field: FieldInfo | None = None
    for part in location:
        if len(inside) > 1:
            inside = [section for section in inside if part in kinds(section)]
            kind = str(part)
            continue
        path = (*path, part)
        if isinstance(part, str):
            owner = inside[0]
            field = owner.model_fields.get(part)
            inside = (sections(field.annotation) if field else []) or [owner]
    return _Place(path, owner, kind, field)


def _expected_at(place: _Place) -> str:
    assert place.field is not None, "only unknown keys have no field"
    if isinstance(place.path[-1], int):
        inner, _ = _unwrap(place.field.annotation)
        return expected(get_args(inner)[0])
    return expected(place.field.annotation, place.field.metadata)


def _kinds_of(place: _Place) -> list[str]:
    assert place.field is not None, "only unknown keys have no field"
    return [kind for section in sections(place.field.annotation) for kind in kinds(section)]


def _wrong_kind(place: _Place, value: Any) -> str:
    names = _kinds_of(place)
    if not isinstance(value, str):
        return f"expected {_either(names)}, not {_shown(value)}"
    near = _meant(value.lower(), names)
    return f"no such kind: {value!r}; expected {_either(names)}{f' (did you mean {near}?)' if near else ''}"


def _meant(value: str, kinds: list[str]) -> str | None:
    """The kind a value stands for by another name, begins, or is a slip of."""
    if (paper := PAPER_NAMES.get(value)) in kinds:
        return paper
    begun = [kind for kind in kinds if len(value) > 2 and kind.startswith(value)]
    return begun[0] if len(begun) == 1 else nearest(value, kinds)


def _unknown(place: _Place) -> str:
    """Why a key is not known here, and which one was probably meant."""
    *parents, key = place.path
    own = [name for name in place.owner.model_fields if name != "kind"]
    near = nearest(str(key), own)
    if near:
        return f"unknown key; did you mean {near}?"
    if place.kind:
        only = f"only: {', '.join(own)}" if own else "it has none"
        return f"not a setting of {parents[-1]} kind {place.kind!r} ({only})"
    elsewhere = sorted({known.path for known in all_keys() if known.path.rsplit(".", 1)[-1] == key})
    if elsewhere:
        return f"unknown key; did you mean {_either(elsewhere)}?"
    return f"unknown key (known here: {', '.join(own)})"


def _wrong_value(place: _Place, value: Any) -> str:
    text = f"expected {_expected_at(place)}, not {_shown(value)}"
    assert place.field is not None, "only unknown keys have no field"
    inner, _ = _unwrap(place.field.annotation)
    if get_origin(inner) is Literal and isinstance(value, str):
        near = nearest(value.lower(), get_args(inner))
        return f"{text}; did you mean '{near}'?" if near else text
    if get_origin(inner) is list and isinstance(value, str):
        return f"{text}; write [{value}]"
    limits = [getattr(rule, name, None) for rule in place.field.metadata for name in ("lt", "le")]
    if 1.0 in limits and isinstance(value, int | float) and not isinstance(value, bool) and 1 < value <= 100:
        return f"{text}; {value:g} % is {value / 100:g}"
    return text


def _shown(value: Any) -> str:
    """A value of a recipe, short enough for a sentence."""
    if value is None:
        return "null (nothing given)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        shown = value if len(value) <= 40 else f"{value[:37]}..."
        return f"the text '{shown}'" if value else "empty text"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "a section" if isinstance(value, dict) else f"{value!r}"
