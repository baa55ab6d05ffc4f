"""`mrt5 recipe`: list, show, check, copy and write recipes, and explain their keys."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrt5cli import own_code, places
from mrt5cli.commands.options import (
    AsJson,
    Code,
    Device,
    Overrides,
    RecipeName,
    argument,
    named,
    option,
    path,
)
from mrt5cli.commands.tables import print_table
from mrt5cli.errors import RecipeError, UserError, not_written
from mrt5cli.output import print_json
from mrt5cli.text import MISSING, announced, columns, counted, say, say_on_stderr, shortened, visible
from mrt5cli.writing import naming, write_json

if TYPE_CHECKING:
    from mrt5cli.recipe import Recipe
    from mrt5cli.recipe.words import Key

app = typer.Typer(
    no_args_is_help=True, help="List, show, check, copy and write recipes, and explain their keys."
)

SCHEMA = "mrt5-recipe.schema.json"
"""The schema file next to a recipe, which the recipe's first line names for editors."""
MODELINE = re.compile(r"^#\s*yaml-language-server\s*:.*\n", re.MULTILINE)
WithSchema = Annotated[
    bool,
    option(f"Also write {SCHEMA} next to the recipe, for validation in editors.", "--schema/--no-schema"),
]
LEAST_OF_LAST = 24
"""Minimum width of the descriptions in `recipe list`; a narrower terminal gets paragraphs."""


@dataclass
class Checked:
    """The findings of `check` about one file."""

    file: str
    recipe: Recipe | None = None
    problems: list[tuple[str, str]] = field(default_factory=list)
    excepted: list[str] = field(default_factory=list)
    """Data and models that are missing on this machine, so that the recipe could not be checked fully."""


