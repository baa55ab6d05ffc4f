"""One way of saying the same thing in all commands: names, metavars, words of help, examples to be pasted."""

from __future__ import annotations

import inspect
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.commands.command import Command, pasteable


def commands(group: Any = None, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its name, those of groups too."""
    for word, command in (group or typer.main.get_command(app)).commands.items():
        path = f"{name} {word}".strip()
        if hasattr(command, "commands"):
            yield from commands(command, path)
        else:
            yield path, command


ALL = dict(commands())
PARAMS = [(name, param) for name, command in ALL.items() for param in command.params]
METAVARS = {
    *("RUN", "RUN[@STEP]", "SOURCE", "DEST", "RECIPE", "TASK", "SUITE", "KEY", "KIND", "KIND,..."),
    *("FILE", "DIR", "PATH", "N", "NUMBER", "RATE", "RATE,...", "HOURS", "TFLOPS", "SIZE"),
    *(
        "DEVICE",
        "DEVICE,...",
        "PRECISION,...",
        "REVISION",
        "KEY=VALUE",
        "KEY=VALUE,...",
        "GLOB",
        "COLUMN",
        "CONDITION",
        "TAG",
    ),
    *("TEXT", "NAME", "NAME,...", "TEMPLATE", "OWNER/NAME", "ID", "URL", "TOPIC"),
}
SAID_IN_OTHER_WORDS = {
    "--out": "a folder of a run or of reports, outputs, or a document beside what is printed",
    "--resume": "from a checkpoint, or in a file of outputs",
    "--threshold": "of one look at a model, or kept in what is converted",
    "--deletion-rate": "one or several, found in different places",
    "--from": "recipe new chooses by the device",
    "--limit": "of a language, of a subset, or of a text",
    "--precision": "one, or several to compare",
    "--seed": "of what is drawn",
    "--task": "whose",
    "--data": "in place of the task's, or what to look at",
    "--json": "recipe schema prints the schema",
    "--device": "generate takes several",
    "--html": "what the page shows",
    "--metric": "what curves are drawn of, or who is best by",
    "--split": "of one evaluation, or of those that are compared",
    "--text": "what happens to it",
}


def options() -> dict[str, dict[str, list[str]]]:
    """By an option's name the texts of its help, each with the commands that have it."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, param in PARAMS:
        if param.param_type_name == "option":
            found[max(param.opts, key=len)][param.help].append(name)
    return found


def test_every_command_has_the_same_manners() -> None:
    assert len(ALL) > 15
    assert [name for name, command in ALL.items() if not isinstance(command, Command)] == []
    for name, command in ALL.items():
        assert command.short_help and len(command.short_help) <= 50, name


def test_metavars_are_of_one_list() -> None:
    found = {
        (name, param.name, param.metavar)
        for name, param in PARAMS
        if not getattr(param, "is_flag", False) and not param.type_descriptor.is_choice
    }
    assert {one for one in found if one[2] not in METAVARS} == set()
    assert METAVARS - {metavar for _, _, metavar in found} == set()


def test_an_option_is_explained_in_the_same_words_everywhere() -> None:
    differing = {name: dict(texts) for name, texts in options().items() if len(texts) > 1}
    assert {name: texts for name, texts in differing.items() if name not in SAID_IN_OTHER_WORDS} == {}
    assert SAID_IN_OTHER_WORDS.keys() - differing.keys() == set()
    (one, longer) = sorted(differing["--device"], key=len)
    assert longer.startswith(one)


def test_a_help_text_is_a_sentence_and_leaves_the_default_to_the_brackets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, param in PARAMS:
        assert re.fullmatch(r"[A-Z-].*\.", param.help) and "default" not in param.help.lower(), (
            name,
            param.name,
        )
    shown = " ".join(help_of("evaluate", monkeypatch, 100).split())
    assert "[default: the recipe's]" in shown and "[default: test]" in shown
    assert "{" not in help_of("convert", monkeypatch, 100).split("\n")[0]


def test_out_and_version_have_a_letter() -> None:
    for name, param in PARAMS:
        assert ("--out" in param.opts) == ("-o" in param.opts), name
    assert CliRunner().invoke(app, ["-V"]).stdout == CliRunner().invoke(app, ["--version"]).stdout


def test_options_that_mean_the_same_have_the_same_name() -> None:
    replaced = {"--batch", "--rates", "--bf16", "--start", "--output"}
    assert replaced & options().keys() == set()
    assert list(options()["--target"].values()) == [["recipe new"]]  # a template


# --- help ---------------------------------------------------------------------------------------------------


def examples(command: Any) -> list[str]:
    """The examples in a command's help, a line each."""
    _, _, shown = inspect.cleandoc(command.help).partition("Examples:")
    return [line.strip() for line in shown.splitlines() if line.strip()]


def help_of(name: str, monkeypatch: pytest.MonkeyPatch, width: int) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    return CliRunner().invoke(app, [*name.split(), "--help"]).stdout


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("name", ALL)
def test_an_example_is_never_broken_within_its_command(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = help_of(name, monkeypatch, width)
    whole = [" ".join(line.split()) for line in told.replace("\\\n", " ").splitlines()]
    for example in examples(ALL[name]):
        assert " ".join(example.split()) in whole
    shown = told.partition("Examples:")[2].partition("Arguments:")[0].partition("Options:")[0]
    assert [line for line in shown.splitlines() if len(line) > width and width >= 80] == []


@pytest.mark.parametrize("name", ALL)
def test_examples_name_options_that_there_are(name: str) -> None:
    shown = examples(ALL[name])
    assert shown, "a command shows how it is used"
    for example in shown:
        _, *parts = re.split(r"(?:^|\| |\$\()mrt5 ", example.removesuffix(")"))
        for words in map(shlex.split, parts):
            # A group may be a command by itself, which lists.
            called = [one for one in ALL if words[: one.count(" ") + 1] == one.split()] or ["runs list"]
            params = ALL[max(called, key=len)].params
            known = {option for param in params for option in (*param.opts, *param.secondary_opts)}
            assert {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)} <= known, example


@pytest.mark.parametrize("name", ["", *sorted({name.rpartition(" ")[0] for name in ALL})])
@pytest.mark.parametrize("width", [60, 80])
def test_a_group_lists_its_commands_a_line_each(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = help_of(name, monkeypatch, width)
    assert "..." not in told.partition("-h, --help")[2]
    for path, command in ALL.items():
        if path.rpartition(" ")[0] == name and width == 80:
            assert re.search(rf"^  {path.split()[-1]} +{re.escape(command.short_help)}$", told, re.MULTILINE)


def test_a_command_is_broken_between_words_an_option_staying_with_its_value() -> None:
    line = "  mrt5 pretrain x --set 'a={b: c}' --json --out \"a b\""
    assert pasteable(line, 80) == line
    assert pasteable(line, 36) == "  mrt5 pretrain x --set 'a={b: c}' \\\n      --json --out \"a b\""
    for width in range(10, 80):
        assert shlex.split(pasteable(line, width).replace("\\\n", "")) == shlex.split(line)


# --- a.b=c --------------------------------------------------------------------------------------------------


def mrt5(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["quickstart", "training.max_steps=700", "seed=3"],
        ["training.max_steps=700", "quickstart", "--set", "seed=3"],
        ["--set", "training.max_steps=700", "seed=3", "quickstart"],
        ["--set=seed=3", "quickstart", "training.max_steps=700", "--json"],
    ],
)
def test_a_key_is_set_with_or_without_set(words: list[str]) -> None:
    spelt = mrt5(
        "recipe", "show", "quickstart", "--set", "training.max_steps=700", "--set", "seed=3", *words[4:]
    )
    shown = mrt5("recipe", "show", *words)
    assert shown.exit_code == 0, shown.stderr
    if "--json" not in words:
        assert shown.stdout == spelt.stdout
    assert "700" in shown.stdout


@pytest.mark.parametrize("command", ["pretrain", "finetune", "recipe show", "recipe check"])
def test_commands_with_set_take_assignments(command: str, here: Path) -> None:
    result = mrt5(*command.split(), "quickstart_byt5", "training.max_stps=7")
    assert result.exit_code == 2
    assert "training.max_stps  unknown key; did you mean max_steps?" in result.stdout + result.stderr


def test_a_value_with_spaces_and_equals_signs_is_one(here: Path) -> None:
    shown = mrt5("recipe", "show", "quickstart", "description=a = b, c")
    assert "description: a = b, c\n" in shown.stdout


def test_the_same_key_in_both_spellings_is_set_twice() -> None:
    result = mrt5("recipe", "show", "quickstart", "seed=1", "--set", "seed=2")
    assert result.exit_code == 2 and "seed  set twice" in result.stderr


def test_a_file_whose_name_has_an_equals_sign_is_a_file(here: Path) -> None:
    mrt5("recipe", "copy", "quickstart", "seed=1.yaml")
    (here / "lr=1").mkdir()
    mrt5("recipe", "copy", "quickstart", "lr=1/mine.yaml")
    for name in ("seed=1.yaml", "./seed=1.yaml", "lr=1/mine.yaml"):
        result = mrt5("recipe", "check", "--no-build", name, "seed=5")
        assert result.exit_code == 0 and result.stdout.endswith("1 recipe, 0 problems\n"), result.stdout


def test_values_of_options_and_words_behind_two_dashes_are_left_alone(here: Path) -> None:
    assert "error: --device c=d" in mrt5("pretrain", "quickstart", "--out", "a=b", "--device", "c=d").stderr
    result = mrt5("recipe", "show", "--", "seed=1")
    assert "no recipe 'seed=1'" in result.stderr
    result = mrt5("recipe", "show", "quickstart", "-x=1")
    assert result.exit_code == 2 and "-x" in result.stderr


def test_slurm_keys_are_slurm_s(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mrt5cli.commands import training

    found: list[Any] = []
    monkeypatch.setattr(training, "_submit", lambda trainings, slurm, *_: found.append((trainings, slurm)))
    result = mrt5("pretrain", "quickstart", "pctrl40", "--slurm", "time=5", "seed=9")
    assert result.exit_code == 0, result.stderr
    [(trainings, slurm)] = found
    assert slurm == ["time=5"] and [one.recipe.seed for one in trainings] == [9, 9]


# --- --dry-run ----------------------------------------------------------------------------------------------


def test_the_recipe_that_a_dry_run_prints_can_be_trained(here: Path) -> None:
    planned = mrt5("pretrain", "local_text", "--smoke", "--dry-run", "seed=5", "--device", "cpu")
    assert planned.exit_code == 0, planned.stderr
    assert planned.stderr.startswith("run ") and "runs/smoke/" in planned.stderr
    Path("mine.yaml").write_text(planned.stdout)
    assert mrt5("recipe", "show", "mine.yaml").stdout == planned.stdout
    done = mrt5("pretrain", "mine.yaml", "--out", "run", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    assert (here / "run/recipe.yaml").read_text() == planned.stdout


# --- slips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "told", "asked"),
    [
        ("pretrian x", "no such command 'pretrian'. Did you mean 'pretrain'?", ""),
        ("recipe chekc x", "no such command 'chekc'. Did you mean 'check'?", "recipe"),
        ("data build foo", "no such command 'foo'", "data build"),
        ("-x", "no such option: -x", ""),
        ("pretrain x --devise cpu", "no such option: --devise (Possible options: --device", "pretrain"),
        ("bench --batch 3", "no such option: --batch (Possible options: --batch-size", "bench"),
        ("recipe show", "missing argument 'RECIPE'", "recipe show"),
        ("convert a b", "missing option '--to'. Choose from: mrt5, byt5, reference", "convert"),
        (
            "evaluate --split x",
            "invalid value for '--split': 'x' is not one of 'validation', 'test'",
            "evaluate",
        ),
        ("evaluate --limit 0", "invalid value for '--limit': expected a number greater", "evaluate"),
        ("generate a b c", "got unexpected extra argument(s) (c)", "generate"),
    ],
)
def test_a_slip_is_told_like_every_error(line: str, told: str, asked: str, here: Path) -> None:
    result = CliRunner().invoke(app, line.split(), prog_name="mrt5")
    first, hint = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (2, "")
    assert first.startswith(f"error: {told}")
    wanted = "a list of commands" if "no such command" in told else "its arguments and options"
    assert hint == f"hint: run `{f'mrt5 {asked}'.strip()} --help` for {wanted}"


@pytest.mark.parametrize(
    "line",
    [
        ["pretrain", "", "--dry-run"],
        ["pretrain", "quickstart", "--out", ""],
        ["evaluate", ""],
        ["evaluate", "x", "--html="],
        ["generate", "x", "--out", ""],
        ["convert", "x", "", "--to", "hub"],
        ["runs", "mv", "x", ""],
        ["runs", "list", " "],
        ["data", "build", "dates", ""],
    ],
    ids=" ".join,
)
def test_an_empty_name_is_none(line: list[str], here: Path) -> None:
    result = mrt5(*line)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: a name is empty"), result.stderr
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("behind", ["", "@step-10"])
def test_a_name_below_runs_is_told_as_a_path(behind: str, here: Path) -> None:
    run = here / "runs/mine"
    run.mkdir(parents=True)
    for name in ("recipe.yaml", "meta.json"):
        (run / name).write_text("{}")
    result = mrt5("evaluate", f"mine{behind}", "--device", "cpu")
    assert result.exit_code == 2
    assert result.stderr == (f"error: mine{behind} does not exist\nhint: did you mean runs/mine{behind}?\n")
