"""YAML as recipes use it: the program reads what a person reads.

PyYAML follows YAML 1.1, where `1e-4` is a string, the language code `no` is false, `1:30` is 90, and a
duplicate key silently keeps the last value. Here numbers and booleans follow YAML 1.2, and duplicate keys and
anchors are errors. Every error names its line.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any, NamedTuple

import yaml

from mrt5cli.json_files import TOO_MANY_DIGITS

_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9_]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
}
"""The plain scalars of YAML 1.2 that are not strings: a pattern and the possible first characters."""

LONGEST, MOST = 2**18, 30_000
"""Maximum characters and values of a recipe; parsing more takes more than a few seconds."""
Keys = tuple[str | int, ...]
"""Keys and list positions from the top of a document to a value."""
Tree = dict[str, Any]
"""A YAML mapping with arbitrary values."""


class YamlProblem(ValueError):
    """Text that is not valid YAML for a recipe; the message is a sentence that names the line."""


class Document(NamedTuple):
    """A parsed file: nested dicts, lists and scalars, and the 1-based line of every key and list item."""

    tree: Any
    lines: dict[Keys, int]


class _Loader(yaml.SafeLoader):
    """Scalars of YAML 1.2; no anchors."""

    values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if event.anchor:
            raise YamlProblem(
                f"{_at(event.start_mark)}: anchors and aliases (& and *) are not allowed in recipes; "
                "repeat the value, or quote text that starts with & or *"
            )
        self.values += 1
        if self.values > MOST:
            raise YamlProblem(f"the file has more than {MOST:,} values, too many for a recipe")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes text that a reader of YAML 1.1 *or* 1.2 would misread; keeps lists on one line."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_multi_representer(dict, yaml.SafeDumper.represent_dict)
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
_Loader.yaml_implicit_resolvers = {}  # a new table, because inherited entries would take precedence
for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), _first)


def parse(text: str) -> Document:
    """Parse a single YAML document.

    Raises:
        YamlProblem: it is not YAML, or uses features that recipes do not allow.
    """
    if len(text) > LONGEST:
        raise YamlProblem(f"the file has more than {LONGEST:,} characters, too many for a recipe")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[Keys, int] = {}
        return Document(None if node is None else _build(loader, node, (), lines), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{_at(mark)}: " if mark else ""
        context = f"{error.context}: " if error.context else ""
        said = f"{context}{error.problem}"
        if "'\\t'" in said:
            said = "tabs are not allowed; indent with spaces"
        elif "constructor for the tag" in said:
            said = "tags (!) are not allowed in recipes"
        raise YamlProblem(f"{where}{said}") from error
    except yaml.reader.ReaderError as error:
        line, found = text.count("\n", 0, error.position) + 1, ord(text[error.position])
        raise YamlProblem(f"line {line}: the character U+{found:04X} is not allowed") from error
    except RecursionError as error:
        raise YamlProblem("the file is nested too deeply") from error
    except (ValueError, OverflowError) as error:
        if isinstance(error, YamlProblem):
            raise
        where = f"line {loader.line + 1}: " if loader else ""
        raise YamlProblem(f"{where}an escape sequence that is not a valid character") from error


_dumped = partial(yaml.dump, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def dump(tree: Tree) -> str:
    """`tree` as YAML text that `parse` reads back to an equal tree; keys keep their order."""
    return str(_dumped(tree, width=110))


def inline(value: object) -> str:
    """A value as YAML on one line, such as "{kind: files, path: my_texts}"; `parse` reads it back.

    Raises:
        YamlProblem: it contains something that YAML cannot represent.
    """
    # Within a list, because a document of a single scalar ends with a line of dots.
    try:
        text = str(_dumped([value], default_flow_style=True, width=math.inf))
    except yaml.representer.RepresenterError as error:
        raise YamlProblem(f"a recipe cannot contain a {type(error.args[-1]).__name__}") from error
    return text.strip().removeprefix("[").removesuffix("]")


def _build(loader: _Loader, node: yaml.Node, path: Keys, lines: dict[Keys, int]) -> Any:
    """The Python value of a node; records the lines of its keys and items in `lines`."""
    if isinstance(node, yaml.MappingNode):
        mapping: Tree = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = _build(loader, key_node, path, {})
            if not isinstance(key, str):
                raise YamlProblem(f"{_at(key_node.start_mark)}: a key must be text; quote {key!r}")
            if key in mapping:
                first = lines[(*path, key)]
                raise YamlProblem(f"{key!r} is given twice, on lines {first} and {line}")
            lines[(*path, key)] = line
            mapping[key] = _build(loader, value_node, (*path, key), lines)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            items.append(_build(loader, item, (*path, index), lines))
        return items
    try:
        value = loader.construct_object(node)
        if isinstance(value, str):  # a surrogate pair of escapes is one character, as in JSON
            value = value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise YamlProblem(f"{_at(node.start_mark)}: a lone surrogate, which is not a character") from error
    except ValueError as error:
        raise YamlProblem(f"{_at(node.start_mark)}: {TOO_MANY_DIGITS}") from error
    return value


def _at(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"
