"""Rows of JSON lines, CSV, TSV and Parquet files, with the place of each for errors."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from mrt5cli.errors import UserError
from mrt5cli.text import first_line

LANGUAGE_COLUMN = "language"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
# Rows of Parquet that are decoded at a time.
ROWS_AT_ONCE = 64
# Longer than any passage; csv's own limit is 128 KiB.
LONGEST_CELL = 2**31 - 1
# Of UTF-8, before the text.
MARK = b"\xef\xbb\xbf"
NO_ROW = "a row must be an object of columns"


class Damaged(Exception):
    """A file whose content cannot be read."""


@dataclass(frozen=True)
class BadRow:
    """What is in the place of a row that cannot be used.

    Attributes:
        reason: what is wrong with it.
    """

    reason: str


# What a row or a file without a column is told, from where that is, the column and those that are there.
Missing = Callable[[str, str, Iterable[str]], UserError]


def rows_of_file(
    file: Path, columns: Sequence[str], missing: Missing, *, header: bool = True, name: str | None = None
) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Where each row is ("train.csv, line", 7), and its values.

    Args:
        file: JSON lines, CSV, TSV or Parquet, by its name. Cells of a TSV file may be quoted as in CSV.
        columns: that a table must have; JSON lines are not asked.
        header: of CSV and TSV files; where it may be missing, the first cells of a row are the columns in
            their order.
        name: what to call the file, where it is a copy of another.

    Raises:
        UserError: what cannot be read, with the place in the file.
    """
    name = name or str(file)
    rows: Iterable[tuple[int, Mapping[str, Any] | BadRow]]
    place = f"{name}, line"
    if file.suffix == ".parquet":
        place = f"{name}, row"
        rows = parquet_rows(file, name, columns, missing, also=[LANGUAGE_COLUMN])
    elif file.suffix in DELIMITERS:
        text = read_text(file, name).decode("utf-8")
        rows = separated_rows(text, place, columns, missing, suffix=file.suffix, header=header)
    else:
        rows = json_rows(read_text(file, name).split(b"\n"))
    try:
        for number, row in rows:
            if isinstance(row, BadRow):
                raise UserError(f"{place} {number}: {row.reason}")
            yield place, number, row
    except (Damaged, OSError) as error:
        raise UserError(f"{name} cannot be read as Parquet: {error}") from error


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
    raw = raw.removeprefix(MARK)
    if isinstance(bad := decoded(raw), BadRow):
        raise UserError(
            f"{name} is {bad.reason}", f"convert it first, e.g. iconv -f LATIN1 -t UTF-8 {file.name}"
        )
    return raw


def not_utf8(error: UnicodeDecodeError) -> BadRow:
    """What is in the place of text in another encoding."""
    return BadRow(f"not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}")


def decoded(text: bytes) -> str | BadRow:
    """Text of UTF-8, without a mark."""
    try:
        return text.removeprefix(MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        return not_utf8(error)


# --- JSON ---------------------------------------------------------------------------------------------------


def json_rows(lines: Iterable[bytes], first: int = 0) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """The number and the row of each line that is not blank.

    Args:
        lines: of JSON. A file that is one list of rows is read, too; its rows are counted then.
        first: lines to pass over unread.
    """
    lines = iter(lines)
    head = next(lines, b"")
    if head.removeprefix(MARK).lstrip().startswith(b"["):
        rest = list(lines)
        if not (_is_json(head) and any(line.strip() for line in rest)):
            yield from islice(enumerate(_listed_rows(head + b"".join(rest)), start=1), first, None)
            return
        lines = iter(rest)
    for number, line in islice(enumerate(chain([head], lines), start=1), first, None):
        if line.strip():
            yield number, _row(line)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


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
        return not_utf8(error)
    except json.JSONDecodeError as error:
        return BadRow(f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    return row if isinstance(row, dict) else BadRow(NO_ROW)


# --- CSV and TSV --------------------------------------------------------------------------------------------


def separated_rows(
    text: str,
    place: str,
    columns: Sequence[str],
    missing: Missing,
    *,
    suffix: str = ".csv",
    header: bool = True,
) -> Iterator[tuple[int, dict[str, str]]]:
    """The line on which each row of a table begins, and the row; see `rows_of_file`."""
    names: Sequence[str] = columns
    lines = _cells(text, place, suffix)
    first = next(lines, None)
    if first is None:
        return
    number, cells = first
    if set(names) <= set(cells):
        names = cells
    elif header:
        raise missing(f"{place} {number}", next(name for name in names if name not in cells), cells)
    else:
        lines = chain([first], lines)
    for number, cells in lines:
        if len(cells) < len(names) or (names is first[1] and len(cells) > len(names)):
            count = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
            raise UserError(
                f"{place} {number}: {count}, expected {len(names)} ({', '.join(names)})",
                "cells with line breaks, quotes or separators in them are put in double quotes",
            )
        yield number, dict(zip(names, cells, strict=False))


def _cells(text: str, place: str, suffix: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row that is not blank, with the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=DELIMITERS[suffix], strict=True)
    begins = 1
    rows = []
    with _long_cells():
        try:
            for cells in reader:
                if cells:
                    rows.append((begins, cells))
                begins = reader.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"{place} {begins}: not well-formed {suffix[1:].upper()}: {error}",
                'a cell with quotes in it is put in quotes, and they are doubled: "a ""b"" c"',
            ) from error
    return iter(rows)


@contextmanager
def _long_cells() -> Iterator[None]:
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


# --- Parquet ------------------------------------------------------------------------------------------------


def parquet_rows(
    source: Path | BinaryIO,
    name: str,
    columns: Sequence[str],
    missing: Missing,
    *,
    also: Sequence[str] = (),
    first: int = 0,
) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """The number and the row of each row.

    Args:
        name: what to call the file.
        columns: to read.
        also: columns to read if they are there.
        first: rows to pass over.

    Raises:
        UserError: a column is missing.
        Damaged: it cannot be read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(source)
        there = file.schema_arrow.names
        for column in columns:
            if column not in there:
                raise missing(name, column, there)
        wanted = [*columns, *(column for column in also if column in there and column not in columns)]
        number = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if number + size <= first:
                number += size
                continue
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=wanted):
                for row in _rows_of_batch(batch):
                    number += 1
                    if number > first:
                        yield number, row
    except pa.ArrowException as error:
        raise Damaged(first_line(error)) from error


def _rows_of_batch(batch: Any) -> Iterable[dict[str, Any] | BadRow]:
    try:
        rows: list[dict[str, Any] | BadRow] = batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) > 1:
            return chain.from_iterable(_rows_of_batch(batch.slice(row, 1)) for row in range(len(batch)))
        return [not_utf8(error)]
    return rows
