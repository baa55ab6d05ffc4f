"""The recipe schema as text: its keys, the value each expects, and the problems of an invalid recipe."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails

from mrt5cli import __version__
from mrt5cli.own_code import why_missing
from mrt5cli.recipe.schema import Recipe
from mrt5cli.recipe.section import CODE, DURATION, NAME, ONE_LINE, PROSE, Misfit, when_kinds_are_added
from mrt5cli.recipe.strict_yaml import Keys, inline
from mrt5cli.text import shortened

Node = dict[str, Any]
"""A JSON schema, or a part of one."""
WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "object": "a mapping of text to text",
    "null": "null",
}
LIMITS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "of at most",
    "exclusiveMaximum": "below",
}
EXTENDS = {
    "type": "string",
    "description": "the recipe to build on: a file next to this one, or a shipped recipe; keys given here "
    "override those of the base one by one, and a section of another kind replaces the base's",
}
OWN_KINDS = ("shortener", "task")
"""Sections whose kinds custom code may extend."""


class Key(NamedTuple):
    """One setting of a recipe."""

    path: str
    """Dotted key, such as "model.shortener.layer"."""
    kind: str | None
    """The kind of its section, if the section has several kinds."""
    schema: Node
    required: bool
    within: tuple[str, ...]
    """Key and kind of each enclosing section with several kinds, such as "task.text2text"."""


@cache
def schema() -> Node:
    """The JSON schema of a recipe with every reference expanded."""
    whole = Recipe.model_json_schema()
    definitions = whole.pop("$defs")

    def expanded(node: Any) -> Any:
        if isinstance(node, list):
            return [expanded(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            node = definitions[node["$ref"].rsplit("/", 1)[-1]] | node
        return {key: expanded(value) for key, value in node.items() if key not in ("$ref", "discriminator")}

    whole["properties"] = {"extends": EXTENDS, **whole["properties"]}
    return expanded(whole)


when_kinds_are_added(schema.cache_clear)


def document() -> Node:
    """The JSON schema of a recipe as a standalone file, for editors."""
    whole = dict(schema())
    # Required keys may come from a base.
    whole["anyOf"] = [{"required": whole.pop("required")}, {"required": ["extends"]}]
    return {"$schema": GenerateJsonSchema.schema_dialect, "$id": f"urn:mrt5cli:recipe:{__version__}", **whole}


def all_keys() -> list[Key]:
    """Every setting of the schema, sections included, in the order of the schema."""
    return list(_keys(schema(), "", None, ()))


def _keys(section: Node, prefix: str, kind: str | None, within: tuple[str, ...]) -> Iterator[Key]:
    for name, node in section["properties"].items():
        yield Key(f"{prefix}{name}", kind, node, name in section.get("required", ()), within)
        found = sections(node) or sections(node.get("items", {}))
        item = "" if sections(node) else "[]"
        for inner in found:
            kinds = _kinds([inner]) if len(found) > 1 else []
            places = (*within, *(f"{prefix}{name}.{kind}".replace("[]", "") for kind in kinds))
            yield from _keys(inner, f"{prefix}{name}{item}.", ", ".join(kinds) or None, places)


def sections(node: Node) -> list[Node]:
    """The sections that a value may be: several if `kind` selects one, none for a plain value."""
    if "properties" in node:
        return [node]
    options = node.get("oneOf") or node.get("anyOf") or []
    return [section for option in options for section in sections(option)]


def _kinds(options: Iterable[Node]) -> list[str]:
    """The values of `kind` that select one of the given sections."""
    found = [option["properties"].get("kind", {}) for option in options]
    return [kind for node in found for kind in node.get("enum", [node.get("const")])]


def expected(node: Node) -> str:
    """What a value must be, such as "a whole number of at least 1, or null"."""
    if "anyOf" in node:
        return ", or ".join(expected(option) for option in node["anyOf"])
    if found := sections(node):
        which = f"with kind {either(_kinds(found))}" if "oneOf" in node else "(key: value lines)"
        return f"a section {which}"
    if "const" in node or "enum" in node:
        return either(repr(choice) for choice in node.get("enum", [node.get("const")]))
    if node["type"] == "array":
        item = expected(node["items"])
        return f"a list of {item.replace('a section', 'sections', 1)}"
    what = WORDS[node["type"]]
    limits = {
        name: f"{limit:g}" if isinstance(limit := node[name], float) else f"{limit:,}"
        for name in LIMITS
        if name in node
    }
    if {"minimum", "maximum"} <= limits.keys():
        return f"{what} from {limits['minimum']} to {limits['maximum']}"
    rules = " and ".join(f"{LIMITS[name]} {limit}" for name, limit in limits.items())
    return f"{what} {rules}".rstrip()


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` is most likely a misspelling of."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.65)), None)


def dotted(path: Keys) -> str:
    """A path in dotted notation: "task.languages[0]"."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def either(choices: Iterable[str]) -> str:
    """ "a, b or c"."""
    *some, last = choices
    return f"{', '.join(some)} or {last}" if some else last


