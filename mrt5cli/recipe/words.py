"""The recipe schema in plain words: what a key expects, and what is wrong with a recipe that breaks it."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mrt5cli.recipe import shorteners
from mrt5cli.recipe.schema import Recipe
from mrt5cli.recipe.section import CODE, DURATION, NAME, ONE_LINE, PROSE, Misfit, Section
from mrt5cli.recipe.strict_yaml import Keys, Tree, inline
from mrt5cli.text import shortened

NUMBERS: Mapping[Any, str] = {int: "a whole number", float: "a number"}
TEXT_RULES = {
    PROSE: "some text",
    ONE_LINE: "some text",
    CODE: "some text",
    NAME: "lower-case letters, digits and any of . _ - (a letter or digit first)",
    DURATION: "a time such as 90s, 30m or 2h",
}
"""What a text of each pattern must be, before one looks at its characters."""
RARE = ("string_too_long", "too_long", "string_unicode")
"""What hardly anybody meets: pydantic's own sentence will do."""
FORBIDDEN = {
    PROSE: "control characters",
    ONE_LINE: "line breaks or other control characters",
    CODE: "slashes, control characters or a dot at its start",
}


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


@cache
def mappings() -> frozenset[str]:
    """Names of the keys whose value is a mapping of the reader's own making, not a section of the schema."""
    return frozenset(
        key.path.rsplit(".", 1)[-1]
        for key in all_keys()
        if get_origin(_unwrap(key.field.annotation)[0]) is dict
    )


def same_settings(kind: object, other: object) -> bool:
    """Whether two kinds are read by the same section class, so that the settings of one suit the other."""
    if kind == other or not (isinstance(kind, str) and isinstance(other, str)):
        return kind == other
    owners = {name: section for section in _below(Section) for name in kinds(section)}
    return owners.get(kind, kind) is owners.get(other, other)


