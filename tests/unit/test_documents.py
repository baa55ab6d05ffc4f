"""The documents of the house agree with the code: walks, environment variables, quoted errors."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

import mrt5cli

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