@app.command("list", short_help="List the shipped recipes.")
def list_(as_json: AsJson = False) -> None:
    """List the shipped recipes in groups, with the command that runs each.

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
            "model": what_is_trained(recipe),
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


@app.command(short_help="Print a recipe with all its defaults.")
def show(name: RecipeName, set_: Overrides = None, code: Code = None, as_json: AsJson = False) -> None:
    """Print a recipe as it would run, with bases and overrides applied and every default spelled out.

    Examples:

      mrt5 recipe show quickstart

      mrt5 recipe show pctrl40 --set controller.target_deletion_rate=0.5 --json
    """
    from mrt5cli.recipe import dump, load

    recipe = load(name, set_ or ())
    if as_json:
        print_json(recipe.model_dump(mode="json"))
    else:
        print(dump(recipe).rstrip())


@app.command(short_help="Find every problem in recipes.")
def check(
    paths: Annotated[
        list[str], argument("Recipe files, directories, or names of shipped recipes.", "RECIPE")
    ],
    set_: Overrides = None,
    build: Annotated[
        bool,
        option("Also build each model without its weights, and look for local data.", "--build/--no-build"),
    ] = True,
    code: Code = None,
    as_json: AsJson = False,
) -> None:
    """Find every problem in recipes; the exit code is 2 if there is one.

    Missing data or a missing starting model is not a problem: such a recipe is reported as "ok, except".

    Examples:

      mrt5 recipe check my_recipe.yaml

      mrt5 recipe check recipes/ --no-build
    """
    checked = _check_all(paths, set_ or ())
    # Building imports torch, which takes seconds; a recipe with a typo is reported before that.
    if build and not any(item.problems for item in checked):
        with announced(f"building {counted(len(checked), 'model')} without weights ...", say_on_stderr):
            _build_all(checked)
    if as_json:
        print_json(
            [
                {
                    "file": item.file,
                    "problems": [{"key": key or None, "problem": text} for key, text in item.problems],
                    "except": item.excepted,
                    "remarks": item.recipe.remarks() if item.recipe else [],
                }
                for item in checked
            ]
        )
    else:
        _print_checked(checked)
    if any(item.problems for item in checked):
        raise typer.Exit(UserError.exit_code)


@app.command(short_help="Copy a recipe to edit it.")
def copy(
    name: RecipeName,
    destination: Annotated[Path, argument("New file, or an existing directory.", "DEST", places.path)],
    schema: WithSchema = True,
    code: Code = None,
) -> None:
    """Copy a recipe to edit it; if it extends another recipe, write the combined recipe.

    Examples:

      mrt5 recipe copy quickstart my_recipe.yaml
    """
    from mrt5cli.recipe import dump, find, load, loading

    source = find(name)
    recipe = load(source)
    text = source.read_text(encoding="utf-8")
    if len(loading.read_chain(source)) > 1:
        comment = [line for line in text.partition("\nextends:")[0].splitlines() if line.startswith("#")]
        text = "\n".join([*comment, dump(recipe)])
    if str(destination) == "/dev/stdout":
        print(text, end="")
    else:
        _write(destination / source.name if destination.is_dir() else destination, text, schema)
    say_on_stderr(f"its runs go to runs/{recipe.name}-seed{recipe.seed}; edit `name:` to change that")


@app.command(short_help="Write a recipe for your own pairs of texts.")
def new(
    kind: Annotated[str, argument("Kind of task: text2text.", "KIND", str)],
    data: Annotated[
        Path, path("Table of pairs (.jsonl, .csv, .tsv or .parquet), or a folder with one file per split.")
    ],
    input_: Annotated[
        str | None,
        option(
            "Template of the source, with columns in braces: 'Correct: {noisy}'.",
            "--input",
            metavar="TEMPLATE",
            default="a column found by its name",
        ),
    ] = None,
    target: Annotated[
        str | None,
        option(
            "Template of the target: '{clean}'.", metavar="TEMPLATE", default="a column found by its name"
        ),
    ] = None,
    name: Annotated[
        str | None, option("Name of the recipe and its runs.", metavar="NAME", default="the name of the data")
    ] = None,
    start: Annotated[
        str | None,
        named("Model to start from, or scratch.", "--from", metavar="RUN", default="by the device"),
    ] = None,
    out: Annotated[
        Path | None,
        path("Write the recipe to this new file.", "--out", "-o", metavar="FILE", default="stdout"),
    ] = None,
    schema: WithSchema = True,
    device: Device = "auto",
    code: Code = None,
) -> None:
    """Inspect a table of pairs, and write a recipe for it that is ready to run.

    Comments in the recipe describe the columns that were found, and why each setting was chosen.

    Examples:

      mrt5 recipe new text2text --data pairs.tsv --out mine.yaml

      mrt5 recipe new text2text --data pairs/ --input 'Correct: {noisy}' --target '{clean}' > mine.yaml
    """
    if kind != "text2text":
        raise UserError(
            f"recipe new writes recipes for text2text, not {shortened(kind)!r}",
            "`mrt5 recipe list` shows recipes of other tasks, and `mrt5 recipe copy` copies one",
        )
    from mrt5cli import runtime
    from mrt5cli.drafting.pairs import inspect_pairs
    from mrt5cli.drafting.recipe_text import to_yaml

    draft = inspect_pairs(str(data), input_=input_, target=target, name=name, start=start)
    given = {"--data": str(data), "--input": input_, "--target": target, "--name": name, "--from": start}
    words = [word for key, value in given.items() if value is not None for word in (key, value)]
    own = [word for file in code or () for word in ("--code", str(file))]
    command = shlex.join(["mrt5", "recipe", "new", kind, *words, *own])
    text = to_yaml(draft, command, runtime.device(device), start, own)
    print(text, end="") if out is None else _write(out, text, schema)


@app.command(short_help="Explain the keys of a recipe.")
def schema(
    key: Annotated[
        str | None,
        argument("Key, section or kind of section, such as task.text2text.", "KEY", str, default="all keys"),
    ] = None,
    as_json: Annotated[bool, option("Print the JSON schema instead.", "--json")] = False,
    code: Code = None,
) -> None:
    """Explain the keys of a recipe: allowed values, default and meaning.

    Examples:

      mrt5 recipe schema training

      mrt5 recipe schema model.shortener

      mrt5 recipe schema task.text2text

      mrt5 recipe schema --json > recipe.schema.json
    """
    from mrt5cli.recipe import words

    own_code.take_in_packages()
    known = words.all_keys()
    chosen = [item for item in known if key is None or _is_of(item, key)]
    if not chosen:
        leaves = {item.path.rsplit(".", 1)[-1]: item.path for item in known}
        kinds = (kind for item in known for kind in item.within)
        near = words.nearest(str(key), [*(item.path for item in known), *kinds, *leaves])
        raise UserError(
            f"no key {key!r} in a recipe",
            f"did you mean {leaves.get(near, near)}?"
            if near
            else "run `mrt5 recipe schema` to list all keys",
        )
    if as_json and key is None:
        return print_json(words.document())
    if as_json:
        of_kind = key in chosen[0].within
        print_json({item.path: item.schema for item in chosen} if of_kind else chosen[0].schema)
        return
    for item in chosen:
        say(f"{item.path}{f'  ({item.kind})' if item.kind else ''}\n    {_meaning(item)}")


def _write(file: Path, text: str, schema: bool) -> None:
    """Write a recipe to a new file, with a schema next to it if requested, and print the paths."""
    from mrt5cli.recipe import words

    beside = file.with_name(SCHEMA)
    if schema:
        text = f"# yaml-language-server: $schema={SCHEMA}\n{MODELINE.sub('', text)}"
    made = False
    try:
        with naming(file, len(text)), file.open("x", encoding="utf-8") as opened:
            made = True
            opened.write(text)
        if schema:
            own_code.take_in_packages()
            write_json(beside, words.document())
    except FileExistsError:
        raise UserError(f"{file} already exists", "choose another name, or remove it first") from None
    except OSError as error:
        if made:
            file.unlink()
        raise not_written(error) from None
    print(file)
    if schema:
        say_on_stderr(f"wrote {beside}, with which editors validate the recipe")


# --- list ---------------------------------------------------------------------------------------------------


def what_is_trained(recipe: Recipe) -> str:
    """A short description of a recipe's model, such as "MrT5 50 % (pi)"."""
    words, target = recipe.model.shortener.listed(), recipe.target_deletion_rate
    if target is not None:
        return f"{words} {100 * target:g} % ({recipe.controller.kind})"
    alpha = getattr(recipe.controller, "alpha", 0.0)
    return f"{words} alpha {alpha:g}" if recipe.model.shortener.steered else words


