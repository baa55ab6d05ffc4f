"""`mrt5 recipe`: list, show, check, copy recipes, and explain their keys."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrt5cli import places
from mrt5cli.commands.options import Code, JsonInstead, Overrides, RecipeName
from mrt5cli.commands.tables import print_table
from mrt5cli.errors import RecipeError, UserError
from mrt5cli.output import print_json, takes_utf8
from mrt5cli.text import MISSING, announced, columns, counted, say, say_on_stderr

if TYPE_CHECKING:
    from mrt5cli.recipe import Recipe
    from mrt5cli.recipe.words import Key

app = typer.Typer(no_args_is_help=True, help="List, show, check and copy recipes, and explain their keys.")

LEAST_OF_LAST = 24
"""Columns of the descriptions in `recipe list` below which they are not worth cutting."""
EXTENDS = (
    "a recipe to build on: a file beside this one, or a shipped recipe; what is given here goes on top, key "
    "by key, and a section of another kind replaces the base's"
)


@dataclass
class Checked:
    """What `check` found out about one file."""

    file: str
    recipe: Recipe | None = None
    problems: list[tuple[str, str]] = field(default_factory=list)
    not_built: str | None = None
    """Why the model could not be built here, though the recipe is fine."""
    remarks: list[str] = field(default_factory=list)


@app.command("list")
def list_(as_json: JsonInstead = False) -> None:
    """List the recipes that come with the toolkit, in groups, with the command that runs each.

    Examples:

      mrt5 recipe list

      mrt5 recipe list --json
    """
    from mrt5cli.recipe import loading

    found = [(name, loading.load(path)) for name, path in loading.shipped().items()]
    rows: list[dict[str, str | int | None]] = [
        {
            "name": name,
            "command": "finetune" if recipe.is_finetuning else "pretrain",
            "model": recipe.model.shortener.listed(recipe.controller),
            "steps": recipe.training.max_steps,
            "paper": f"{recipe.paper.version} {recipe.paper.experiment}" if recipe.paper else None,
            "description": recipe.description,
        }
        for name, recipe in found
    ]
    if as_json:
        print_json(rows)
        return
    cells = [
        [f"{cell:,}" if isinstance(cell, int) else cell or MISSING for cell in row.values()] for row in rows
    ]
    _print_columns(["name", "command", "model", "steps", "paper", "what"], cells)


@app.command()
def show(name: RecipeName, set_: Overrides = None, code: Code = None, as_json: JsonInstead = False) -> None:
    """Print a recipe as it would run: bases and overrides applied, every default spelt out.

    Examples:

      mrt5 recipe show quickstart

      mrt5 recipe show pctrl40 --set controller.target_deletion_rate=0.5 --json
    """
    from mrt5cli.recipe import dump, load

    recipe = load(name, set_ or ())
    if as_json:
        print_json(recipe.model_dump(mode="json"))
    else:
        print(dump(recipe, ascii_only=not takes_utf8(sys.stdout)).rstrip())


@app.command()
def check(
    paths: Annotated[
        list[str],
        typer.Argument(
            parser=places.place,
            metavar="PATH...",
            help="Recipe files, directories, or shipped names.",
        ),
    ],
    set_: Overrides = None,
    build: Annotated[
        bool,
        typer.Option("--build/--no-build", help="Also build each model, without its weights."),
    ] = True,
    code: Code = None,
    as_json: JsonInstead = False,
) -> None:
    """Check recipes and count them; the exit code is 2 if any has a problem.

    Examples:

      mrt5 recipe check my_recipe.yaml

      mrt5 recipe check recipes/ --no-build
    """
    checked = [_check(path, set_ or ()) for path in _files(paths)]
    # Building imports torch, which takes seconds: a recipe with a typing mistake is answered before that.
    if build and not any(item.problems for item in checked):
        with announced(f"building {counted(len(checked), 'model')} without weights ...", say_on_stderr):
            _build_all(checked)
    if as_json:
        print_json(
            [
                {
                    "file": item.file,
                    "problems": [{"key": key or None, "problem": text} for key, text in item.problems],
                    "not_built": item.not_built,
                    "remarks": item.remarks,
                }
                for item in checked
            ]
        )
    else:
        _print_checked(checked)
    if any(item.problems for item in checked):
        raise typer.Exit(UserError.exit_code)


@app.command()
def copy(
    name: RecipeName,
    destination: Annotated[
        Path,
        typer.Argument(
            parser=places.path,
            metavar="DEST",
            help="A new file, or a directory to put it in.",
        ),
    ],
    code: Code = None,
) -> None:
    """Copy a recipe to make it your own; a recipe with a base is written out whole.

    Examples:

      mrt5 recipe copy quickstart my_recipe.yaml
    """
    from mrt5cli.recipe import dump, find, load, loading

    source = find(name)
    target = destination / source.name if destination.is_dir() else destination
    stream = _stream_at(target)
    if target.is_file() and stream is None:
        raise UserError(f"{target} exists already", "give another name, or remove it first")
    recipe = load(source)
    if len(loading.read_chain(source)) == 1:
        text = source.read_text(encoding="utf-8")
    else:
        text = _header(source) + dump(recipe)
    try:
        # A device and a pipe are there already, and are written to.
        where, mode = (target, "w" if target.exists() else "x") if stream is None else (stream, "w")
        with open(where, mode, encoding="utf-8", closefd=stream is None) as file:
            file.write(text)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written: {error.strerror}", "give a place you may write to"
        ) from None
    if stream is None:
        print(target)
    say(f"its runs go to runs/{recipe.name}-seed{recipe.seed}; change `name:` in it", sys.stderr)


@app.command()
def schema(
    key: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="Only this key or section, e.g. training or model.shortener."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON schema instead.")] = False,
    code: Code = None,
) -> None:
    """Explain every key of a recipe: what it may be, its default, what it means.

    Examples:

      mrt5 recipe schema training

      mrt5 recipe schema model.shortener

      mrt5 recipe schema --json > recipe.schema.json
    """
    from mrt5cli.recipe import Recipe, words

    known = words.all_keys()
    chosen = [item for item in known if key is None or item.path == key or item.path.startswith(f"{key}.")]
    if not chosen and key != "extends":
        names = {item.path for item in known} | {"extends"}
        leaves = {path.rsplit(".", 1)[-1]: path for path in names}
        near = words.nearest(str(key), [*names, *leaves])
        raise UserError(
            f"no key {key!r} in a recipe",
            f"did you mean {leaves.get(near, near)}?" if near else "`mrt5 recipe schema` lists all",
        )
    if as_json:
        print_json(_json_schema(Recipe, key))
        return
    if key in (None, "extends"):
        say(f"extends\n    some text, or null; default null\n    {EXTENDS}")
    for item in chosen:
        say(f"{item.path}{f'  ({item.kind})' if item.kind else ''}\n    {_meaning(item)}")


# --- list ---------------------------------------------------------------------------------------------------


def _print_columns(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns; in a terminal the last one is cut to fit, in a pipe it is whole.

    Rows of one folder stand together: what comes from another one begins after an empty line. Where hardly
    anything of the last column would be seen, rows become paragraphs.
    """
    widths = [max(len(line[place]) for line in (headers, *rows)) for place in range(len(headers) - 1)]
    limit = columns(sys.stdout)
    if limit is not None and limit < sum(widths) + 2 * len(widths) + LEAST_OF_LAST:
        print_table(headers, rows, range(len(headers)))
        return
    folder = ""
    for line in (headers, *rows):
        before, folder = folder, str(Path(line[0]).parent)
        if before not in ("", folder):
            print()
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


