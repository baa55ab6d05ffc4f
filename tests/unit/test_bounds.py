"""Whatever sizes something has bounds: every key of a recipe, every number of a command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mrt5cli import bounds, cli
from mrt5cli.cli import app
from mrt5cli.errors import RecipeError
from mrt5cli.recipe import load, words
from mrt5cli.recipe.tasks import seconds_of

NONSENSE = ["1e300", "-1e300", ".nan", ".inf", "9" * 30, f"-{'9' * 30}", "9" * 4000, "9" * 5000]
LEAVES = [key for key in words.all_keys() if not words.sections(key.schema) and key.path != "extends"]
NUMBERS = [key for key in LEAVES if words.expected(key.schema).startswith(("a whole number", "a number"))]


def limits_of(node: words.Node) -> Iterator[words.Node]:
    """Every text, number, list and mapping of a schema, with its limits."""
    for option in node.get("anyOf", [node]):
        yield option
        for inner in (option.get("items"), *option.get("patternProperties", {}).values()):
            yield from limits_of(inner) if inner and not words.sections(inner) else ()


def test_every_key_of_a_recipe_has_bounds() -> None:
    assert len(NUMBERS) > 60
    for key in LEAVES:
        for node in limits_of(key.schema):
            if "enum" in node or "const" in node:
                continue
            if node["type"] in ("integer", "number"):
                assert node.keys() & {"minimum", "exclusiveMinimum"}, key.path
                assert node.keys() & {"maximum", "exclusiveMaximum"}, key.path
            elif node["type"] == "string":
                assert "pattern" in node, key.path
                assert "maxLength" in node or key.path.endswith("patience"), key.path
            elif node["type"] in ("array", "object"):
                assert node.keys() & {"maxItems", "maxProperties"}, key.path


@pytest.mark.parametrize("value", NONSENSE)
def test_no_number_of_a_recipe_may_be_nonsense(value: str) -> None:
    """Whatever number of whatever kind of section is set to it, the recipe is refused for that key."""
    for key in NUMBERS:
        *parents, name = key.path.split(".")
        section = {"kind": key.kind.split(", ")[0]} if key.kind else {}
        assignment = f"{name}: {value}" if not section else f"kind: {section['kind']}, {name}: {value}"
        parent, in_list, _ = ".".join(parents).partition("[]")
        inner = f"[{{{assignment}}}]" if in_list else f"{{{assignment}}}"
        try:
            load("quickstart_byt5", [f"{parent}={inner}" if parents else f"{name}={value}"])
        except RecipeError as error:
            assert any(key.path.startswith(path.split("[")[0]) for path, _ in error.problems), (
                key.path,
                value,
            )
        else:
            raise AssertionError((key.path, value))


@pytest.mark.parametrize("value", NONSENSE)
@pytest.mark.parametrize("key", ["seed", "training.max_steps", "training.data_workers"])
def test_nonsense_is_told_with_the_range_in_one_short_line(key: str, value: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("quickstart_byt5", [f"{key}={value}"])
    [(path, text)] = caught.value.problems
    assert path == key
    assert text.startswith(("expected a whole number from ", "the value is not YAML: line 1"))
    assert len(text) < 200


@pytest.mark.parametrize(
    ("assignment", "key", "words_"),
    [
        (r'description="a\0b"', "description", "must not contain control characters"),
        (f"description={'x' * 10_001}", "description", "must have at most 10,000 characters"),
        (r'model.start="a\nb"', "model.start", "must be a single line"),
        (r'model.revision="a\0b"', "model.revision", "must be a single line"),
        (
            "task={kind: xnli, languages: [a/b]}",
            "task.languages[0]",
            "must not contain / or \\ or start with a dot",
        ),
        (
            "task={kind: xnli, languages: [..]}",
            "task.languages[0]",
            "or start with a dot, not '..'",
        ),
        ("task={kind: xnli, languages: []}", "task.languages", "must list at least 1, not 0"),
        (
            f"task={{kind: xnli, languages: [{', '.join(f'x{n}' for n in range(10_001))}]}}",
            "task.languages",
            "must list at most 10,000",
        ),
        (f"name={'x' * 201}", "name", "must have at most 200 characters"),
    ],
)
def test_text_is_bounded_as_well(assignment: str, key: str, words_: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("xnli_v3/byt5", [assignment])
    assert caught.value.problems[0][0] == key
    assert words_ in caught.value.problems[0][1]


def test_a_long_list_of_wrong_names_is_told_in_part() -> None:
    languages = ", ".join(f"x{n}" for n in range(500))
    with pytest.raises(RecipeError, match=r"has no x0, x1, .* and 492 more"):
        load("local_text", [f"task.languages=[{languages}]"])


def test_a_key_that_is_long_is_told_in_part() -> None:
    with pytest.raises(RecipeError) as caught:
        load("quickstart_byt5", [f"{'a' * 5000}=1"])
    assert len(str(caught.value)) < 500


def test_how_long_to_wait_ends_within_what_the_system_can_wait() -> None:
    source = "task={{kind: span_corruption, source: {{kind: hub, patience: {}}}}}"
    recipe = load("local_text", [source.format("999999h")])
    assert seconds_of(recipe.task.source.patience) == 999999 * 3600
    for patience in ("1000000h", "9" * 5000 + "s", "\u0661m"):
        with pytest.raises(RecipeError, match="with a unit s, m or h, such as 30m"):
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
def test_nonsense_on_a_command_line_is_refused_with_the_option(name: str, parameter: Any) -> None:
    for value in ("1e300", "nan", "inf", "9" * 30, "9" * 5000, "-" + "9" * 30, "x"):
        result = CliRunner().invoke(app, [*name.split(), f"{parameter.opts[0]}={value}", "x"])
        assert result.exit_code == 2, result.output
        assert f"'{parameter.opts[0]}'" in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
    ],
)
def test_too_little_memory_is_no_bug(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert capsys.readouterr().err.splitlines() == [
        "error: out of memory",
        "hint: use smaller batches, shorter texts or a smaller model",
    ]


def test_bounds_are_what_numpy_and_torch_can_count() -> None:
    whole = [value for value in vars(bounds).values() if isinstance(value, int)]
    assert max(whole) * bounds.LENGTH < 2**63 and max(whole) * bounds.BATCH < 2**63
    assert bounds.WIDTH * bounds.HEADS * bounds.HEAD_WIDTH * 8 < 2**63
