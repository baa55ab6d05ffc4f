"""Whether what was made before would come out the same now: the version of the code that decides its numbers.

A version is the package's, and a hash of the syntax of every source file that a kind of work computes with:
the folders that all work shares, its own folder, and what that imports of evaluations and reports. Comments,
docstrings and layout do not count, nor do modules that say `DECIDES_NUMBERS = False`, because they only
print, check or write; in a package's `__init__.py` that is said of the whole folder. What a recipe says is
compared key by key instead, so its schema is not among the files: what a key means is in the code that reads
it.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import mrt5cli
from mrt5cli.recipe import Recipe

Work = Literal["train", "evaluate", "analyse"]

SHARED = ("byte_tokens.py", "runtime.py", "models", "recipe/shorteners", "data", "tasks", "metrics")
"""What every kind of work computes with; `recipe/shorteners` turns settings into what a model is built by."""
DECIDES: dict[Work, str] = {"train": "training", "evaluate": "evaluation", "analyse": "analysis"}
"""The folder of each kind of work."""
IMPORTED = ("evaluation", "report")
"""Folders of which a module counts where one that counts imports it: validation chooses the best weights."""
MARK = "DECIDES_NUMBERS = False"
IMPORT = re.compile(r"^\s*(?:from|import) mrt5cli\.([\w.]+)(?: import ([\w, ]+))?", re.MULTILINE)


@cache
def code_version(work: Work) -> str:
    """The version of the code that a kind of work computes with, e.g. "0.1.0+1f0c5b7a9e21".

    Taken once a process, early, because a file that is edited later changes nothing about code that runs.
    """
    return f"{mrt5cli.__version__}+{source_hash(work, Path(mrt5cli.__file__).parent)}"


def source_hash(work: Work, package: Path) -> str:
    """A hash of the syntax of a package's files that decide a kind of work's numbers."""
    digest = hashlib.sha256()
    for path, source in sorted(_deciding(work, package).items()):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode())
        digest.update(source.digest)
    return digest.hexdigest()[:12]


def recipe_hash(recipe: Recipe) -> str:
    """A recipe's content in short: all of it but its description and what it is compared with."""
    content = recipe.model_copy(update={"description": "-", "paper": None}).model_dump_json()
    return hashlib.sha256(content.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class _Source:
    """A source file: the hash of its syntax, the modules it imports, and whether it decides numbers."""

    digest: bytes
    imports: frozenset[str]
    decides: bool


def _deciding(work: Work, package: Path) -> dict[Path, _Source]:
    """The source files that decide a kind of work's numbers."""
    places = [package / name for name in (*SHARED, DECIDES[work])]
    waiting = [path for place in places for path in (place.rglob("*.py") if place.is_dir() else [place])]
    found: dict[Path, _Source] = {}
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file() or not _decides(path, package):
            continue
        found[path] = _source(path)
        for name in found[path].imports:
            if name.startswith(IMPORTED):
                waiting.append(package.joinpath(*name.split(".")).with_suffix(".py"))
    return found


def _decides(path: Path, package: Path) -> bool:
    folders = [folder / "__init__.py" for folder in path.parents if folder.is_relative_to(package)]
    return all(_source(one).decides for one in (path, *folders) if one.is_file())


def _source(path: Path) -> _Source:
    state = path.stat()
    return _parsed(path, state.st_mtime_ns, state.st_size)


@cache
def _parsed(path: Path, changed: int, size: int) -> _Source:
    """A source file as it was then; kinds of work share most files, and parsing all takes half a second."""
    text = path.read_text(encoding="utf-8")
    pieces: list[str] = []
    _syntax(ast.parse(text), pieces)
    digest = hashlib.sha256("".join(pieces).encode("utf-8", "surrogatepass"))
    return _Source(digest.digest(), frozenset(_imports(text)), decides=f"\n{MARK}" not in f"\n{text}")


def _imports(text: str) -> Iterator[str]:
    """Modules of this package, and what is taken from them, which may be modules as well."""
    for module, names in IMPORT.findall(text):
        yield module
        yield from (f"{module}.{name.strip()}" for name in names.split(","))


def _syntax(node: Any, pieces: list[str]) -> None:
    """Write a syntax tree as text. Empty fields are left out, because new versions of Python add some."""
    if isinstance(node, list):
        for item in node:
            _syntax(item, pieces)
    elif not isinstance(node, ast.AST):
        pieces.append(f"{node!r},")
    elif not (isinstance(node, ast.Expr) and _is_text(node.value)):
        pieces.append(f"{type(node).__name__}(")
        for name, value in ast.iter_fields(node):
            if value is not None and value != []:
                pieces.append(f"{name}=")
                _syntax(value, pieces)
        pieces.append(")")


def _is_text(node: ast.expr) -> bool:
    """Whether a statement is a text that nobody reads: a docstring, or one below a constant."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