# --- what is wrong ------------------------------------------------------------------------------------------


MANY = 100
"""Maximum number of problems to report."""
MESSAGES = {
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length:,} characters",
    "string_unicode": "must be valid Unicode",
    "too_short": "must list at least {min_length:,}, not {actual_length:,}",
    "too_long": "must list at most {max_length:,}",
}
"""Our messages for pydantic's errors about lengths; every text with a minimum length has 1."""
PATTERNS = {
    PROSE: "must not contain control characters",
    ONE_LINE: "must be a single line without control characters",
    CODE: "must not contain / or \\ or start with a dot",
    NAME: "may contain a-z, 0-9, '.', '_' and '-', and must start with a letter or digit",
    DURATION: "must be a whole number with a unit s, m or h, such as 30m",
}
"""Our messages for texts that do not match a pattern."""


def problems(error: ValidationError) -> list[tuple[Keys, str]]:
    """Pydantic's errors as pairs of (path in the recipe, one plain sentence), at most `MANY` of them."""
    whole, found = schema(), error.errors(include_url=False)
    more: list[tuple[Keys, str]] = [((), f"and {len(found) - MANY:,} more")] if len(found) > MANY else []
    return [*(problem for item in found[:MANY] for problem in _problems_of(item, whole)), *more]


def _problems_of(item: ErrorDetails, whole: Node) -> Iterator[tuple[Keys, str]]:
    place = _follow(item["loc"], whole)
    kinds = either(_kinds(sections(place.node)) or [""])
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, Misfit):
        for key, text in cause.problems:
            below = (int(part) if part.isdigit() else part for part in key.split("."))
            yield (*place.path, *below), text
    elif item["type"] == "missing":
        yield place.path, f"missing; expected {expected(place.node)}"
    elif item["type"] == "extra_forbidden":
        yield place.path, _unknown(place)
    elif item["type"] == "union_tag_not_found":
        yield (*place.path, "kind"), f"missing; expected {kinds}"
    elif item["type"] == "union_tag_invalid":
        kind, last = str(item["ctx"]["tag"]), str(place.path[-1])
        own = f"; {why_missing(last, kind)}" if last in OWN_KINDS else ""
        yield (*place.path, "kind"), f"unknown kind {kind!r}; expected {kinds}{own}"
    elif item["type"] == "value_error":
        yield place.path, str(cause)
    elif item["type"] == "string_pattern_mismatch":
        yield place.path, f"{PATTERNS[item['ctx']['pattern']]}, not {_shown(item['input'])}"
    elif item["type"] in MESSAGES:
        yield place.path, MESSAGES[item["type"]].format(**item.get("ctx", {}))
    else:
        yield place.path, f"expected {expected(place.node)}, not {_shown(item['input'])}"


def _shown(value: object) -> str:
    return shortened(repr(value) if isinstance(value, str) else inline(value))


class _Place(NamedTuple):
    """The position of a problem in the schema."""

    path: Keys
    node: Node
    """The schema of the value; empty for an unknown key."""
    options: list[Node]
    """The possible sections that contain the key: several if `kind` selects one."""
    section: Node
    """The selected one."""


def _follow(location: Keys, whole: Node) -> _Place:
    """Resolve a pydantic location, which has the selected kind between a section and its settings."""
    path: Keys = ()
    node = section = whole
    options = [whole]
    for part in location:
        found = sections(node)
        if len(found) > 1:
            options, node = found, next(one for one in found if part in _kinds([one]))
            continue
        if found:
            section = found[0]
            options = options if section in options else found
            node = section["properties"].get(part, {})
        else:
            node = node.get("items") or next(iter(node["patternProperties"].values()))
        path = (*path, part)
    return _Place(path, node, options, section)


def _unknown(place: _Place) -> str:
    """Why a key is unknown here, and which one was probably meant."""
    key = str(place.path[-1])
    known = [name for name in place.section["properties"] if name != "kind"]
    others = [option for option in place.options if key in option["properties"]]
    if others:
        here = either(map(repr, _kinds([place.section])))
        return f"not a setting of kind {here}, but of {either(map(repr, _kinds(others)))}"
    if near := nearest(key, known):
        return f"unknown key; did you mean {near}?"
    if elsewhere := sorted({one.path for one in all_keys() if one.path.rsplit(".", 1)[-1] == key}):
        return f"unknown key; did you mean {either(elsewhere)}?"
    return f"unknown key (known here: {', '.join(known) or 'none'})"
