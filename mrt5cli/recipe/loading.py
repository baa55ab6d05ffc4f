"""From a name to a checked recipe: the file, its bases, the overrides, and one report of all problems."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import mrt5cli
from mrt5cli import places
from mrt5cli.errors import RecipeError, UserError
from mrt5cli.recipe import strict_yaml, words
from mrt5cli.recipe.schema import Recipe
from mrt5cli.recipe.strict_yaml import Document, Keys, Tree, YamlProblem, parse
from mrt5cli.stand_ins import pointer_or_page

OVERRIDE = "--set"
LARGEST_FILE = 1_000_000
"""Bytes."""
KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
SCHEMA_HINT = "`mrt5 recipe schema` explains every key"


class Whole(Tree):
    """A mapping that `--set` gives: it takes the place of all that stood there, so that `{}` empties it."""


@dataclass(frozen=True)
class Layer:
    """One file of a chain of bases, all overrides together, or what another option of a command sets."""

    where: str
    tree: Tree
    lines: dict[Keys, int] = field(default_factory=dict)
    typed: bool = False
    """Whether it was typed, so that `where` is an option and not a file."""


def load(
    source: str | Path,
    overrides: Sequence[str] = (),
    options: Mapping[str, Mapping[str, object]] | None = None,
) -> Recipe:
    """A recipe, checked: a file's or a shipped one's, with its bases below and what was typed on top.

    Args:
        source: the file, or the name of a shipped recipe.
        overrides: assignments "a.b=c", as of `--set`.
        options: what other options of a command set, as values by dotted key, by the option's name; a problem
            with one is told by that name.

    Raises:
        RecipeError: it is none, with every problem.
        UserError: there is no such recipe, or a file cannot be read.
    """
    path = find(source)
    layers = read_chain(path)
    if overrides:
        layers.append(Layer(OVERRIDE, parse_overrides(overrides), typed=True))
    for option, values in (options or {}).items():
        tree: Tree = {}
        for key, value in values.items():
            _put(tree, key.split("."), value)
        layers.append(Layer(option, tree, typed=True))
    tree = {}
    for layer in layers:
        tree = merge(tree, layer.tree)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        main = [layer for layer in layers if not layer.typed][-1]
        problems = [
            (words.dotted(place), text + (_origin(place, layers, main) if _given(tree, place) else ""))
            for place, text in words.problems(error, tree, by_set=lambda place: _by_set(layers, place))
        ]
        raise RecipeError(main.where, problems, SCHEMA_HINT) from None


def merge(base: Tree, top: Tree) -> Tree:
    """`top` laid over `base`: sections key by key; lists, mappings of text and single values as a whole.

    A section whose `kind` changes to one with other settings replaces the base's section: what is set for one
    kind of gate means nothing to another. So does a section that `--set` gives as a mapping.
    """
    if "kind" in base and "kind" in top and not words.same_settings(base["kind"], top["kind"]):
        return top
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        whole = isinstance(value, Whole) or key in words.mappings()
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = merge(below or {}, value) if both and not whole else value
    return merged


def read_chain(path: Path) -> list[Layer]:
    """The file and its bases, the deepest base first.

    Raises:
        RecipeError: a file of the chain is not a mapping in YAML, or its `extends` leads nowhere or round.
        UserError: a file cannot be read.
    """
    layers: list[Layer] = []
    seen: list[Path] = []
    while True:
        where = shown(path)
        seen.append(path.resolve())
        document = read(path)
        tree = document.tree
        if not isinstance(tree, dict):
            kind = "a list" if isinstance(tree, list) else "a single value"
            instead = pointer_or_page(path.read_bytes()) or kind
            found = "empty" if tree is None else f"not a recipe but {instead}"
            raise RecipeError(where, [("", f"the file is {found}; expected `key: value` lines")])
        base = tree.pop("extends", None)
        layers.insert(0, Layer(where, tree, document.lines))
        if base is None:
            return layers
        path = _base_file(path, where, base)
        if path.resolve() in seen:
            circle = " -> ".join(file.name for file in (*seen, path.resolve()))
            raise RecipeError(where, [("extends", f"the bases go in a circle: {circle}")])


def read(path: Path) -> Document:
    """The YAML in a file.

    Raises:
        RecipeError: it is not YAML.
        UserError: it cannot be read, or is not text.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise UserError(f"{path} is no recipe: it has {size:,} bytes, one has at most {LARGEST_FILE:,}")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 (byte {error.start} is not)") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return parse(text)
    except YamlProblem as problem:
        raise RecipeError(shown(path), [("", str(problem))]) from None


def parse_overrides(assignments: Sequence[str]) -> Tree:
    """Assignments "a.b=c" as one tree, in which a mapping given as a value is `Whole`.

    Raises:
        RecipeError: every assignment that is none, with the way to write it.
    """
    tree: Tree = {}
    problems: list[tuple[str, str]] = []
    given: list[str] = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        clash = next((other for other in given if _overlap(key, other)), None)
        if not equals:
            problems.append((assignment, "no '='; write key=value, e.g. training.max_steps=100"))
        elif not KEY.fullmatch(key):
            list_hint = (
                "a list is set as a whole, e.g. task.languages=[en, fr]" if re.search(r"[.\[]\d", key) else ""
            )
            problems.append(
                (key or "=", list_hint or "not a key; write names with dots, e.g. training.max_steps")
            )
        elif key == "extends":
            problems.append((key, "cannot be set; it names the file's base"))
        elif clash:
            problems.append((key, f"{clash} is set as well" if clash != key else "set twice"))
        else:
            given.append(key)
            try:
                value = parse(text).tree
                _put(tree, key.split("."), Whole(value) if isinstance(value, dict) else value)
            except YamlProblem as problem:
                problems.append((key, f"the value is not YAML: {problem}"))
    if problems:
        raise RecipeError(OVERRIDE, problems)
    return tree