def _below(section: type[Section]) -> Iterator[type[Section]]:
    for one in section.__subclasses__():
        yield one
        yield from _below(one)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` is most likely a slip of."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.65)), None)


def dotted(path: Keys) -> str:
    """A path as recipes' readers write it: "task.languages[0]"."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


# --- what a key expects -------------------------------------------------------------------------------------


def expected(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a value must be, e.g. "a whole number of at least 1, or null"."""
    inner, rules = _unwrap(annotation, metadata)
    if NoneType in get_args(inner):
        return f"{expected(*_unwrap_optional(annotation, metadata))}, or null"
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
    if get_origin(inner) is dict:
        keys, values = (expected(part).removeprefix("some ") for part in get_args(inner))
        return f"a mapping of {keys} to {values}, e.g. {{a: b}}"
    if inner is bool:
        return "true or false"
    if inner is str:
        return TEXT_RULES.get(_limit(rules, "pattern"), "some text")
    return f"{NUMBERS[inner]}{_bounds(rules)}"


def _unwrap(annotation: Any, metadata: Iterable[Any] = ()) -> tuple[Any, list[Any]]:
    """An annotation without `Annotated`, and the rules that were in it."""
    rules = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        rules += [rule for extra in extras for rule in getattr(extra, "metadata", [extra])]
    return annotation, rules


def _unwrap_optional(annotation: Any, metadata: Iterable[Any] = ()) -> tuple[Any, list[Any]]:
    """As `_unwrap`, of what may be null as well: what it is where it is not."""
    inner, rules = _unwrap(annotation, metadata)
    options = [option for option in get_args(inner) if option is not NoneType]
    if NoneType in get_args(inner) and len(options) == 1:
        return _unwrap(options[0], rules)
    return inner, rules


def _bounds(rules: list[Any]) -> str:
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    limits = {name: limit for name in words if (limit := _limit(rules, name)) is not None}
    written = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in limits.items()}
    if {"ge", "le"} <= written.keys():
        return f" from {written['ge']} to {written['le']}"
    text = " and ".join(f"{words[name]} {limit}" for name, limit in written.items())
    return f" {text}" if text else ""


def _limit(rules: list[Any], name: str) -> Any:
    """What the rules say of `name`, or None."""
    return next((getattr(rule, name) for rule in rules if getattr(rule, name, None) is not None), None)


def _either(choices: Iterable[str]) -> str:
    *some, last = choices
    return f"{', '.join(some)} or {last}" if some else last


# --- what is wrong ------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where in the schema a problem is."""

    path: Keys
    owner: type[Section]
    """The section that holds the key, or would if it had such a key."""
    options: list[type[Section]]
    """What that section may be where `kind` chooses; else only the section itself."""
    kind: str | None
    annotation: Any
    """What the value may be: a field's annotation, or that of an item of a list or mapping; None: unknown."""
    rules: list[Any]


OWN_KINDS = ("shortener", "task")
"""The sections whose kinds a file of the user's own may add to."""


def problems(
    error: ValidationError, tree: Tree, by_set: Callable[[Keys], bool] = lambda place: False
) -> list[tuple[Keys, str]]:
    """Every problem pydantic found, as (path in the recipe, one plain sentence).

    Args:
        tree: the recipe that it found them in.
        by_set: whether the value at a path was given by `--set`, and is best changed by it.
    """
    found: list[tuple[Keys, str]] = []
    for item in error.errors(include_url=False):
        place = _follow(item["loc"])
        if item["type"] == "value_error" and isinstance(item["ctx"]["error"], Misfit):
            found += [((*place.path, *key.split(".")), text) for key, text in item["ctx"]["error"].problems]
        elif item["type"] == "value_error":
            found.append((place.path, str(item["ctx"]["error"])))
        elif item["type"] in RARE:
            found.append((place.path, item["msg"]))
        elif item["type"] == "union_tag_not_found":
            found.append(((*place.path, "kind"), f"missing; expected {_either(_kinds_of(place))}"))
        elif item["type"] == "union_tag_invalid":
            found.append(((*place.path, "kind"), _wrong_kind(place, item["input"]["kind"])))
        elif item["type"] == "missing":
            found.append((place.path, f"missing; expected {_expected_at(place)}"))
        elif item["type"] == "extra_forbidden":
            found.append((place.path, _unknown(place, tree, by_set)))
        else:
            found.append((place.path, _wrong_value(place, item["input"])))
    return found


def _follow(location: tuple[int | str, ...]) -> _Place:
    """The place of a pydantic location, which puts the chosen kind between a section and its settings."""
    place = _Place((), Recipe, [Recipe], None, Recipe, [])
    inside: list[type[Section]] = [Recipe]  # what the next part is a key of, or chooses from
    options, kind = inside, None
    for part in location:
        if len(inside) > 1:
            kind = str(part)
            inside = [section for section in inside if part in kinds(section)]
            continue
        path = (*place.path, part)
        if inside:
            field = inside[0].model_fields.get(str(part))
            annotation, rules = (field.annotation, field.metadata) if field else (None, [])
            place = _Place(path, inside[0], options, kind, annotation, rules)
            inside = options = sections(annotation)
            kind = None
        else:  # an item of a list, or of a mapping
            item = get_args(_unwrap(place.annotation)[0])[-1]
            place = place._replace(path=path, annotation=item, rules=[])
    return place


def _expected_at(place: _Place) -> str:
    return expected(place.annotation, place.rules)


def _kinds_of(place: _Place) -> list[str]:
    return [kind for section in sections(place.annotation) for kind in kinds(section)]


def _wrong_kind(place: _Place, value: object) -> str:
    names = _kinds_of(place)
    if not isinstance(value, str):
        return f"expected {_either(names)}, not {_shown(value)}"
    near = _meant(value.lower(), names)
    told = f"no such kind: {value!r}; expected {_either(names)}"
    if near:
        return f"{told} (did you mean {near}?)"
    return f"{told}; one of your own comes with --code FILE" if place.path[-1] in OWN_KINDS else told


def _meant(value: str, kinds: list[str]) -> str | None:
    """The kind a value stands for by another name, begins, or is a slip of."""
    if (paper := shorteners.named(value)) in kinds:
        return paper
    begun = [kind for kind in kinds if len(value) > 2 and kind.startswith(value)]
    return begun[0] if len(begun) == 1 else nearest(value, kinds)


def _unknown(place: _Place, tree: Tree, by_set: Callable[[Keys], bool]) -> str:
    """Why a key is not known here, and which one was probably meant."""
    *parents, key = place.path
    own = [name for name in place.owner.model_fields if name != "kind"]
    only = f"only: {', '.join(own)}" if own else "it has none"
    others = [section for section in place.options if key in section.model_fields]
    if others:
        of = _either(repr(kind) for section in others for kind in kinds(section))
        line = _of_another_kind(others[0], place.path, tree)
        given = shlex.quote(f"{dotted(tuple(parents))}={line}")
        way = f"--set {given}" if by_set(place.path) else f"{parents[-1]}: {line}"
        return f"not a setting of {parents[-1]} kind {place.kind!r} ({only}) but of {of}; write {way}"
    near = nearest(str(key), own)
    if near:
        return f"unknown key; did you mean {near}?"
    if place.kind:
        return f"not a setting of {parents[-1]} kind {place.kind!r} ({only})"
    elsewhere = sorted({known.path for known in all_keys() if known.path.rsplit(".", 1)[-1] == key})
    if elsewhere:
        return f"unknown key; did you mean {_either(elsewhere)}?"
    return f"unknown key (known here: {', '.join(own)})"


def _of_another_kind(section: type[Section], path: Keys, tree: Tree) -> str:
    """The section that a key belongs to, on one line: what it must have, the key, and what was given so far.

    Args:
        section: the class that knows the key.
        path: of the key.
    """
    *parents, key = path
    given: Any = tree
    for part in parents:
        given = given[part]
    line = {"kind": kinds(section)[0]}
    for name, field in section.model_fields.items():
        # What is itself a section has kinds of its own, which need not be the same here.
        if name == key or (name in given and name != "kind" and not isinstance(given[name], dict)):
            line[name] = given[name]
        elif field.is_required() and name != "kind":
            line[name] = (field.examples or ["..."])[0]
    return inline(line)


def _wrong_value(place: _Place, value: object) -> str:
    text = f"expected {_expected_at(place)}, not {_shown(value)}"
    inner, rules = _unwrap_optional(place.annotation, place.rules)
    if get_origin(inner) is Literal and isinstance(value, str):
        near = nearest(value.lower(), get_args(inner))
        return f"{text}; did you mean '{near}'?" if near else text
    if get_origin(inner) is list and isinstance(value, str):
        return f"{text}; write [{value}]"
    forbidden = FORBIDDEN.get(_limit(rules, "pattern"))
    if forbidden and isinstance(value, str) and value:
        return f"expected text without {forbidden}, not {_shown(value)}"
    limits = [getattr(rule, name, None) for rule in rules for name in ("lt", "le")]
    if (
        any(limit and 0.9 < limit <= 1 for limit in limits)
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and 1 < value <= 100
    ):
        return f"{text}; {value:g} % is {value / 100:g}"
    return text


def _shown(value: object) -> str:
    """A value of a recipe, short enough for a sentence."""
    if value is None:
        return "null (nothing given)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{shortened(value)}'" if value else "empty text"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "a mapping"
    return shortened(repr(value))
