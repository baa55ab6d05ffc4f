"""The documentation inside Python: English prose on every machine, without a network or a download."""

from __future__ import annotations

import ast
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Modules that are at least a fifth docstrings contain most of them, and take a quarter of the time to parse.
DOCSTRING_SHARE = 0.2
SHORTEST_DOCUMENT = 200
# Folders that are not the library, or that some systems package separately: without them the text is the same
# everywhere.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "pydoc_data"}
LEFT_OUT |= {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo", "venv"}
UNDERLINED_HEADING = re.compile(r"\n\n+(?=[^\n]+\n([=*\-~])\1{3,}\n)")


@cache
def embedded_documents() -> tuple[bytes, ...]:
    """The language reference (one document per section) and the standard library's docstrings.

    The docstrings of a class and its methods are one document, those of the rest of a module another. Modules
    are read as source, never imported. The result depends only on the Python version: 1.5 MB with 3.11.
    """
    texts = [*_language_reference(), *_docstrings()]
    return tuple(text.encode(errors="replace") for text in texts if len(text) >= SHORTEST_DOCUMENT)


def _language_reference() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        # Some distributions package it separately; the docstrings remain.
        return
    for name in sorted(topics):
        # `split` also returns the pattern's group, the underline character, hence every second piece.
        yield from UNDERLINED_HEADING.split(topics[name].strip())[::2]


def _docstrings() -> Iterator[str]:
    for folder, folders, names in os.walk(sysconfig.get_paths()["stdlib"]):
        # Sorted and pruned in place: the walk is the same everywhere and skips what is not the library.
        folders[:] = sorted(set(folders) - LEFT_OUT)
        for name in sorted(names):
            if name.endswith(".py"):
                source = Path(folder, name).read_bytes()
                if sum(map(len, source.split(b'"""')[1::2])) >= DOCSTRING_SHARE * len(source) > 0:
                    yield from _documents_of(source)


def _documents_of(source: bytes) -> Iterator[str]:
    with warnings.catch_warnings():
        # Old modules contain escapes that newer parsers warn about.
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
    # Only bodies of definitions are visited: visiting every expression would take three times as long.
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings_in(node)
