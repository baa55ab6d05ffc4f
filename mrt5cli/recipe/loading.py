"""From a name to a checked recipe: the file, its bases, the overrides, and one report of all problems."""

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
    """A mapping that `--set` gives: it takes the place of all that stood there, so that `{}` empties it."""


def load(
    source: str | Path | Recipe, overrides: Sequence[str] = (), *, smoke: bool = False, trusted: bool = True
) -> Recipe:
    """A recipe, checked: a file's or a shipped one's, with its bases below and what was typed on top.

    The kinds that it names may be the user's own: what installed packages bring is imported, and, where it is
    a run's recipe or starts from a run, the files that the run was made with.

    Args:
        source: the file, or the name of a shipped recipe; or one that has been loaded, to be changed, whose
            start stays where it is with another seed.
        overrides: assignments "a.b=c", as of `--set`.
        smoke: it will be made small, so that steps given with `--set` need not fit a recipe of full size.
        trusted: False imports no files: it came from somewhere else.

    Raises:
        RecipeError: it is none, with every problem.
        UserError: there is no such recipe, a file cannot be read, or the code of a run has changed.
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
    """`top` laid over `base`: sections key by key; lists and single values as a whole.

    A section whose `kind` changes to one with other settings replaces the base's section: what is set for one
    kind of gate means nothing to another. So does a section that `--set` gives as a mapping.
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
    """Whether two kinds are read by the same section class, so that the settings of one suit the other."""
    return kind == other or any(
        kind in section.kinds() and other in section.kinds() for section in tasks.SECTIONS
    )


def read_chain(path: Path) -> list[tuple[Path, Document]]:
    """The file and its bases, the deepest base first.

    Raises:
        RecipeError: a file of the chain is not a mapping in YAML, or its `extends` leads nowhere or round.
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
            raise RecipeError(shown(chain[0][0]), [("extends", f"the bases go in a circle: {circle}")])


def read(path: Path) -> Document:
    """The mapping in a file of YAML.

    Raises:
        RecipeError: it is none.
        UserError: the file cannot be read, or is not text.
    """
    try:
        with path.open(encoding="utf-8") as file:
            document = parse(file.read(strict_yaml.LONGEST + 1))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 (byte {error.start} is not)") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except YamlProblem as problem:
        raise RecipeError(shown(path), [("", str(problem))]) from None
    if not isinstance(document.tree, dict):
        raise RecipeError(shown(path), [("", "the file is not a recipe; expected `key: value` lines")])
    return document


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
        if not equals or not KEY.fullmatch(key):
            problems.append(
                (assignment, "write key=value, e.g. training.max_steps=100 or task.languages=[en]")
            )
        elif key == "extends":
            problems.append((key, "cannot be set; it names the file's base"))
        elif any(f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.") for other in given):
            also = "; --from and --revision set keys of model, too" if key.startswith("model") else ""
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
    """The recipe as YAML, every default spelt out; `load` reads it back to an equal recipe."""
    return strict_yaml.dump(recipe.model_dump(mode="json"))


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
    files = path.glob("*.yaml") if os.path.isdir(path) else path.parent.glob("*.yaml")
    nearby = {_plain(str(file)): str(file) for file in sorted(files)}
    if os.path.isdir(path):
        hint = f"give a file of it: {listed([*nearby.values()])}" if nearby else None
        if own_code.is_run(path):
            hint = f"its recipe is {path / own_code.RECIPE}; --continue-for N trains the run longer"
        raise UserError(f"{name_or_path} is a directory, not a recipe", hint)
    if os.path.exists(path):
        raise UserError(f"{name_or_path} is not a file", "a recipe is read more than once: save it as a file")
    shapes = {_plain(known): known for known in names} | nearby
    shapes |= {plain.rsplit("/", 1)[-1]: known for plain, known in shapes.items()}
    near = words.nearest(name, shapes)
    raise UserError(
        f"no recipe {str(name_or_path)!r}: neither a file nor the name of a shipped recipe",
        f"did you mean {shapes[near]}?" if near else "`mrt5 recipe list` shows the shipped ones",
    )


def shipped() -> dict[str, Path]:
    """Name and file of every recipe that comes with the toolkit, in the order of their names."""
    root = shipped_directory()
    files = {file.relative_to(root).with_suffix("").as_posix(): file for file in root.rglob("*.yaml")}
    return dict(sorted(files.items(), key=lambda entry: (entry[0].count("/"), entry[0])))


def shipped_directory() -> Path:
    """Where the recipes are: inside the package in a wheel, beside it in a checkout."""
    package = Path(mrt5cli.__file__).parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def _base_file(path: Path, base: object) -> Path:
    if not isinstance(base, str) or not base:
        raise RecipeError(shown(path), [("extends", "expected the file of one other recipe")])
    beside = path.parent / base
    try:
        return beside if os.path.isfile(beside) else find(base)
    except UserError as error:
        raise RecipeError(shown(path), [("extends", error.message)], error.hint) from None


def _plain(name: str) -> str:
    """A recipe's name without what people add to or change in it."""
    return re.sub(r"\.ya?ml$", "", name.removeprefix("recipes/")).replace("-", "_")


def _put(tree: Tree, keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def _start(tree: Tree) -> list[Path]:
    """The directory that the model of a recipe, not checked yet, starts from, if it is one; or the run that
    RUN@step-500 is of."""
    model = tree.get("model")
    start = model.get("start") if isinstance(model, dict) else None
    names = (start, start.rpartition("@")[0]) if isinstance(start, str) else ()
    found = [places.path(name) for name in names if name]
    return [folder for folder in found if os.path.isdir(folder)]


def _texts(tree: object) -> Iterator[str]:
    """Every text in a tree."""
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