def _print_columns(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, with an empty line between folders; a terminal truncates the last column.

    If hardly anything of the last column would remain, rows become paragraphs.
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
        print(visible(text, lines=False)[:limit])


# --- check --------------------------------------------------------------------------------------------------


def _check_all(paths: Sequence[str], overrides: Sequence[str]) -> list[Checked]:
    """The findings about all recipes that the files, directories and names refer to, each recipe once."""
    from mrt5cli.recipe import find

    checked: dict[Path, Checked] = {}
    for text in paths:
        folder = Path(text)
        try:
            inside = sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")])
            files = inside if folder.is_dir() else [find(text)]
            if not files:
                raise UserError(f"{text} contains no recipes (.yaml files)")
        except UserError as error:
            problem = "; ".join(filter(None, (error.message, error.hint)))
            checked[folder] = Checked(text, problems=[("", problem)])
            continue
        checked |= {key: _check(file, overrides) for file in files if (key := file.resolve()) not in checked}
    return list(checked.values())


def _check(path: Path, overrides: Sequence[str]) -> Checked:
    from mrt5cli.places import shown
    from mrt5cli.recipe.loading import load

    try:
        recipe = load(path, overrides)
        lacking = recipe.training.lacks()
        problems = [("training.report_to", ": ".join(lacking))] if lacking else []
        return Checked(shown(path), recipe, problems)
    except UserError as error:
        return Checked(shown(path), problems=getattr(error, "problems", [("", error.message)]))


def _build_all(checked: Sequence[Checked]) -> None:
    """Build each distinct model on the meta device, and record problems and missing data or models."""
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
        item.excepted = [
            f"its data, {path}, does not exist"
            for path in _local_data(item.recipe)
            if not Path(path).exists()
        ]
        section = item.recipe.model
        if section.start not in ("scratch", *BYT5_SHAPES):
            try:
                where, _ = resolve_model(section.start)
                absent = None if Path(where).is_dir() else f"{where} does not exist"
            except UserError as error:
                absent = error.message
            if absent:
                item.excepted.append(f"its starting model was not found: {absent}")
                continue
            section = section.model_copy(update={"start": where})
        if problem := problem_with(section.model_dump_json()):
            item.problems = [("model", f"cannot be built: {problem}")]


def _local_data(recipe: Recipe) -> list[str]:
    """The distinct files and folders from which a recipe reads its examples."""

    def found(tree: object) -> Iterator[str]:
        if isinstance(tree, dict) and tree.get("kind") == "files":
            yield tree["path"]
        for node in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
            yield from found(node)

    return list(dict.fromkeys(found(recipe.task.model_dump(mode="json"))))


def _print_checked(checked: Sequence[Checked]) -> None:
    for item in checked:
        if item.problems:
            say(f"{RecipeError(item.file, item.problems).message}\n")
        elif item.excepted:
            say(f"{item.file}: ok, except that {', and '.join(item.excepted)}")
        for remark in item.recipe.remarks() if item.recipe else ():
            say(f"{item.file}: note: {remark}")
    problems = sum(len(item.problems) for item in checked)
    excepted = sum(bool(item.excepted) for item in checked)
    rest = f"; {excepted} ok, except for missing data or models" if excepted else ""
    say(f"{counted(len(checked), 'recipe')}, {counted(problems, 'problem')}{rest}")


# --- schema -------------------------------------------------------------------------------------------------


def _is_of(item: Key, key: str) -> bool:
    """Whether a key is the requested one, or inside the requested section or kind of section."""
    path, key = (text.replace("[]", "") for text in (item.path, key))
    return path == key or path.startswith(f"{key}.") or key in item.within


def _meaning(item: Key) -> str:
    """A key's allowed values, default and description."""
    from mrt5cli.recipe import words

    text = words.expected(item.schema)
    if item.required:
        text += "; required"
    elif "default" in item.schema and not words.sections(item.schema):
        text += f"; default {json.dumps(item.schema['default'])}"
    description = item.schema.get("description")
    return f"{text}\n    {description}" if description else text
