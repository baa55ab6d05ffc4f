"""`mrt5 recipe`: list, show, check, copy recipes, and explain their keys."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrt5cli.errors import RecipeError, UserError

if TYPE_CHECKING:
    from mrt5cli.recipe import Recipe
    from mrt5cli.recipe_words import Key

app = typer.Typer(no_args_is_help=True, help="List, show, check and copy recipes, and explain their keys.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
Name = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")
]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the recipes that come with the toolkit.

    Examples:

      mrt5 recipe list

      mrt5 recipe list --json
    """
    from mrt5cli import recipe_load

    found = [(name, recipe_load.load(path)) for name, path in recipe_load.shipped().items()]
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "model": model_in_words(recipe),
            "steps": recipe.training.max_steps,
            "paper": f"{recipe.paper.version} {recipe.paper.experiment}" if recipe.paper else None,
            "description": recipe.description,
        }
        for name, recipe in found
    ]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    cells = [
        [row["name"], row["model"], f"{row['steps']:,}", row["paper"] or "-", row["description"]]
        for row in rows
    ]
    _print_columns(["name", "model", "steps", "paper", "what"], cells)


@app.command()
def show(name: Name, set_: Overrides = None, as_json: Json = False) -> None:
    """Print a recipe as it would run: bases and overrides applied, every default spelt out.

    Examples:

      mrt5 recipe show quickstart

      mrt5 recipe show pctrl40 --set controller.target_deletion_rate=0.5 --json
    """
    from mrt5cli.recipe import dump, load

    recipe = load(name, set_ or ())
    print(
        json.dumps(recipe.model_dump(mode="json"), indent=2, ensure_ascii=False)
        if as_json
        else dump(recipe).rstrip()
    )


@app.command()
def check(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Recipe files, directories of them, or shipped names."),
    ],
    set_: Overrides = None,
    build: Annotated[
        bool,
        typer.Option("--build/--no-build", help="Also build each model, without allocating its weights."),
    ] = True,
    as_json: Json = False,
) -> None:
    """Check recipes and count them; the exit code is 2 if any has a problem.

    Examples:

      mrt5 recipe check my_recipe.yaml

      mrt5 recipe check recipes/ --no-build
    """
    from mrt5cli import recipe_load

    checked: dict[str, Recipe] = {}
    broken: dict[str, UserError] = {}
    for path in _files(paths):
        try:
            checked[str(path)] = recipe_load.load(path, set_ or ())
        except UserError as error:
            broken[str(path)] = error
    unbuilt: dict[str, str] = {}
    # Building imports torch, which takes seconds: a recipe with a typing mistake is answered before that.
    if build and not broken:
        unbuilt, unfit = _build_all(checked)
        broken |= unfit
    if as_json:
        print(json.dumps(_check_document([*checked, *broken], broken, unbuilt), indent=2, ensure_ascii=False))
    else:
        for problem in broken.values():
            print(f"{problem.message}\n")
        for path_text, reason in unbuilt.items():
            print(f"{path_text}: not built: {reason}")
        total = len(checked.keys() | broken.keys())
        problems = sum(len(getattr(problem, "problems", [None])) for problem in broken.values())
        print(f"{_count(total, 'recipe')}, {_count(problems, 'problem')}")
    if broken:
        raise typer.Exit(UserError.exit_code)


@app.command()
def copy(
    name: Name,
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="A new file, or a directory to put it in.")
    ],
) -> None:
    """Copy a recipe to make it your own; a recipe with a base is written out whole.

    Examples:

      mrt5 recipe copy quickstart my_recipe.yaml
    """
    from mrt5cli import recipe_load
    from mrt5cli.recipe import dump, find, load

    source = find(name)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise UserError(f"{target} exists already", "give another name, or remove it first")
    recipe = load(source)
    if len(recipe_load.read_chain(source)) == 1:
        text = source.read_text(encoding="utf-8")
    else:
        text = _header(source) + dump(recipe)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{target} cannot be written: {error.strerror}", "give a place you may write to"
        ) from None
    print(target)
    print(f"its runs go to runs/{recipe.name}-seed{recipe.seed}; change `name:` in it", file=sys.stderr)


@app.command()
def schema(
    key: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="Only this key or section, e.g. training or model.shortener."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON schema instead.")] = False,
) -> None:
    """Explain every key of a recipe: what it may be, its default, what it means.

    Examples:

      mrt5 recipe schema training

      mrt5 recipe schema model.shortener

      mrt5 recipe schema --json > recipe.schema.json
    """
    from mrt5cli import recipe_words
    from mrt5cli.recipe import Recipe

    known = recipe_words.all_keys()
    chosen = [item for item in known if key is None or item.path == key or item.path.startswith(f"{key}.")]
    if not chosen:
        names = {item.path for item in known}
        leaves = {path.rsplit(".", 1)[-1]: path for path in names}
        near = recipe_words.nearest(str(key), [*names, *leaves])
        raise UserError(
            f"no key {key!r} in a recipe",
            f"did you mean {leaves.get(near, near)}?" if near else "`mrt5 recipe schema` lists all",
        )
    if as_json:
        print(json.dumps(_json_schema(Recipe, key), indent=2, ensure_ascii=False))
        return
    for item in chosen:
        print(f"{item.path}{f'  ({item.kind})' if item.kind else ''}\n    {_meaning(item)}")


