"""Known misspellings and their corrections, from codespell's dictionary or a file in its format.

codespell is a development dependency. Its dictionary is CC-BY-SA-3.0: it is read from the installed package,
and nothing of it is part of this project.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata, util
from pathlib import Path

from mrt5cli.data.formats import read_text
from mrt5cli.errors import UserError

CODESPELL_LICENCE = "CC-BY-SA-3.0 (dictionary)"
INSTALL = "pip install codespell"

# One word: letters, possibly with apostrophes inside. Entries of several words correct more than spelling.
_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")


@dataclass(frozen=True)
class Misspellings:
    """The possible corrections of each misspelling, in lower case, and their source for a manifest."""

    corrections: Mapping[str, tuple[str, ...]]
    source: dict[str, str]


def open_misspellings(file: Path | None) -> Misspellings:
    """Read a file of misspellings, or codespell's dictionary for None.

    Raises:
        UserError: the file cannot be read, or codespell is not installed.
    """
    source = {"name": file.name, "licence": "the file's own"} if file else {}
    if file is None:
        file = codespell_dictionary()
        if file is None:
            raise UserError(
                "the misspellings come from codespell's dictionary, but codespell is not installed",
                f"run `{INSTALL}`, or pass --misspellings FILE with lines `wrong->right`",
            )
        version = metadata.version("codespell")
        source = {"name": "codespell", "version": version, "licence": CODESPELL_LICENCE}
    return Misspellings(parse(file), {**source, "sha256": sha256(file.read_bytes()).hexdigest()})


def codespell_dictionary() -> Path | None:
    """The path of the dictionary, or None if codespell is not installed; the package is not imported."""
    spec = util.find_spec("codespell_lib")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], "data", "dictionary.txt")


def parse(file: Path) -> dict[str, tuple[str, ...]]:
    """The misspellings of single words whose corrections are all single words.

    A line is `wrong->right`, or `wrong->right, right,` for several corrections; text after the last comma is
    a remark. Entries of several words, or that change only the case, are left out.

    Raises:
        UserError: a line is not an entry, or the file has no usable entry.
    """
    expected = "expected lines such as `wrong->right`, or `wrong->right, right,` for several corrections"
    entries: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(read_text(file, expected).split("\n"), start=1):
        if not line.strip():
            continue
        wrong, _, rest = line.partition("->")
        wrong = wrong.strip().lower()
        rights = [right.strip() for right in (rest.rpartition(",")[0] or rest).split(",")]
        if not wrong or not all(rights):
            raise UserError(f"{file}, line {number}: {line.strip()[:60]!r} is not an entry", expected)
        if all(_WORD.fullmatch(text) for text in (wrong, *rights)) and wrong not in map(str.lower, rights):
            entries[wrong] = tuple(dict.fromkeys(rights))
    if not entries:
        raise UserError(f"{file} has no misspelling of a single word", expected)
    return entries
