"""Rows of files of every format: one reader, whether they are held in memory or streamed.

A paragraph of plain text is a row with one column.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from mrt5cli.data.columns import LANGUAGE_COLUMN, Column, Row, missing_column
from mrt5cli.data.formats import (
    CONVERT,
    JSON,
    PARQUET,
    TEXT,
    BadRow,
    Damaged,
    DataFile,
    json_value,
    not_utf8,
    supported,
)
from mrt5cli.data.paragraphs import paragraphs, whole_text
from mrt5cli.errors import UserError
from mrt5cli.text import Tell, counted, first_line, say_nothing, shortened

if TYPE_CHECKING:
    import pyarrow as pa

# Rows of Parquet that are decoded at a time, and bytes of plain text that are read.
ROWS_AT_ONCE, TEXT_AT_ONCE = 64, 1 << 20
# Longer than any passage; csv's own limit is 128 KiB.
LONGEST_CELL = 2**31 - 1
NO_ROW = "a row must be an object of columns"
QUOTES = 'a cell with quotes in it is put in quotes, and they are doubled: "a ""b"" c"'
BREAKS = "cells with line breaks, quotes or separators in them are put in double quotes"
# Lines that look like rows of their own, in one cell: from so many on, no text looks like that by chance.
SWALLOWED_LINES = 3
# Where fewer rows than this share go over several lines, they are told of: a quote may lack its pair.
FEW = 0.05


class FileRow(NamedTuple):
    """A row of a file.

    Attributes:
        number: from 1 on, by which reading can begin anywhere.
        line: where it begins, for people: a line, a paragraph, or in Parquet and in one list of JSON a row.
        values: of its columns, or what keeps it from being used.
    """

    number: int
    line: int
    values: Row | BadRow


@dataclass(frozen=True)
class Wanted:
    """What is wanted of the rows of a file, beside the language that they may say.

    Attributes:
        columns: that a table must have; each row of JSON is asked by who reads it.
        header: of CSV and TSV files; where it may be missing, the first cells of a row are the columns in
            their order.
        tell: is told of what is suspicious and still read.
    """

    columns: Sequence[Column]
    header: bool = True
    tell: Tell = say_nothing

    @cached_property
    def names(self) -> list[str]:
        """Of the columns."""
        return [column.name for column in self.columns]

    @cached_property
    def others(self) -> dict[str, str]:
        """Other names of columns, and the name that each stands for."""
        return {other: column.name for column in self.columns for other in column.others}

    def missing(self, where: str, name: str, there: Iterable[str]) -> UserError:
        """What a file without a column is told."""
        return missing_column(where, name, there, self.columns)

    def renamed(self, there: Sequence[str]) -> list[str]:
        """The names of columns that are there, those that have others by ours, unless that is there too."""
        return [
            ours if (ours := self.others.get(name)) is not None and ours not in there else name
            for name in there
        ]

    def in_any_case(self, there: Sequence[str]) -> list[str]:
        """The same for the head of a table, where "Text " is "text", unless that is there too."""
        ours = {name.lower(): name for name in (*self.names, *self.others)}
        plain = [name.strip().lower() for name in there]
        return self.renamed(
            [
                ours[near] if near in ours and ours[near] not in there and plain.count(near) == 1 else name
                for name, near in zip(there, plain, strict=True)
            ]
        )


def rows_of(file: DataFile, wanted: Wanted, first: int = 0) -> Iterator[FileRow]:
    """Rows of a file, in order.

    Args:
        first: rows to pass over.

    Raises:
        UserError: a column is missing, or the format is no table and several are wanted.
        Damaged: the file cannot be read from here on.
    """
    suffix = file.format.suffix
    if suffix in PARQUET:
        with file.unpacked() as stream:
            source = stream if not file.format.packing else io.BytesIO(stream.read())
            yield from _parquet_rows(source, file.name, wanted, first)
        return
    if suffix in TEXT and len(wanted.names) > 1:
        raise UserError(f"{file.name} holds text, expected rows", supported())
    with file.utf8() as stream:
        if suffix in TEXT:
            blocks = iter(lambda: stream.read(TEXT_AT_ONCE), b"")
            parts = enumerate(whole_text(blocks) if file.whole else paragraphs(blocks), start=1)
            [name] = wanted.names
            yield from (FileRow(number, number, {name: part}) for number, part in islice(parts, first, None))
        elif suffix in JSON:
            rows = _json_rows(stream, first)
            yield from _renamed(rows, wanted) if wanted.others else rows
        else:
            cells = _CELLS[suffix](stream, file.name, wanted)
            yield from islice(_rows_of_cells(cells, f"{file.name}, line", wanted), first, None)


def _renamed(rows: Iterable[FileRow], wanted: Wanted) -> Iterator[FileRow]:
    for row in rows:
        if isinstance(row.values, BadRow):
            yield row
        else:
            names = wanted.renamed(list(row.values))
            yield row._replace(values=dict(zip(names, row.values.values(), strict=True)))


def usable_rows(file: DataFile, wanted: Wanted) -> Iterator[tuple[str, int, Row]]:
    """Where each row of a file is ("train.csv, line", 7), and its values.

    Raises:
        UserError: what cannot be read, or the first row that cannot be used, with the place in the file.
    """
    place = f"{file.name}, {file.unit}"
    try:
        for _, line, values in rows_of(file, wanted):
            if isinstance(values, BadRow):
                raise UserError(f"{place} {line}: {values.reason}", values.hint)
            yield place, line, values
    except Damaged as error:
        raise cannot_be_read(file, error) from error


def cannot_be_read(file: DataFile, error: Damaged) -> UserError:
    """What is told of a file that is damaged."""
    how = " as Parquet" if file.format.suffix in PARQUET else ""
    hint = error.hint or "get the file again, or take it out of the data"
    return UserError(f"{file.name} cannot be read{how}: {error}", hint)


# --- JSON ---------------------------------------------------------------------------------------------------


def _json_rows(stream: BinaryIO, first: int) -> Iterator[FileRow]:
    """A row each line that is not blank. Of a file that is one list of rows, these, counted."""
    lines: Iterator[bytes] = iter(stream)
    head = next(lines, b"")
    if head.lstrip().startswith(b"["):
        rest = list(lines)
        if not (isinstance(json_value(head), list) and any(line.strip() for line in rest)):
            yield from islice(_listed_rows(head + b"".join(rest)), first, None)
            return
        lines = iter(rest)
    for number, line in islice(enumerate(chain([head], lines), start=1), first, None):
        if line.strip():
            yield FileRow(number, number, _row(json_value(line)))


def _row(value: object) -> Row | BadRow:
    if isinstance(value, dict | BadRow):
        return value
    return BadRow(NO_ROW)


def _listed_rows(content: bytes) -> Iterator[FileRow]:
    rows = json_value(content)
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        yield FileRow(number, number, _row(row))


# --- CSV and TSV --------------------------------------------------------------------------------------------

# The line on which each row of a table begins, and its cells.
Cells = Iterator[tuple[int, list[str]]]


def _rows_of_cells(lines: Cells, place: str, wanted: Wanted) -> Iterator[FileRow]:
    names: Sequence[str] = wanted.names
    first = next(lines, None)
    if first is None:
        return
    number, cells = first[0], wanted.in_any_case(first[1])
    if isinstance(bad := _checked("\t".join(cells)), BadRow):
        raise UserError(f"{place} {number}: {bad.reason}", bad.hint)
    if set(names) <= set(cells):
        names = cells
        _refuse_twins(f"{place} {number}", names, wanted)
    elif wanted.header:
        if len(cells) == 1 and (separator := next((mark for mark in ";\t|," if mark in cells[0]), None)):
            raise UserError(
                f"{place} {number}: one column, {shortened(cells[0])!r}",
                f"write it with the separator of its format; it looks as if this one had {separator!r}",
            )
        raise wanted.missing(f"{place} {number}", next(name for name in names if name not in cells), cells)
    else:
        lines = chain([first], lines)
    # Without a head, the first row says how many cells there are at most; more than the columns are not read.
    width, least = len(cells), len(names)
    for count, (number, cells) in enumerate(lines, start=1):
        if not least <= len(cells) <= width:
            found = f"{counted(len(cells), 'cell')}, expected {least} ({', '.join(names)})"
            yield FileRow(count, number, BadRow(found, BREAKS))
        elif isinstance(bad := _checked("\t".join(cells)), BadRow):
            yield FileRow(count, number, bad)
        else:
            yield FileRow(count, number, dict(zip(names, cells, strict=False)))


def _checked(cells: str) -> BadRow | None:
    """What is wrong with text in which bytes that are no UTF-8 stand as lone surrogates."""
    if cells.isascii():
        return None
    try:
        cells.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(cells[error.start]) - 0xDC00
        return BadRow(f"not UTF-8: byte 0x{byte:02x}", CONVERT)
    return None


def _refuse_twins(where: str, names: Sequence[str], wanted: Wanted) -> None:
    """Refuse a table with two columns of a name that is read."""
    for name in (*wanted.names, LANGUAGE_COLUMN):
        if list(names).count(name) > 1:
            raise UserError(
                f"{where}: several columns are called {name!r}, and one can be read", "rename or remove one"
            )


def _csv_cells(stream: BinaryIO, name: str, wanted: Wanted) -> Cells:
    several = count = 0
    longest, suspicious = (0, 0), (0, 0)
    usual: list[bool] = []
    quoted = False
    for begins, cells, lines in _parsed(_lines(stream), ",", name):
        count += 1
        if len(lines) == 1:
            usual, quoted = [cell.isdecimal() for cell in cells], '"' in lines[0]
        else:
            several += 1
            longest = max(longest, (len(lines), begins))
            if swallowed := _swallowed_rows(cells, ",", len(usual)):
                in_quotes = all(('"' in line) == quoted for line in lines[1:-1])
                if len(swallowed) >= SWALLOWED_LINES and in_quotes and _alike(swallowed, usual):
                    raise Damaged(
                        f"line {begins}: a quote that opens here holds {len(swallowed):,} more lines in one "
                        "row, each of which looks like a row of its own",
                        QUOTES,
                    )
                suspicious = (suspicious[0] + 1, suspicious[1] or begins)
        yield begins, cells
    count -= wanted.header
    if suspicious[0] and 2 * suspicious[0] <= count:
        wanted.tell(
            f"{name}: {counted(suspicious[0], 'row')} of {count:,}, the first from line {suspicious[1]} on, "
            f"{'holds' if suspicious[0] == 1 else 'hold'} lines between quotes that look like rows of their "
            "own: if they are, a quote lacks its pair there"
        )
    elif 0 < several <= FEW * count:
        wanted.tell(
            f"{name}: {counted(several, 'row')} of {count:,} {'goes' if several == 1 else 'go'} over "
            f"several lines, the longest over {longest[0]:,} from line {longest[1]} on: if this is not "
            "meant, a quote lacks its pair there"
        )


def _lines(stream: BinaryIO) -> Iterator[str]:
    """Lines as they are, however they end; bytes that are no UTF-8 as lone surrogates."""
    for line in stream:
        text = line.decode("utf-8", errors="surrogateescape")
        if "\r" in text[:-2]:
            yield from io.StringIO(text, newline="")
        else:
            yield text


def _parsed(text: Iterable[str], delimiter: str, name: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """The line on which each row that is not blank begins, its cells, and its lines as they are."""
    lines: list[str] = []

    def fed() -> Iterator[str]:
        for line in text:
            lines.append(line)
            yield line

    reader = csv.reader(fed(), delimiter=delimiter, strict=True)
    while True:
        begins = reader.line_num + 1
        lines.clear()
        limit = csv.field_size_limit(LONGEST_CELL)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            kind = "TSV" if delimiter == "\t" else "CSV"
            reason = "a quote that opens here is not closed"
            if "end of data" not in str(error):
                reason = "text follows a closing quote; or a quote that opens here lacks its pair"
            raise Damaged(f"line {begins}: not well-formed {kind}: {reason}", QUOTES) from error
        finally:
            csv.field_size_limit(limit)
        if cells is None:
            return
        if cells:
            yield begins, cells, lines


def _swallowed_rows(cells: list[str], delimiter: str, width: int) -> list[list[str]]:
    """The rows that a cell holds whose quote lacks its pair; none where its lines do not look like rows.

    They do where all of them have as many cells as there are columns: what stands before the quote and in its
    first line, each line between, and its last line and what stands after the quote.
    """
    for place, cell in enumerate(cells):
        first, *rest = [line.split(delimiter) for line in cell.replace("\r\n", "\n").split("\n")]
        if not rest or width < 2:
            continue
        rest[-1] = rest[-1] + cells[place + 1 :]
        if place + len(first) == width and all(len(row) == width for row in rest):
            return rest
    return []


def _alike(rows: list[list[str]], usual: list[bool]) -> bool:
    """Whether rows have numbers where the table has them, which text does not have by chance."""
    return any(usual) and all([cell.isdecimal() for cell in row] == usual for row in rows)


def _tsv_cells(stream: BinaryIO, name: str, wanted: Wanted) -> Cells:
    """Most writers of TSV quote nothing; those that do are known by the quotes that a cell would not need."""
    text = stream.read().decode("utf-8", errors="surrogateescape")
    if _quotes_cells(text, name):
        for begins, cells, _ in _parsed(io.StringIO(text, newline=""), "\t", name):
            yield begins, cells
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.removesuffix("\r"):
            yield number, line.split("\t")


def _quotes_cells(text: str, name: str) -> bool:
    """Whether a TSV file quotes cells as CSV does.

    It does where it can be read so, where no cell holds what looks like rows of their own, and where quotes
    around a cell are there for a reason: the cell holds a tab, a line break or a quote, or all cells of the
    column are in quotes.
    """
    if '"' not in text:
        return False
    rows, width = 0, 0
    quoted: dict[int, int] = {}
    needless: set[int] = set()
    try:
        for _, cells, lines in _parsed(io.StringIO(text, newline=""), "\t", name):
            width = width or len(cells)
            swallowed = len(lines) > 1 and (width < 2 or _swallowed_rows(cells, "\t", width))
            if len(cells) < width or swallowed:
                return False
            rows += 1
            place, line = 0, "".join(lines)
            for column, cell in enumerate(cells):
                if line.startswith('"', place):
                    place += 2 + cell.count('"')
                    quoted[column] = quoted.get(column, 0) + 1
                    if not any(reason in cell for reason in '\t\n\r"'):
                        needless.add(column)
                place += len(cell) + 1
    except Damaged:
        return False
    # The first row may be the columns' names, which need no quotes.
    return all(quoted[column] >= (rows if rows <= SWALLOWED_LINES else rows - 1) for column in needless)


_CELLS: dict[str, Callable[[BinaryIO, str, Wanted], Cells]] = {".csv": _csv_cells, ".tsv": _tsv_cells}


# --- Parquet ------------------------------------------------------------------------------------------------


def _parquet_rows(source: BinaryIO, name: str, wanted: Wanted, first: int) -> Iterator[FileRow]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(source)
        own = file.schema_arrow.names
        there = wanted.renamed(own)
        for column in wanted.names:
            if column not in there:
                raise wanted.missing(name, column, there)
        _refuse_twins(name, there, wanted)
        read = [*wanted.names, *(column for column in [LANGUAGE_COLUMN] if column in there)]
        columns = list(dict.fromkeys(own[there.index(column)] for column in read))
        number = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if number + size <= first:
                number += size
                continue
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns):
                for row in _rows_of_batch(batch.rename_columns(wanted.renamed(batch.schema.names))):
                    number += 1
                    if number > first:
                        yield FileRow(number, number, row)
    except pa.ArrowException as error:
        raise Damaged(first_line(error)) from error


def _rows_of_batch(batch: pa.RecordBatch) -> Iterable[Row | BadRow]:
    try:
        rows: list[Row | BadRow] = batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) > 1:
            return chain.from_iterable(_rows_of_batch(batch.slice(row, 1)) for row in range(len(batch)))
        return [not_utf8(error)]
    return rows