def _check(path: Path, overrides: Sequence[str]) -> Checked:
    from mrt5cli.recipe.loading import load, shown

    try:
        recipe = load(path, overrides)
    except RecipeError as error:
        return Checked(shown(path), problems=error.problems)
    except UserError as error:
        return Checked(shown(path), problems=[("", error.message)])
    return Checked(shown(path), recipe, remarks=recipe.remarks())


def _build_all(checked: Sequence[Checked]) -> None:
    """Build every distinct model on the meta device; notes what cannot be built, here or anywhere."""
    from mrt5cli.models import BYT5_SHAPES, build
    from mrt5cli.recipe import ModelSection
    from mrt5cli.rundir import resolve_model

    @cache
    def problem_with(model: str) -> str | None:
        try:
            build(ModelSection.model_validate_json(model), device="meta")
        except (UserError, ValueError) as error:
            return " ".join(str(error).split())
        return None

    for item in checked:
        assert item.recipe is not None
        section = item.recipe.model
        if section.start != "scratch" and section.start not in BYT5_SHAPES:
            try:
                where, _ = resolve_model(section.start)
            except UserError as error:
                item.not_built = f"it starts from what is not here: {error.message}"
                continue
            if not Path(where).is_dir():
                item.not_built = f"it starts from {section.start}, which is not here"
                continue
            section = section.model_copy(update={"start": where})
        if problem := problem_with(section.model_dump_json()):
            item.problems = [("model", f"cannot be built: {problem}")]


def _print_checked(checked: Sequence[Checked]) -> None:
    for item in checked:
        if item.problems:
            say(f"{RecipeError(item.file, item.problems).message}\n")
    for item in checked:
        if item.not_built:
            say(f"{item.file}: not built: {item.not_built}")
        for remark in item.remarks:
            say(f"{item.file}: note: {remark}")
    problems = sum(len(item.problems) for item in checked)
    say(f"{counted(len(checked), 'recipe')}, {counted(problems, 'problem')}")


# --- copy and schema ----------------------------------------------------------------------------------------


def _stream_at(path: Path) -> int | None:
    """The number of stdout or stderr, where a path such as /dev/stdout leads there; else None."""
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(number)):
                return number
    return None


def _header(source: Path) -> str:
    """The comment a recipe opens with."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[:end])


def _meaning(item: Key) -> str:
    """What a key may be, its default, and what it means, in one line."""
    from pydantic import BaseModel

    from mrt5cli.recipe import words

    field = item.field
    text = words.expected(field.annotation, field.metadata)
    if field.is_required():
        text += "; required"
    elif not isinstance(field.default, BaseModel):
        text += f"; default {json.dumps(field.default)}"
    return f"{text}\n    {field.description}" if field.description else text


def _json_schema(recipe: type[Recipe], key: str | None) -> dict[str, Any]:
    """The JSON schema of a recipe, or of the part under `key`."""
    from pydantic import TypeAdapter

    from mrt5cli.recipe import words

    extends = {"type": "string", "description": EXTENDS}
    if key == "extends":
        return extends
    if key is None:
        whole = recipe.model_json_schema()
        whole["properties"] = {"extends": extends, **whole["properties"]}
        # With a base, what is required may stand there.
        whole["anyOf"] = [{"required": whole.pop("required")}, {"required": ["extends"]}]
        return whole
    field = next(item.field for item in words.all_keys() if item.path == key)
    found = words.sections(field.annotation)
    annotation: Any = found[0] if len(found) == 1 else Annotated[field.annotation, field]
    return TypeAdapter[Any](annotation).json_schema()
