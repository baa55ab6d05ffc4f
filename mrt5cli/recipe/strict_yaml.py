"""YAML as recipes use it: what a reader sees is what the program gets.

PyYAML follows YAML 1.1, where `1e-4` is text, the language code `no` is false, `1:30` is ninety and a key
given twice silently keeps the last value. Here numbers and booleans are those of YAML 1.2, a key comes once,
and anchors, tags and several documents in a file are refused. Every complaint names its line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from mrt5cli.places import NOT_UTF8
from mrt5cli.text import HALF_CHARACTER

BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|(0|[1-9][0-9_]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
NULL = re.compile(r"~|null|Null|NULL|")

DEEPEST = 20
"""Mappings and lists within one another; recipes need five."""

Keys = tuple[str | int, ...]
"""Keys and list positions from the top of a document to a value."""
Tree = dict[str, Any]
"""A mapping in YAML, with whatever stands in it."""


class YamlProblem(ValueError):
    """Text that is not a recipe's YAML; the message is one sentence that names line and column."""


@dataclass(frozen=True)
class Document:
    """A parsed file: nested dicts, lists and scalars, and the 1-based line of every key and list item."""

    tree: Any
    lines: dict[Keys, int] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Scalars of YAML 1.2; no anchors, no tags, and no more depth than a recipe has."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise YamlProblem(
                f"{_at(event.start_mark)}: anchors and aliases (& and *) are not used in recipes; "
                "write the value again, or put text that starts with one of them in quotes"
            )
        if getattr(event, "tag", None):
            raise YamlProblem(
                f"{_at(event.start_mark)}: tags are not used in recipes; "
                "put text that starts with '!' in quotes"
            )
        if self.depth > DEEPEST:
            raise YamlProblem(
                f"{_at(event.start_mark)}: nested too deeply; a recipe has at most {DEEPEST} mappings and "
                "lists within one another"
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 *or* 1.2 readers would take for something else; lists stay on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, items: list[object]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # PyYAML writes these line separators into single quotes, and reads them back as spaces.
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_multi_representer(dict, yaml.SafeDumper.represent_dict)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)
_Loader.yaml_implicit_resolvers = {}  # its own table: added to the inherited one, ours would come second
for _name, _pattern, _first in (
    ("bool", BOOLEAN, list("tTfF")),
    ("int", INTEGER, list("-+0123456789")),
    ("float", FLOAT, list("-+.0123456789")),
    ("null", NULL, ["~", "n", "N", ""]),
):
    _whole = re.compile(f"(?:{_pattern.pattern})$")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _whole, _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _whole, _first)

_CAUSES = {
    "found character '\\t'": "a tab is used for indentation; use spaces",
    "mapping values are not allowed here": "a ':' where none can be; check indentation or quote the text",
    "could not find expected ':'": "a ':' is missing after the key on the line before",
    "but found another document": "'---' starts a second document; a recipe is one",
}


def parse(text: str) -> Document:
    """The one document in `text`.

    Raises:
        YamlProblem: not YAML, or YAML that recipes do not use.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[Keys, int] = {}
        tree = None if node is None else _build(loader, node, (), lines)
    except yaml.MarkedYAMLError as error:
        raise YamlProblem(_sentence(error)) from error
    except yaml.reader.ReaderError as error:
        line, found = text.count("\n", 0, error.position) + 1, text[error.position]
        why = NOT_UTF8 if HALF_CHARACTER.match(found) else f"the character U+{ord(found):04X} is not allowed"
        raise YamlProblem(f"line {line}: {why}") from error
    except RecursionError as error:
        raise YamlProblem("nested too deeply") from error
    return Document(tree, lines)


def dump(tree: Tree, *, ascii_only: bool = False) -> str:
    """`tree` as YAML text that `parse` reads back to an equal tree; keys keep their order.

    Args:
        ascii_only: write other characters as YAML's escapes.
    """
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=not ascii_only, width=110)


def inline(value: object) -> str:
    """A value as YAML on one line, e.g. "{kind: files, path: my_texts}"; `parse` reads it back."""
    # Within a list, because a document that is one scalar ends with a line of dots.
    text = yaml.dump(
        [value],
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=True,
        width=float("inf"),
    )
    return text.strip().removeprefix("[").removesuffix("]")


def _build(loader: _Loader, node: yaml.Node, path: Keys, lines: dict[Keys, int]) -> Any:
    """The plain value of a node; fills `lines` on the way."""
    if isinstance(node, yaml.MappingNode):
        mapping: Tree = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = _build(loader, key_node, path, {})
            if not isinstance(key, str):
                raise YamlProblem(f"{_at(key_node.start_mark)}: a key must be text; put {key!r} in quotes")
            if key in mapping:
                first = lines[(*path, key)]
                raise YamlProblem(f"{key!r} is given twice, on line {first} and on line {line}")
            lines[(*path, key)] = line
            mapping[key] = _build(loader, value_node, (*path, key), lines)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            items.append(_build(loader, item, (*path, index), lines))
        return items
    if HALF_CHARACTER.search(node.value):  # from an escape such as "\\ud800"
        raise YamlProblem(f"{_at(node.start_mark)}: {NOT_UTF8}")
    try:
        return loader.construct_object(node)
    except ValueError:  # Python reads whole numbers of up to 4300 digits: as text, it is refused with its key
        return node.value


def _at(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _sentence(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's complaint in one line: where, what, and what usually causes it."""
    mark = error.problem_mark or error.context_mark
    problem = error.problem or "this is not YAML"
    text = next((cause for start, cause in _CAUSES.items() if problem.startswith(start)), None)
    if text is None and problem.endswith("that cannot start any token"):
        text = f"{problem}; put the text in quotes"
    elif text is None:
        text = f"{error.context}: {problem}" if error.context else problem
    return f"{_at(mark)}: {text}" if mark else text
