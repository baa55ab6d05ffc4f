"""From a name to a validated recipe: the file, its bases, the overrides, and one report of all problems."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

import mrt5cli
from mrt5cli import own_code, places
from mrt5cli.errors import RecipeError, UserError
from mrt5cli.places import shown
from mrt5cli.recipe import strict_yaml, tasks, words
from mrt5cli.recipe.schema import Recipe, with_seed_filled_in
from mrt5cli.recipe.strict_yaml import Document, Keys, Tree, YamlProblem, parse
from mrt5cli.text import listed

OVERRIDE = "--set"
KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*){0,20}")
SCHEMA_HINT = "`mrt5 recipe schema` explains every key"


class Whole(Tree):
    """A mapping given with `--set`: it replaces the existing one as a whole, so `{}` empties it."""


def load(
    source: str | Path | Recipe, overrides: Sequence[str] = (), *, smoke: bool = False, trusted: bool = True
) -> Recipe:
    """Load and validate a recipe: its bases first, then the file itself, then the overrides.

    Its kinds may be custom: entry points of installed packages are imported, and so are the custom files of
    a run if the recipe belongs to that run or starts from it.

    Args:
        source: a file or the name of a shipped recipe; or a loaded recipe to change, which keeps its start
            even if the seed changes.
        overrides: assignments "a.b=c", as in `--set`.
        smoke: the recipe will be shrunk, so steps given with `--set` need not fit one of full size.
        trusted: False imports no custom files, for a recipe of unknown origin.

    Raises:
        RecipeError: the recipe is invalid; lists every problem.
        UserError: the recipe does not exist, a file cannot be read, or the code of a run has changed.
    """
    if isinstance(source, Recipe):
        path, chain, tree = Path(source.name), [], source.model_dump(mode="json")
    else:
        path, tree = find(source), {}
        chain = read_chain(path)
    origins: dict[Keys, str] = {}
    for file, document in chain:
        tree = merge(tree, document.tree)
        prefix = "" if file == path else f"{shown(file)}, "
        origins |= {keys: f"{prefix}line {line}" for keys, line in document.lines.items()}
    given = parse_overrides(overrides)
    if smoke and "max_steps" in tree.get("training", {}):
        given.get("training", {}).pop("max_steps", None)
    tree = with_seed_filled_in(merge(tree, given))
    origins |= dict.fromkeys(_paths(given), OVERRIDE)
    own_code.take_in_packages(asked=set(_texts(tree)))
    if trusted:
        for place in (*(file for file, _ in chain), *_start(tree)):
            own_code.import_again(place)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        present = set(_paths(tree))
        found = [
            (words.dotted(place), f"{text} ({origins[place]})" if place in present & origins.keys() else text)
            for place, text in words.problems(error)
        ]
        raise RecipeError(shown(path), found, SCHEMA_HINT) from None


def merge(base: Tree, top: Tree) -> Tree:
    """Merge `top` into `base`: sections key by key; lists and scalars as a whole.

    A section whose `kind` changes to one with other settings replaces the base's section, because settings
    of one kind mean nothing to another. So does a section given as a mapping with `--set`.
    """
    if "kind" in base and "kind" in top and not _same_settings(base["kind"], top["kind"]):
        return top
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        both = isinstance(below, dict) and isinstance(value, dict) and not isinstance(value, Whole)
        merged[key] = merge(below or {}, value) if both else value
    return merged


def _same_settings(kind: object, other: object) -> bool:
    """Whether two kinds share a section class, so that the settings of one are valid for the other."""
    return kind == other or any(
        kind in section.kinds() and other in section.kinds() for section in tasks.SECTIONS
    )


def read_chain(path: Path) -> list[tuple[Path, Document]]:
    """Read a file and its bases; the deepest base comes first.

    Raises:
        RecipeError: a file of the chain is not a YAML mapping, or its `extends` is missing or circular.
        UserError: a file cannot be read.
    """
    chain: list[tuple[Path, Document]] = []
    while True:
        document = read(path)
        chain.insert(0, (path, document))
        base = document.tree.pop("extends", None)
        if base is None:
            return chain
        path = _base_file(path, base)
        files = [file.resolve() for file, _ in reversed(chain)]
        if path.resolve() in files:
            circle = " -> ".join(file.name for file in (*files, path))
            raise RecipeError(shown(chain[0][0]), [("extends", f"the bases form a cycle: {circle}")])


def read(path: Path) -> Document:
    """Read the mapping in a YAML file.

    Raises:
        RecipeError: it does not contain a mapping.
        UserError: the file cannot be read, or is not text.
    """
    try:
        with path.open(encoding="utf-8") as file:
            document = parse(file.read(strict_yaml.LONGEST + 1))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (at byte {error.start})", "save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except YamlProblem as problem:
        raise RecipeError(shown(path), [("", str(problem))]) from None
    if not isinstance(document.tree, dict):
        what = "is empty" if document.tree is None else "is not a recipe"
        raise RecipeError(shown(path), [("", f"the file {what}; expected `key: value` lines")])
    return document


def parse_overrides(assignments: Sequence[str]) -> Tree:
    """Parse assignments "a.b=c" into one tree, in which a mapping given as a value is `Whole`.

    Raises:
        RecipeError: lists every malformed assignment with the correct syntax.
    """
    tree: Tree = {}
    problems: list[tuple[str, str]] = []
    given: list[str] = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not KEY.fullmatch(key):
            problems.append(
                (assignment, "write key=value, such as training.max_steps=100 or task.languages=[en]")
            )
        elif key == "extends":
            problems.append((key, "cannot be set; it names the base of a recipe file"))
        elif any(f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.") for other in given):
            also = "; --from and --revision also set keys of model" if key.startswith("model") else ""
            problems.append((key, f"set twice{also}"))
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


def dump(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; `load` reads it back to an equal recipe."""
    return strict_yaml.dump(recipe.model_dump(mode="json"))


