"""Whatever sizes something has bounds: every key of a recipe, every number of a command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
import typer
from pydantic import TypeAdapter, ValidationError
from typer.testing import CliRunner

from mrt5cli import bounds
from mrt5cli.cli import _unexpected, app
from mrt5cli.errors import RecipeError
from mrt5cli.recipe import load, words
from mrt5cli.recipe.strict_yaml import parse
from mrt5cli.recipe.tasks import seconds_of

NONSENSE = ["1e300", "-1e300", ".nan", ".inf", "9" * 30, f"-{'9' * 30}", "9" * 4000, "9" * 5000]
LEAVES = [key for key in words.all_keys() if not words.sections(key.field.annotation)]
NUMBERS = [
    key
    for key in LEAVES
    if words.expected(key.field.annotation, key.field.metadata).startswith(tuple(words.NUMBERS.values()))
]


def limits_of(annotation: Any, metadata: list[Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every text, number, list and mapping of an annotation, with its limits."""
    inner, rules = words._unwrap_optional(annotation, metadata)
    if inner in (int, float, str) or get_origin(inner) in (list, dict):
        names = ("ge", "gt", "le", "lt", "max_length", "pattern")
        yield inner, {name: getattr(rule, name) for rule in rules for name in names if hasattr(rule, name)}
    if get_origin(inner) in (list, dict):
        for part in get_args(inner):
            yield from limits_of(part, [])


def test_every_key_of_a_recipe_has_bounds() -> None:
    assert len(NUMBERS) > 60
    for key in LEAVES:
        for kind, limits in limits_of(key.field.annotation, key.field.metadata):
            given = {name for name, value in limits.items() if value is not None}
            if kind in (int, float):
                assert given & {"ge", "gt"} and given & {"le", "lt"}, key.path
            elif kind is str:
                assert "pattern" in given and ("max_length" in given or key.path.endswith("patience")), (
                    key.path
                )
            else:
                assert "max_length" in given, key.path


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: f"{key.path}-{key.kind}")
def test_no_number_of_a_recipe_may_be_nonsense(key: words.Key) -> None:
    adapter = TypeAdapter(key.field.rebuild_annotation())
    for value in NONSENSE:
        with pytest.raises(ValidationError):
            adapter.validate_python(parse(value).tree, strict=True)


@pytest.mark.parametrize("value", NONSENSE)
@pytest.mark.parametrize("key", ["seed", "training.max_steps", "training.data_workers"])
def test_nonsense_is_told_with_the_range_in_one_short_line(key: str, value: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("quickstart_byt5", [f"{key}={value}"])
    [(path, text)] = caught.value.problems
    assert path == key
    assert text.startswith("expected a whole number from ") and text.endswith(" (--set)")
    assert len(text) < 150


@pytest.mark.parametrize(
    ("assignment", "key", "words_"),
    [
        (
            r'description="a\0b"',
            "description",
            r"text without control characters, not the text 'a\x00b'",
        ),
        (f"description={'x' * 10_001}", "description", "String should have at most 10000 characters"),
        (r'model.start="a\nb"', "model.start", r"expected text without line breaks or other control"),
        (r'model.revision="a\0b"', "model.revision", r"expected text without line breaks or other control"),
        ("task={kind: xnli, languages: [a/b]}", "task.languages[0]", "expected text without slashes"),
        (
            "task={kind: xnli, languages: [..]}",
            "task.languages[0]",
            "a dot at its start, not the text '..'",
        ),
        ("task={kind: xnli, languages: []}", "task.languages", "expected a non-empty list of text"),
        (
            f"task={{kind: xnli, languages: [{', '.join(f'x{n}' for n in range(10_001))}]}}",
            "task.languages",
            "List should have at most 10000 items after validation, not 10001",
        ),
        (f"name={'x' * 201}", "name", "String should have at most 200 characters"),
    ],
)
def test_text_is_bounded_as_well(assignment: str, key: str, words_: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("xnli_v3/byt5", [assignment])
    assert caught.value.problems[0][0] == key
    assert words_ in caught.value.problems[0][1]


def test_a_long_list_of_wrong_names_is_told_in_part() -> None:
    languages = ", ".join(f"x{n}" for n in range(500))
    with pytest.raises(RecipeError, match=r"there is no x0, x1, .* and 492 more in it"):
        load("local_text", [f"task.languages=[{languages}]"])


def test_a_key_that_is_long_is_told_in_part() -> None:
    with pytest.raises(RecipeError) as caught:
        load("quickstart_byt5", [f"{'a' * 5000}=1"])
    assert len(str(caught.value)) < 500


def test_a_file_that_is_far_too_large_is_no_recipe(tmp_path: Any) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("a: 1\n" * 250_000)
    with pytest.raises(Exception, match="is no recipe: it has 1,250,000 bytes, one has at most 1,000,000"):
        load(path)


def test_how_long_to_wait_ends_within_what_the_system_can_wait() -> None:
    source = "task={{kind: span_corruption, source: {{kind: hub, patience: {}}}}}"
    recipe = load("local_text", [source.format("999999h")])
    assert seconds_of(recipe.task.source.patience) == 999999 * 3600
    for patience in ("1000000h", "9" * 5000 + "s", "\u0661m"):
        with pytest.raises(RecipeError, match="expected a time such as 90s, 30m or 2h"):
            load("local_text", [source.format(patience)])


# --- the command line ---------------------------------------------------------------------------------------


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for part, inner in command.commands.items():
            yield from commands(inner, f"{name} {part}")
    else:
        yield name.strip(), command


NUMERIC = [
    (name, parameter)
    for name, command in commands(typer.main.get_command(app))
    for parameter in command.params
    if parameter.type_descriptor.annotation in (int, float)
]


def test_every_number_of_a_command_line_has_bounds() -> None:
    assert {"evaluate", "bench", "convert", "reproduce", "inspect-deletions", "data build spelling"} <= {
        name for name, _ in NUMERIC
    }
    assert [(name, item.name) for name, item in NUMERIC if item.min is None or item.max is None] == []
    assert len(NUMERIC) > 20


@pytest.mark.parametrize(("name", "parameter"), NUMERIC, ids=[f"{n}-{p.name}" for n, p in NUMERIC])
def test_nonsense_on_a_command_line_is_told_with_the_range(name: str, parameter: Any) -> None:
    for value in ("1e300", "nan", "inf", "9" * 30, "9" * 5000, "-" + "9" * 30, "x"):
        result = CliRunner().invoke(app, [*name.split(), f"{parameter.opts[0]}={value}", "x"])
        assert result.exit_code == 2, result.output
        assert "expected a " in result.stderr and len(result.stderr) < 400
        assert f"'{parameter.opts[0]}'" in result.stderr and " from " in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
    ],
)
def test_too_little_memory_is_no_bug(error: Exception) -> None:
    assert _unexpected(error) == (
        "the memory does not hold this",
        "take smaller batches, shorter texts or a smaller model",
        1,
    )


def test_bounds_are_what_numpy_and_torch_can_count() -> None:
    whole = [value for value in vars(bounds).values() if isinstance(value, int)]
    assert max(whole) * bounds.LENGTH < 2**63 and max(whole) * bounds.BATCH < 2**63
    assert bounds.WIDTH * bounds.HEADS * bounds.HEAD_WIDTH * 8 < 2**63