# --- list ---------------------------------------------------------------------------------------------------


def model_in_words(recipe: Recipe) -> str:
    """What a recipe trains, in a few words: "MrT5 40 % (p)", "ByT5", "random 30 %"."""
    shortener, controller = recipe.model.shortener, recipe.controller
    if shortener.kind == "none":
        return "ByT5"
    if shortener.kind == "random":
        return f"random {100 * shortener.rate:g} %"
    if controller.kind == "constant":
        return f"MrT5 alpha {controller.alpha:g}"
    return f"MrT5 {100 * controller.target_deletion_rate:g} % ({controller.kind})"


def _print_columns(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns; in a terminal the last one is cut to fit, in a pipe it is whole."""
    widths = [max(len(line[place]) for line in (headers, *rows)) for place in range(len(headers) - 1)]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in (headers, *rows):
        text = "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]])
        print(text[:limit])


# --- check --------------------------------------------------------------------------------------------------


def _files(paths: Sequence[str]) -> Iterator[Path]:
    """The recipe files meant by files, directories and names, each once."""
    from mrt5cli.recipe import find

    seen: set[Path] = set()
    for text in paths:
        path = Path(text)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in (".yaml", ".yml"))
            if not files:
                raise UserError(f"{text} holds no recipes (.yaml files)")
        else:
            files = [find(text)]
        for file in files:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def _build_all(recipes: dict[str, Recipe]) -> tuple[dict[str, str], dict[str, UserError]]:
    """Build every distinct model on the meta device.

    Returns:
        File and reason for what cannot be built here, and file and error for what cannot be built anywhere.
    """
    from mrt5cli.models import BYT5_SHAPES, CheckpointError, build

    answers: dict[str, str | None] = {}
    unbuilt: dict[str, str] = {}
    broken: dict[str, UserError] = {}
    for path, recipe in recipes.items():
        section = recipe.model
        if section.start != "scratch" and section.start not in BYT5_SHAPES:
            if not Path(section.start).exists():
                unbuilt[path] = f"it starts from {section.start}, which is not here"
                continue
            if (Path(section.start) / "model").is_dir():
                section = section.model_copy(update={"start": str(Path(section.start) / "model")})
        answer = section.model_dump_json()
        if answer not in answers:
            try:
                build(section, device="meta")
                answers[answer] = None
            except (CheckpointError, ValueError, TypeError) as error:
                answers[answer] = " ".join(str(error).split())
        problem = answers[answer]
        if problem:
            broken[path] = RecipeError(path, [("model", f"cannot be built: {problem}")])
    return unbuilt, broken


def _check_document(
    paths: Sequence[str], broken: dict[str, UserError], unbuilt: dict[str, str]
) -> list[dict[str, Any]]:
    return [
        {
            "file": path,
            "problems": [
                {"key": key or None, "problem": text}
                for key, text in getattr(
                    broken.get(path), "problems", [("", broken[path].message)] if path in broken else []
                )
            ],
            "not_built": unbuilt.get(path),
        }
        for path in dict.fromkeys(paths)
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# --- copy and schema ----------------------------------------------------------------------------------------


def _header(source: Path) -> str:
    """The comment a recipe opens with."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[:end])


def _meaning(item: Key) -> str:
    """What a key may be, its default, and what it means, in one line."""
    from pydantic import BaseModel

    from mrt5cli import recipe_words

    field = item.field
    text = recipe_words.expected(field.annotation, field.metadata)
    if field.is_required():
        text += "; required"
    elif not isinstance(field.default, BaseModel):
        text += f"; default {json.dumps(field.default)}"
    return f"{text}\n    {field.description}" if field.description else text


def _json_schema(recipe: type[Recipe], key: str | None) -> dict[str, Any]:
    """The JSON schema of a recipe, or of the part under `key`."""
    whole = recipe.model_json_schema()
    if key is None:
        return whole
    from mrt5cli import recipe_words

    field = next(item.field for item in recipe_words.all_keys() if item.path == key)
    found = recipe_words.sections(field.annotation)
    if len(found) == 1:
        return found[0].model_json_schema()
    from pydantic import TypeAdapter

    annotation: Any = Annotated[field.annotation, field]
    return TypeAdapter[Any](annotation).json_schema()