def find(name_or_path: str | Path) -> Path:
    """Find a recipe file by path, or a shipped recipe by name, tolerating common variants of the name.

    Raises:
        UserError: no recipe has the name, or the name is ambiguous.
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
            f"{name_or_path} is the name of {len(matches)} recipes", f"choose one of {', '.join(matches)}"
        )
    files = path.glob("*.yaml") if os.path.isdir(path) else path.parent.glob("*.yaml")
    nearby = {_plain(str(file)): str(file) for file in sorted(files)}
    if os.path.isdir(path):
        hint = f"choose a file in it: {listed([*nearby.values()])}" if nearby else None
        if own_code.is_run(path):
            hint = f"use {path / own_code.RECIPE}, or --continue-for N to train the run longer"
        raise UserError(f"{name_or_path} is a directory, not a recipe", hint)
    if os.path.exists(path):
        raise UserError(
            f"{name_or_path} is not a file", "save the recipe as a file; it is read more than once"
        )
    shapes = {_plain(known): known for known in names} | nearby
    shapes |= {plain.rsplit("/", 1)[-1]: known for plain, known in shapes.items()}
    near = words.nearest(name, shapes)
    raise UserError(
        f"no recipe {str(name_or_path)!r}: neither a file nor the name of a shipped recipe",
        f"did you mean {shapes[near]}?" if near else "`mrt5 recipe list` lists the shipped ones",
    )


def shipped() -> dict[str, Path]:
    """Names and files of the shipped recipes, sorted by name with top-level ones first."""
    root = shipped_directory()
    files = {file.relative_to(root).with_suffix("").as_posix(): file for file in root.rglob("*.yaml")}
    return dict(sorted(files.items(), key=lambda entry: (entry[0].count("/"), entry[0])))


def builder_of(data: Path) -> str | None:
    """The command by which a shipped recipe's comments build the data at this path, if there is one."""
    command = re.compile(rf"mrt5 data build \S+ {re.escape(data.as_posix())}(?: .*|(?=\.?$))", re.MULTILINE)
    found = (command.search(file.read_text(encoding="utf-8")) for file in shipped().values())
    return next((match[0] for match in found if match), None)


def shipped_directory() -> Path:
    """The folder of the shipped recipes: inside the package in a wheel, next to it in a checkout."""
    package = Path(mrt5cli.__file__).parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def _base_file(path: Path, base: object) -> Path:
    if not isinstance(base, str) or not base:
        raise RecipeError(shown(path), [("extends", "expected the file or the name of one recipe")])
    beside = path.parent / base
    try:
        return beside if os.path.isfile(beside) else find(base)
    except UserError as error:
        raise RecipeError(shown(path), [("extends", error.message)], error.hint) from None


def _plain(name: str) -> str:
    """Normalize a recipe's name: without folder prefix and suffix, hyphens as underscores."""
    return re.sub(r"\.ya?ml$", "", name.removeprefix("recipes/")).replace("-", "_")


def _put(tree: Tree, keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def _start(tree: Tree) -> list[Path]:
    """The directory, or the run of RUN@step-500, that a not yet validated recipe starts from, if any."""
    model = tree.get("model")
    start = model.get("start") if isinstance(model, dict) else None
    names = (start, start.rpartition("@")[0]) if isinstance(start, str) else ()
    found = [places.path(name) for name in names if name]
    return [folder for folder in found if os.path.isdir(folder)]


def _texts(tree: object) -> Iterator[str]:
    """Every string in a tree."""
    if isinstance(tree, str):
        yield tree
    for item in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _texts(item)


def _paths(tree: object, path: Keys = ()) -> Iterator[Keys]:
    """The path of every key and list item."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from _paths(value, (*path, key))
