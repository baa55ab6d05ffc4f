"""Whether what was made before would come out the same now: the version of the code that decides its numbers.

A version is the package's, and a hash of the syntax of every source file that a kind of work computes with.
Comments, docstrings and layout do not count, nor do files that only print, check or write. What a recipe
says is compared key by key instead, so its schema is not among the files: what a key means is in the code
that reads it.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import mrt5cli
from mrt5cli.recipe import Recipe

Work = Literal["train", "evaluate", "analyse"]

_SHARED = ("byte_tokens.py", "models", "data", "tasks", "metrics", "runtime.py")
DECIDES: dict[Work, tuple[str, ...]] = {
    # Validation chooses the best weights.
    "train": (
        *_SHARED,
        "training",
        "evaluation/evaluate.py",
        "evaluation/generation.py",
        "evaluation/counting.py",
        "evaluation/options.py",
    ),
    "evaluate": (*_SHARED, "evaluation"),
    "analyse": (*_SHARED, "evaluation", "analysis", "report/results.py"),
}
"""Folders and files of the package, for each kind of work."""

DECIDES_NOTHING = (
    "data/builders",  # make data sets by their own command; what they wrote stays as it is
    "training/plan.py",  # checks and words
    "training/progress.py",
    "training/interruption.py",  # a run that was stopped comes to the same numbers
    "evaluation/published.py",  # the paper's numbers beside ours
    "evaluation/significance.py",  # of a second run, which is not asked for here
)
"""What lies in those folders and changes no number."""


@cache
def code_version(work: Work) -> str:
    """The version of the code that a kind of work computes with, e.g. "0.1.0+1f0c5b7a9e21".

    Taken once a process, early, because a file that is edited later changes nothing about code that runs.
    """
    return f"{mrt5cli.__version__}+{source_hash(work, Path(mrt5cli.__file__).parent)}"


def source_hash(work: Work, package: Path) -> str:
    """A hash of the syntax of a package's files that decide a kind of work's numbers."""
    digest = hashlib.sha256()
    for path in files_of(work, package):
        state = path.stat()
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode())
        digest.update(_digest(path, state.st_mtime_ns, state.st_size))
    return digest.hexdigest()[:12]


def files_of(work: Work, package: Path) -> list[Path]:
    """The source files that decide a kind of work's numbers, in order."""
    found = set()
    for name in DECIDES[work]:
        place = package / name
        found |= set(place.rglob("*.py")) if place.is_dir() else {place} if place.is_file() else set()
    left_out = [package / name for name in DECIDES_NOTHING]
    return sorted(path for path in found if not any(path.is_relative_to(one) for one in left_out))


def recipe_hash(recipe: Recipe) -> str:
    """A recipe's content in short: all of it but its description and what it is compared with."""
    content = recipe.model_copy(update={"description": "-", "paper": None}).model_dump_json()
    return hashlib.sha256(content.encode()).hexdigest()[:12]


@cache
def _digest(path: Path, changed: int, size: int) -> bytes:
    """Of a source file's syntax; kinds of work share most files, and parsing them all takes half a second."""
    digest = hashlib.sha256()
    for piece in _syntax(ast.parse(path.read_bytes())):
        digest.update(piece.encode("utf-8", "surrogatepass"))
    return digest.digest()


def _syntax(node: Any) -> Iterator[str]:
    """A syntax tree as text. Empty fields are left out, because new versions of Python add some."""
    if isinstance(node, list):
        for item in node:
            yield from _syntax(item)
    elif not isinstance(node, ast.AST):
        yield f"{node!r},"
    else:
        yield f"{type(node).__name__}("
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(value, list):
                value = _without_docstring(value)
            if value is not None and value != []:
                yield f"{name}="
                yield from _syntax(value)
        yield ")"


def _without_docstring(body: list[Any]) -> list[Any]:
    """Statements without the texts among them that nobody reads: docstrings, and those below constants."""
    return [
        statement
        for statement in body
        if not (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        )
    ]
