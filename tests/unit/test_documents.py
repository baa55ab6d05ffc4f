"""The documents of the house agree with the code: walks, environment variables, quoted errors."""

from __future__ import annotations

import ast
import errno
import os
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

import pytest
from tiny_runs import make_run
from typer.testing import CliRunner

import mrt5cli
from mrt5cli.cli import app
from mrt5cli.writing import write_text

PACKAGE = Path(mrt5cli.__file__).parent
VARIABLE = re.compile(r"_?[A-Z][A-Z0-9]*(_[A-Z0-9]+)+_?|[A-Z]+_")


def page(name: str) -> str:
    return (PACKAGE / name).read_text(encoding="utf-8")


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


# --- the walks ----------------------------------------------------------------------------------------------


def defined(file: Path) -> set[str]:
    """Names of the functions of a file, and of the methods of its classes."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for node in tree_of(file).body if isinstance(node, functions)}
    for node in tree_of(file).body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, functions)}
    return names


def test_the_walks_name_functions_that_exist() -> None:
    steps = re.findall(r"^\| \d\. .* \| `([\w/]+\.py)` \| (.*) \|$", page("README.md"), re.MULTILINE)
    assert len(steps) == 17
    missing = [
        (file, name)
        for file, names in steps
        for name in re.findall(r"`([\w.]+)`", names)
        if name not in defined(PACKAGE / file)
    ]
    assert missing == []


# --- environment variables ----------------------------------------------------------------------------------


def variables_in_code() -> set[tuple[str, str]]:
    """(variable, file) of everything that reads or sets the environment, huggingface_hub's constants too."""
    found = set()
    for file in sources():
        text = file.read_text(encoding="utf-8")
        name = file.relative_to(PACKAGE).as_posix()
        for constant in re.findall(r"\bconstants\.([A-Z_]+)", text):
            found.add((constant if constant.startswith("HF_") else f"HF_{constant}", name))
        if "environ" in text and "os." in text:
            found |= {(variable, name) for variable in _variables(tree_of(file))}
    return found


def _variables(tree: ast.Module) -> Iterator[str]:
    """Literal arguments of `os.environ`, and texts that look like names of variables."""
    others = {id(one) for node in ast.walk(tree) if _is_call(node, "os.sysconf") for one in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            named = node.args[:1] if ast.unparse(node.func.value) == "os.environ" else []
        else:
            named = [node.slice] if _is_of_environ(node) else []
        yield from (str(one.value) for one in named if isinstance(one, ast.Constant))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in others:
            yield from [node.value] if VARIABLE.fullmatch(node.value) else []


def _is_call(node: ast.AST, function: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == function


def _is_of_environ(node: ast.AST) -> TypeGuard[ast.Subscript]:
    return isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ"


def variables_in_table() -> Iterator[tuple[str, str]]:
    for line in page("ENVIRONMENT.md").splitlines():
        cells = line.split(" | ")
        if len(cells) == 4 and cells[0].startswith("| `"):
            for variable in re.findall(r"`([\w*]+)`", cells[0]):
                yield from ((variable.rstrip("*"), place) for place in re.findall(r"`([^`]+)`", cells[3]))


def test_the_table_has_every_variable_and_no_other() -> None:
    table = set(variables_in_table())
    ours = {(variable, place) for variable, place in table if place.endswith(".py")}
    assert ours == variables_in_code()
    everything = "".join(file.read_text(encoding="utf-8") for file in sources())
    assert [variable for variable, _ in table - ours if variable not in everything] == []


# --- troubleshooting ----------------------------------------------------------------------------------------

BLOCKS = re.findall(r"^### \d+\. (.+?)\n\n```text\n(.*?)\n```$", page("TROUBLESHOOTING.md"), re.M | re.S)
RUN = {title: text.splitlines() for title, text in BLOCKS if text.startswith("$ mrt5 ")}
QUOTED = {title: text.splitlines() for title, text in BLOCKS if title not in RUN}


def test_there_are_twenty_errors() -> None:
    assert len(BLOCKS) == page("TROUBLESHOOTING.md").count("\n### ") == 20
    assert (
        page("TROUBLESHOOTING.md").count("\n**Cause.** ")
        == page("TROUBLESHOOTING.md").count("\n**Cure.** ")
        == 20
    )


@pytest.fixture(scope="module")
def somebodys_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("troubles")
    make_run(folder / "runs", "mine")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name, text in {
        "mine.yaml": "extends: quickstart\ntraning: {precision: bf16}\n"
        "training: {max_steps: many, lerning_rate: 1e-3}\n",
        "papers/thesis.tex": "\\documentclass{book}\n",
        "rows.tsv": "text\tother\na\tb\n",
        "models/cloned/config.json": pointer,
    }.items():
        write_text(folder / name, text)
    return folder


@pytest.mark.parametrize("title", RUN)
def test_a_command_fails_as_the_page_says(
    title: str, somebodys_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(somebodys_folder)
    command, *lines = RUN[title]
    result = CliRunner().invoke(app, shlex.split(command)[2:])
    assert result.exit_code == 2
    printed = result.output.splitlines()
    assert [line for line in lines if line not in printed] == [], result.output


@cache
def templates() -> list[re.Pattern[str]]:
    """Every text of the sources as a pattern: its words in groups, with anything in place of its fields."""
    found = []
    for file in sources():
        for node in ast.walk(tree_of(file)):
            pieces = node.values if isinstance(node, ast.JoinedStr) else [node]
            words = [
                f"({re.escape(piece.value)})" if isinstance(piece, ast.Constant) else ".+?"
                for piece in pieces
                if isinstance(piece, ast.FormattedValue) or isinstance(getattr(piece, "value", 0), str)
            ]
            if sum(map(len, words)) > len("(out of memory)"):
                found.append(re.compile("".join(words)))
    return found


FILLED_IN = {"package", "wandb,", "cuda:", "GB,", *os.strerror(errno.ENOSPC).split()}
"""Words of the quoted messages that are values, or the system's."""


@pytest.mark.parametrize("title", QUOTED)
def test_a_message_is_one_of_the_sources(title: str) -> None:
    """Each of its words is a source's, but for names and numbers."""
    (line,) = QUOTED[title]
    message = line.removeprefix("error: ")
    assert message != line
    said = set()
    for match in (match for template in templates() for match in template.finditer(message)):
        for group in range(1, match.re.groups + 1):
            said |= set(range(*match.span(group)))
    words = [word for word in re.finditer(r"\S+", message) if not {*range(*word.span())} <= said]
    names_and_numbers = re.compile(r"\S*[\d/._]\S*|\S{1,2}")
    unknown = {word[0] for word in words if not names_and_numbers.fullmatch(word[0])}
    assert unknown <= FILLED_IN


# --- faults -------------------------------------------------------------------------------------------------


def test_the_faults_name_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+\.py)`", page("FAULTS.md")))
    assert len(named) > 20
    assert named <= {path.name for path in Path(__file__).parents[1].rglob("test_*.py")}