# --- files --------------------------------------------------------------------------------------------------


def dump(recipe: Recipe, *, ascii_only: bool = False) -> str:
    """The recipe as YAML, every default spelt out; `load` reads it back to an equal recipe.

    Args:
        ascii_only: write other characters as YAML's escapes, for a stream that is not UTF-8.
    """
    return strict_yaml.dump(recipe.model_dump(mode="json"), ascii_only=ascii_only)


def find(name_or_path: str | Path) -> Path:
    """The file of a recipe, or of a shipped one by its name as people write it.

    Raises:
        UserError: there is none, or the name is that of several.
    """
    path = places.path(name_or_path)
    if os.path.isfile(path):
        return path
    name = _plain(str(name_or_path))
    names = shipped()
    matches = [known for known in names if _plain(known) == name]
    matches = matches or [known for known in names if _plain(known.rsplit("/", 1)[-1]) == name]
    if len(matches) == 1:
        return names[matches[0]]
    if matches:
        raise UserError(
            f"{name_or_path} is the name of {len(matches)} recipes", f"one of: {', '.join(matches)}"
        )
    if os.path.isdir(path):
        inside = sorted(str(file) for file in path.glob("*.yaml"))
        raise UserError(
            f"{name_or_path} is a directory, not a recipe",
            f"give a file of it: {', '.join(inside)}" if inside else None,
        )
    near = _nearest(path, name, names)
    raise UserError(
        f"no recipe {str(name_or_path)!r}: neither a file nor the name of a shipped recipe",
        f"did you mean {near}?" if near else "`mrt5 recipe list` shows the shipped ones",
    )


def shipped() -> dict[str, Path]:
    """Name and file of every recipe that comes with the toolkit, in the order of their names."""
    root = shipped_directory()
    files = {file.relative_to(root).with_suffix("").as_posix(): file for file in root.rglob("*.yaml")}
    return dict(sorted(files.items(), key=lambda entry: (entry[0].count("/"), entry[0])))


def shipped_directory() -> Path:
    """Where the recipes are: inside the package in a wheel, beside it in a checkout."""
    package = Path(mrt5cli.__file__).parent
    if (package / "recipes").is_dir():
        return package / "recipes"
    if (package.parent / "pyproject.toml").is_file() and (package.parent / "recipes").is_dir():
        return package.parent / "recipes"
    raise UserError("this installation of mrt5cli has no recipes", "install it again")


def _base_file(path: Path, where: str, base: object) -> Path:
    if not isinstance(base, str) or not base:
        raise RecipeError(where, [("extends", "expected the file of one other recipe")])
    beside = path.parent / base
    if os.path.isfile(beside):
        return beside
    try:
        return find(base)
    except UserError as error:
        text = f"{base} is neither a file beside this one nor the name of a shipped recipe"
        raise RecipeError(where, [("extends", text)], error.hint) from None


def _nearest(path: Path, name: str, names: Iterable[str]) -> str | None:
    """The shipped recipe or the file nearby that was probably meant."""
    shapes = {_plain(known): known for known in names}
    shapes |= {plain.rsplit("/", 1)[-1]: known for plain, known in shapes.items()}
    if os.path.isdir(path.parent):
        shapes |= {_plain(str(file)): str(file) for file in path.parent.glob("*.yaml")}
    near = words.nearest(name, shapes)
    return shapes[near] if near else None


def _plain(name: str) -> str:
    """A recipe's name without what people add to or change in it."""
    return re.sub(r"\.ya?ml$", "", name.replace("\\", "/").removeprefix("recipes/")).replace("-", "_")


# --- small pieces -------------------------------------------------------------------------------------------


def shown(path: Path) -> str:
    """A file's name for messages: relative when it lies below the working directory."""
    absolute = Path(os.path.abspath(path))
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def _put(tree: Tree, keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def _overlap(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


def _origin(place: Keys, layers: list[Layer], main: Layer) -> str:
    """Where the value at `place` was given, as a remark to put behind a problem."""
    for layer in reversed(layers):
        if not _given(layer.tree, place):
            continue
        if layer.typed:
            return f" ({layer.where})"
        line = layer.lines.get(place)
        where = [] if layer is main else [layer.where]
        return f" ({', '.join([*where, f'line {line}'])})"
    return ""


def _by_set(layers: list[Layer], place: Keys) -> bool:
    return any(layer.typed and layer.where == OVERRIDE and _given(layer.tree, place) for layer in layers)


def _given(tree: Any, place: Keys) -> bool:
    for part in place:
        held: Iterable[Any] = (
            tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
        )
        if part not in held:
            return False
        tree = tree[part]
    return True
