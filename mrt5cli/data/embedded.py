"""The documentation inside Python itself: English prose on every machine, with no network and no download."""

from __future__ import annotations

import ast
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Modules whose text is a fifth docstrings or more hold most of them, and take a quarter of the time.
DOCSTRING_SHARE = 0.2
SHORTEST_DOCUMENT = 200
# What is no library, and what some systems package apart: without it the text is the same everywhere.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "pydoc_data"}
LEFT_OUT |= {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo", "venv"}
UNDERLINED_HEADING = re.compile(r"\n\n+(?=[^\n]+\n([=*\-~])\1{3,}\n)")


@cache
def embedded_documents() -> tuple[bytes, ...]:
    """The language reference (one document a section) and the standard library's docstrings.

    The docstrings of a class with its methods are one document, those of the rest of a module another.
    Modules are read as source, never imported. The result depends on the Python version alone: 1.5 MB
    with 3.11.
    """
    texts = [*_language_reference(), *_docstrings()]
    return tuple(text.encode(errors="replace") for text in texts if len(text) >= SHORTEST_DOCUMENT)


def _language_reference() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        # Some distributions package it apart; the docstrings remain.
        return
    for name in sorted(topics):
        # The groups that a split by a pattern with a group also returns are the underline characters.
        yield from UNDERLINED_HEADING.split(topics[name].strip())[::2]


def _docstrings() -> Iterator[str]:
    for folder, folders, names in os.walk(sysconfig.get_paths()["stdlib"]):
        # Sorted in place and pruned: the walk is the same everywhere and skips what is not the library.
        folders[:] = sorted(set(folders) - LEFT_OUT)
        for name in sorted(names):
            if name.endswith(".py"):
                source = Path(folder, name).read_bytes()
                if sum(map(len, source.split(b'"""')[1::2])) >= DOCSTRING_SHARE * len(source) > 0:
                    yield from _documents_of(source)


def _documents_of(source: bytes) -> Iterator[str]:
    with warnings.catch_warnings():
        # Old modules hold escapes that newer parsers warn about; it is not our code.
        warnings.simplefilter("ignore")
        module = ast.parse(source)
    classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
    module.body = [node for node in module.body if not isinstance(node, ast.ClassDef)]
    yield "\n\n".join(_docstrings_in(module))
    for node in classes:
        yield "\n\n".join(_docstrings_in(node))


def _docstrings_in(tree: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    if docstring := ast.get_docstring(tree):
        yield docstring
    # Only bodies of definitions are entered: visiting every expression would take three times as long.
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings_in(node)
