"""Local text: finding the files of a language and split, and reading them into documents.

What is recognised below `path`:

- a file: one text, or one row a document;
- a folder, searched recursively;
- one folder a language, `<path>/<language>/...`, or, when several languages are asked for, rows with a
  `language` column;
- in any of these folders files named train.*, validation.* and test.* (or train-00000.*): the splits. Splits
  without files are held out from the training documents.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mrt5cli.data.formats import LANGUAGE_COLUMN, read_text, rows_of_file
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.errors import UserError
from mrt5cli.text import listed

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".csv", ".parquet")
SPLITS = ("train", "validation", "test")
# From so many .txt files on, each is taken for one document; fewer are cut at blank lines.
MANY_FILES = 20
# Paragraphs longer than this, such as all of a text without blank lines, are cut into pieces of about it.
PIECE_BYTES = 4096

_SPLIT_NAME = re.compile(r"(train|validation|test)(-\d+)?(-of-\d+)?\.")
_BLANK_LINES = re.compile(rb"\n[^\S\n]*(?:\n[^\S\n]*)+(?=\S|$)")

FilesOfSplits = dict[str, list[Path]]


def find_files(path: Path, languages: Sequence[str]) -> dict[str, FilesOfSplits]:
    """The files of each language and split. Languages without folders of their own share one entry's lists.

    Raises:
        UserError: nothing there, or something that could be read in two ways.
    """
    if not path.exists():
        raise UserError(
            f"{path} does not exist",
            f"task.source.path names a file or a folder with {listed(SUFFIXES)} files",
        )
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{path} is not a text file this toolkit reads", f"supported: {listed(SUFFIXES)}")
        files: FilesOfSplits = {"train": [path]}
        return dict.fromkeys(languages, files)
    own = [language for language in languages if (path / language).is_dir()]
    if not own:
        others = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name in LANGUAGES)
        if others:
            raise UserError(
                f"{path} has folders for {listed(others)}, but none for {listed(languages)}",
                f"ask for what is there: --set task.languages=[{', '.join(others)}]",
            )
        return dict.fromkeys(languages, _files_of_splits(path))
    missing = [language for language in languages if language not in own]
    if missing:
        raise UserError(
            f"{path} has a folder for {listed(own)}, but none for {listed(missing)}",
            "every language of task.languages needs a folder of its name once one has",
        )
    return {language: _files_of_splits(path / language) for language in languages}


def _files_of_splits(folder: Path) -> FilesOfSplits:
    everything = sorted(
        entry
        for entry in folder.rglob("*")
        if entry.is_file() and not any(part.startswith(".") for part in entry.relative_to(folder).parts)
    )
    files = [entry for entry in everything if entry.name.endswith(SUFFIXES)]
    if not files:
        raise UserError(
            f"{folder} holds no text files (found: {kinds_of(everything)})", f"supported: {listed(SUFFIXES)}"
        )
    splits: FilesOfSplits = {}
    unnamed = []
    for file in files:
        if match := _SPLIT_NAME.match(file.name):
            splits.setdefault(match.group(1), []).append(file)
        else:
            unnamed.append(file)
    if not splits:
        return {"train": files}
    if unnamed:
        names = [str(file.relative_to(folder)) for file in unnamed]
        raise UserError(
            f"{folder} has files for {listed(sorted(splits))} and others beside them: {listed(names, 3)}",
            "name all of them train.*, validation.* or test.*, or none",
        )
    return splits


def kinds_of(entries: Iterable[Path]) -> str:
    """What there is instead of what was looked for: "3 .pdf, 1 notes"."""
    kinds = Counter(entry.suffix or entry.name for entry in entries)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"


def read_documents(
    files: Sequence[Path], column: str, languages: Sequence[str] | None = None
) -> dict[str | None, list[bytes]]:
    """Documents of files, grouped by language.

    Args:
        files: of one split.
        column: of jsonl, csv and parquet rows, the one with the text. Empty and missing texts are no
            documents.
        languages: group rows by their language column into these; None puts every document under None.

    Raises:
        UserError: what cannot be read, with file and line, row or byte.
    """
    keys: Sequence[str | None] = languages or [None]
    groups: dict[str | None, list[bytes]] = {key: [] for key in keys}
    others: Counter[str] = Counter()
    whole = sum(file.name.endswith((".txt", ".txt.gz")) for file in files) >= MANY_FILES
    for file in files:
        if file.name.endswith((".txt", ".txt.gz")):
            if languages is not None:
                raise UserError(
                    f"{file} does not say which language it is in, and {len(languages)} are asked for",
                    f"make one folder a language ({languages[0]}/, {languages[1]}/ ...), or use rows with a "
                    f"{LANGUAGE_COLUMN!r} column",
                )
            groups[None] += cut_text(read_text(file), whole)
        else:
            columns = [column] if languages is None else [column, LANGUAGE_COLUMN]
            for text, *language in _columns(file, columns):
                key = language[0] if languages is not None else None
                if key not in groups:
                    others[str(key)] += 1
                elif text:
                    groups[key].append(text.encode("utf-8", errors="replace"))
    empty = [language for language, documents in groups.items() if language is not None and not documents]
    if empty:
        found = ", ".join(f"{count} in {name!r}" for name, count in others.most_common(8)) or "none in others"
        raise UserError(
            f"{listed(files, 1)}: no rows in {listed(empty)} ({found})",
            f"task.languages takes what column {LANGUAGE_COLUMN!r} says",
        )
    return groups


def cut_text(text: bytes, whole: bool) -> list[bytes]:
    """Documents of a plain text: all of it, or its paragraphs, those over `PIECE_BYTES` in pieces."""
    text = text.replace(b"\r\n", b"\n")
    if whole:
        return [text.strip()]
    return [piece for part in _BLANK_LINES.split(text) for piece in _pieces(part.strip(b"\n"))]


def _pieces(text: bytes) -> Iterator[bytes]:
    """`text` in pieces of at most about `PIECE_BYTES`, cut after a space where there is one."""
    start = 0
    while start < len(text):
        stop = start + PIECE_BYTES
        if stop < len(text):
            middle = start + PIECE_BYTES // 2
            stop = max(text.rfind(b" ", middle, stop), text.rfind(b"\n", middle, stop)) + 1 or stop
            # A byte 10xxxxxx goes on with the character before it.
            while stop < len(text) and text[stop] & 0xC0 == 0x80:
                stop += 1
        yield text[start:stop]
        start = stop


def _columns(file: Path, columns: Sequence[str]) -> Iterator[list[str | None]]:
    """What a table of rows has in some columns, row by row: texts."""
    for place, number, row in rows_of_file(file, columns, missing_text):
        for column in columns:
            if column not in row:
                raise missing_text(f"{place} {number}", column, row)
            if not isinstance(row[column], str | None):
                raise no_text(f"{place} {number}", column, row[column])
        yield [row[column] for column in columns]


def no_text(where: str, column: str, value: object) -> UserError:
    """What a row whose column holds something else is told."""
    return UserError(f"{where}: column {column!r} holds {type(value).__name__}, expected text")


def missing_text(where: str, column: str, found: Iterable[str]) -> UserError:
    """What a row or a file without a column of text is told."""
    hint = (
        "--set task.source.text_column=NAME"
        if column != LANGUAGE_COLUMN
        else "each row must name its language"
    )
    return UserError(f"{where} has no column {column!r}; it has {listed(list(found), 12) or 'none'}", hint)
