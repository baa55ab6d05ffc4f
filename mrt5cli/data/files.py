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

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mrt5cli.data.languages import LANGUAGES
from mrt5cli.errors import UserError

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".csv", ".parquet")
SPLITS = ("train", "validation", "test")
LANGUAGE_COLUMN = "language"
# From so many .txt files on, each is taken for one document; fewer are cut at blank lines.
MANY_FILES = 20
# Paragraphs longer than this, such as all of a text without blank lines, are cut into pieces of about it.
PIECE_BYTES = 4096

NO_ROW = "a row must be an object of columns"

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
            f"task.source.path names a file or a folder with {_listed(SUFFIXES)} files",
        )
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(
                f"{path} is not a text file this toolkit reads", f"supported: {_listed(SUFFIXES)}"
            )
        files: FilesOfSplits = {"train": [path]}
        return dict.fromkeys(languages, files)
    own = [language for language in languages if (path / language).is_dir()]
    if not own:
        others = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name in LANGUAGES)
        if others:
            raise UserError(
                f"{path} has folders for {_listed(others)}, but none for {_listed(languages)}",
                f"ask for what is there: --set task.languages=[{', '.join(others)}]",
            )
        return dict.fromkeys(languages, _files_of_splits(path))
    missing = [language for language in languages if language not in own]
    if missing:
        raise UserError(
            f"{path} has a folder for {_listed(own)}, but none for {_listed(missing)}",
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
        seen = Counter(entry.suffix or entry.name for entry in everything)
        found = ", ".join(f"{count} {name}" for name, count in seen.most_common(5)) or "nothing"
        raise UserError(f"{folder} holds no text files (found: {found})", f"supported: {_listed(SUFFIXES)}")
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
            f"{folder} has files for {_listed(sorted(splits))} and others beside them: {_listed(names, 3)}",
            "name all of them train.*, validation.* or test.*, or none",
        )
    return splits


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
            for text, *language in zip(*_columns(file, columns), strict=True):
                key = language[0] if languages is not None else None
                if key not in groups:
                    others[str(key)] += 1
                elif text:
                    groups[key].append(text.encode("utf-8", errors="replace"))
    empty = [language for language, documents in groups.items() if language is not None and not documents]
    if empty:
        found = ", ".join(f"{count} in {name!r}" for name, count in others.most_common(8)) or "none in others"
        raise UserError(
            f"{_listed(files, 1)}: no rows in {_listed(empty)} ({found})",
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


def read_text(file: Path, name: str | None = None) -> bytes:
    """The content of a text file, unpacked when its name ends in .gz, checked to be UTF-8, without a mark.

    Args:
        name: what to call it, where it is a copy of another.
    """
    name = name or str(file)
    try:
        raw = file.read_bytes()
        if file.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name} cannot be read: {error}") from error
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x} ({error.reason})",
            f"convert it first, e.g. iconv -f LATIN1 -t UTF-8 {file.name}",
        ) from error
    return raw.removeprefix(b"\xef\xbb\xbf")


def _columns(file: Path, columns: list[str]) -> list[list[str | None]]:
    """Columns of a table of rows, each a list of texts."""
    if file.name.endswith(".parquet"):
        return _parquet_columns(file, columns)
    if file.name.endswith(".csv"):
        return csv_columns(read_text(file), str(file), columns)
    found: list[list[str | None]] = [[] for _ in columns]
    for number, row in json_rows(read_text(file).split(b"\n")):
        place = f"{file}, line {number}"
        if isinstance(row, BadRow):
            raise UserError(f"{place}: {row.reason}")
        for column, values in zip(columns, found, strict=True):
            if column not in row:
                raise missing_text(place, column, row)
            if not isinstance(row[column], str | None):
                raise no_text(place, column, row[column])
            values.append(row[column])
    return found


@dataclass(frozen=True)
class BadRow:
    """What is in the place of a row that cannot be used.

    Attributes:
        reason: what is wrong with it.
    """

    reason: str


def json_rows(lines: Iterable[bytes], first: int = 0) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """The number and the row of each line that is not blank.

    Args:
        lines: of JSON. A file that is one list of rows is read, too; its rows are counted then.
        first: lines to pass over unread.
    """
    lines = iter(lines)
    head = next(lines, b"")
    if head.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
        yield from islice(enumerate(_listed_rows(head + b"".join(lines)), start=1), first, None)
        return
    for number, line in islice(enumerate(chain([head], lines), start=1), first, None):
        if line.strip():
            yield number, _row(line)


def _listed_rows(content: bytes) -> list[dict[str, Any] | BadRow]:
    try:
        rows = json.loads(content)
    except ValueError as error:  # not UTF-8, or not JSON
        return [BadRow(f"not JSON: {error}")]
    return [row if isinstance(row, dict) else BadRow(NO_ROW) for row in rows]


def _row(line: bytes) -> dict[str, Any] | BadRow:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}")
    except json.JSONDecodeError as error:
        return BadRow(f"not JSON: {error.msg} at column {error.colno}")
    return row if isinstance(row, dict) else BadRow(NO_ROW)


def csv_columns(content: bytes, name: str, columns: list[str]) -> list[list[str | None]]:
    """Columns of a CSV file with a header, each a list of texts.

    Raises:
        UserError: it is not well-formed, or has no such column.
    """
    import pyarrow as pa
    from pyarrow import csv

    if not content.strip():
        return [[] for _ in columns]
    try:
        # A row may be as long as the file, so the file is one block, and one thread's work; only without
        # threads do errors name the row. Text that looks like a number or like "NA" stays text.
        read = csv.ReadOptions(block_size=min(len(content) + 1, 2**31 - 1), use_threads=False)
        parse = csv.ParseOptions(newlines_in_values=True)
        convert = csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.large_string())
        )
        header = csv.open_csv(pa.BufferReader(content), read_options=read, parse_options=parse).schema.names
        for column in columns:
            if column not in header:
                raise missing_text(name, column, header)
        table = csv.read_csv(pa.BufferReader(content), read, parse, convert)
    except pa.ArrowInvalid as error:
        raise UserError(f"{name} is not a well-formed CSV file with a header: {error}") from error
    return [table[column].to_pylist() for column in columns]


def _parquet_columns(file: Path, columns: list[str]) -> list[list[str | None]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        source = parquet.ParquetFile(file)
        schema = source.schema_arrow
        for column in columns:
            if column not in schema.names:
                raise missing_text(str(file), column, schema.names)
            kind = schema.field(column).type
            if not (
                pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
            ):
                raise UserError(f"{file}: column {column!r} holds {kind}, expected text")
        table = source.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet: {error}") from error
    return [table[column].to_pylist() for column in columns]


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
    return UserError(f"{where} has no column {column!r}; it has {_listed(list(found), 12) or 'none'}", hint)


def _listed(names: Sequence[object], at_most: int = 8) -> str:
    shown = ", ".join(map(str, names[:at_most]))
    return f"{shown} and {len(names) - at_most} more" if len(names) > at_most else shown
