"""Rows of files in every format: one reader for memory and streams.

A paragraph of plain text is a row with one column.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from mrt5cli.data.columns import LANGUAGE_COLUMN, Column, Row, holder, missing_column, our_names
from mrt5cli.data.formats import (
    BLOCK_BYTES,
    CONVERT,
    JSON,
    LONGEST_ROW,
    PACKED_PARQUET,
    PARQUET,
    TEXT,
    BadRow,
    Damaged,
    DataFile,
    json_value,
    not_utf8,
    rows_within,
    supported,
)
from mrt5cli.errors import UserError
from mrt5cli.text import byte_size, counted, first_line, listed

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import RowGroupMetaData

# Longer paragraphs, such as a text without blank lines, are cut into pieces of about this size.
PIECE_BYTES = 4096
# The most bytes of a character in UTF-8.
_CHARACTER_BYTES = 4
# Rows of Parquet decoded at a time.
ROWS_AT_ONCE = 64
# Bytes of a line of plain text read at a time.
TEXT_BYTES = 1 << 20
# Limit on the strings in the footer of a Parquet file; pyarrow's default is 100 MB.
FOOT_BYTES = 1 << 24
QUOTES = 'put a cell that contains quotes in quotes, and double them: "a ""b"" c"'
BREAKS = "put cells that contain line breaks, quotes or separators in double quotes"
_QUOTED = re.compile(r'"([^"]|"")*"')


class FileRow(NamedTuple):
    """A row of a file.

    Attributes:
        number: its number from 1; reading can resume after it.
        place: where it begins, for messages: "line 7", "paragraph 7", or "row 7" in Parquet and JSON lists.
        values: the values by column, or why the row cannot be used.
    """

    number: int
    place: str
    values: Row | BadRow


def rows_of(
    file: DataFile, columns: Sequence[Column], first: int = 0, *, header: bool = True
) -> Iterator[FileRow]:
    """Rows of a file, in order.

    Args:
        columns: the columns that a table must have; for JSON, the caller looks for them in each row. If
            empty, Parquet yields all of its columns.
        first: number of rows to skip.
        header: whether CSV and TSV files must begin with the column names. If not, and they are missing, the
            first cells of a row are the columns in order.

    Raises:
        UserError: a column is missing, or the file is plain text and several columns are needed.
        Damaged: the file cannot be read any further.
    """
    suffix = file.suffix
    if suffix in PARQUET:
        with file.unpacked() as stream:
            source: BinaryIO = stream
            if not file.name.lower().endswith(PARQUET):
                source = io.BytesIO(stream.read(PACKED_PARQUET + 1))
                if len(source.getbuffer()) > PACKED_PARQUET:
                    raise Damaged(
                        f"it decompresses to more than {byte_size(PACKED_PARQUET)}",
                        "decompress it; Parquet is compressed internally",
                    )
            yield from _parquet_rows(source, file.name, columns, first)
        return
    if suffix in TEXT and len(columns) > 1:
        raise UserError(f"{file.name} is plain text, expected rows", supported())
    with file.utf8() as stream:
        if suffix in TEXT:
            texts = _whole(stream) if file.whole else paragraphs(_text_lines(stream))
            for number, text in islice(enumerate(texts, start=1), first, None):
                place = f"{file.unit} {number}"
                try:
                    yield FileRow(number, place, {columns[0].name: text.decode("utf-8")})
                except UnicodeDecodeError as error:
                    yield FileRow(number, place, not_utf8(error))
        elif suffix in JSON:
            yield from _json_rows(stream, columns, first)
        else:
            stream = rows_within(stream)
            held = stream.read() if suffix == ".tsv" and file.remote else None  # fetched once
            quoted = suffix == ".csv" or _quotes_cells(file, held)
            lines = _as_lines(stream if held is None else io.BytesIO(held), "" if quoted else "\n")
            cells = _csv_cells(lines, "," if suffix == ".csv" else "\t") if quoted else _plain_cells(lines)
            rows = _rows_of_cells(cells, file.name, columns, header)
            yield from islice(rows, first, None)


def usable_rows(
    file: DataFile, columns: Sequence[Column], *, header: bool = True
) -> Iterator[tuple[str, Row]]:
    """The place of each row of a file ("train.csv, line 7"), and its values.

    Raises:
        UserError: the file cannot be read, or a row cannot be used; the message gives the place.
    """
    try:
        for _, place, values in rows_of(file, columns, header=header):
            if isinstance(values, BadRow):
                raise UserError(f"{file.name}, {place}: {values.reason}", values.hint)
            yield f"{file.name}, {place}", values
    except Damaged as error:
        how = " as Parquet" if file.suffix in PARQUET else ""
        hint = error.hint or "download the file again, or remove it from the data"
        raise UserError(f"{file.name} cannot be read{how}: {error}", hint) from error


# --- plain text ---------------------------------------------------------------------------------------------


def paragraphs(lines: Iterable[bytes]) -> Iterator[bytes]:
    r"""The documents of a text, in order, none empty; at most a line and a piece of one are in memory.

    Args:
        lines: lines of UTF-8 with their "\n" or "\r\n"; a long one may arrive in pieces.
    """
    held, after_blank = b"", False
    begins = True  # whether `line` begins a line; a later piece of one is blank only if it is long
    for line in lines:
        blank, begins = line.isspace() and (begins or len(line) > PIECE_BYTES), line.endswith(b"\n")
        if blank:
            yield from _cut(held.removesuffix(b"\n"), len(held))[0]
            held, after_blank = b"", True
            continue
        held += (line.lstrip() if after_blank else line).replace(b"\r\n", b"\n")
        after_blank = False
        if len(held) > PIECE_BYTES:
            # White space at the end may not belong to the paragraph, so its last piece is not final yet.
            pieces, held = _cut(held, len(held.rstrip()) - PIECE_BYTES - _CHARACTER_BYTES)
            yield from pieces
    yield from _cut(held.removesuffix(b"\n"), len(held))[0]


def _text_lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a stream, long ones in pieces: some corpora are a single line."""
    while line := stream.readline(TEXT_BYTES):
        while line.endswith(b"\r") and (more := stream.readline(1)):
            line += more
        yield line


def _whole(stream: BinaryIO) -> Iterator[bytes]:
    text = stream.read(LONGEST_ROW + 1)
    if len(text) > LONGEST_ROW:
        raise Damaged(
            f"it is one document of more than {byte_size(LONGEST_ROW)}",
            "split it into several files, or use a format with rows",
        )
    yield text.replace(b"\r\n", b"\n").strip()


def _cut(text: bytes, until: int) -> tuple[list[bytes], bytes]:
    """The pieces of a text that begin before `until`, cut after a space if possible; and the rest."""
    pieces, start, until = [], 0, min(until, len(text))
    while start < until:
        stop = start + PIECE_BYTES
        if stop < len(text):
            middle = start + PIECE_BYTES // 2
            stop = max(text.rfind(b" ", middle, stop), text.rfind(b"\n", middle, stop)) + 1 or stop
            # A byte 10xxxxxx continues the character before it.
            while stop < len(text) and text[stop] & 0xC0 == 0x80:
                stop += 1
        pieces.append(text[start:stop])
        start = stop
    return pieces, text[start:]


# --- JSON ---------------------------------------------------------------------------------------------------


def _json_rows(stream: io.BufferedReader, columns: Sequence[Column], first: int) -> Iterator[FileRow]:
    """A row for each line that is not blank, or each element of a file that is a single list."""
    values: Iterator[tuple[int, object]]
    unit = "line"
    if stream.peek(BLOCK_BYTES).lstrip().startswith(b"["):
        unit, values = "row", enumerate(_json_list(stream), start=1)
    else:
        lines = enumerate(rows_within(stream), start=1)
        values = ((number, json_value(line)) for number, line in islice(lines, first, None) if line.strip())
        first = 0
    for number, value in islice(values, first, None):
        if isinstance(value, dict) and not all(column.name in value for column in columns):
            value = dict(zip(our_names(value, columns), value.values(), strict=True))
        elif not isinstance(value, dict | BadRow):
            value = BadRow('not an object, expected a row such as {"text": "..."}')
        yield FileRow(number, f"{unit} {number}", value)


_START = re.compile(r"\s*\[(\s*\])?")
_GAP = re.compile(r"[ \t\r\n]*")
_AFTER = re.compile(r"[ \t\r\n]*([],])")
_DECODER = json.JSONDecoder()


def _json_list(stream: BinaryIO) -> Iterator[object]:
    """The values of a list, decoded one at a time; the first invalid one is a `BadRow` and ends the list."""
    decoder = codecs.getincrementaldecoder("utf-8")()

    def read(count: int) -> str:
        content = stream.read(count)
        return decoder.decode(content, final=not content)

    try:
        held = read(BLOCK_BYTES)
        start = _START.match(held)
        assert start is not None
        place, end = start.end(), "]" if start[1] else ","
        while end == ",":
            if (item := _item(held, place)) is not None:
                value, place, end = item
                yield value
            elif len(held) - place > LONGEST_ROW:
                yield BadRow(f"longer than {byte_size(LONGEST_ROW)}")
                return
            elif more := read(max(BLOCK_BYTES, len(held) - place)):
                held, place = held[place:] + more, 0
            else:
                value = json_value(held[place:].encode())
                yield value if isinstance(value, BadRow) else BadRow("not JSON: the list does not end")
                return
        if (held[place:] + read(BLOCK_BYTES)).strip():
            yield BadRow("not JSON: something follows the list")
    except UnicodeDecodeError as error:
        yield BadRow(f"not UTF-8: byte 0x{error.object[error.start]:02x}", CONVERT)


def _item(text: str, place: int) -> tuple[object, int, str] | None:
    """A value of a list, the position after its delimiter, and the delimiter; None if the text ends first."""
    gap = _GAP.match(text, place)
    assert gap is not None
    try:
        value, stop = _DECODER.raw_decode(text, gap.end())
    except (ValueError, RecursionError):
        return None
    after = _AFTER.match(text, stop)
    return None if after is None else (value, after.end(), after[1])


# --- CSV and TSV --------------------------------------------------------------------------------------------

# The line on which each row begins, and its cells.
Cells = Iterable[tuple[int, list[str]]]


def _rows_of_cells(lines: Cells, name: str, columns: Sequence[Column], header: bool) -> Iterator[FileRow]:
    lines = iter(lines)
    first = next(lines, None)
    if first is None:
        return
    number, cells = first
    if bad := _not_utf8(cells):
        raise UserError(f"{name}, line {number}: {bad.reason}", bad.hint)
    names = [column.name for column in columns]
    if header or set(names) <= set(our_names(cells, columns)):
        names = _checked_names(f"{name}, line {number}", cells, columns)
    else:
        lines = chain([first], lines)
    # Without a header, rows have as many cells as the first; cells beyond the columns are not read.
    fewest, most = len(names), len(cells)
    for count, (number, row) in enumerate(lines, start=1):
        if fewest <= len(row) <= most:
            yield FileRow(count, f"line {number}", _not_utf8(row) or dict(zip(names, row, strict=False)))
        else:
            found = f"{counted(len(row), 'cell')}, expected {fewest} ({listed(names, 12)})"
            yield FileRow(count, f"line {number}", BadRow(found, BREAKS))


def _not_utf8(cells: Sequence[str]) -> BadRow | None:
    """The bad row for text in which invalid bytes are lone surrogates; None for valid text."""
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError as error:
        return BadRow(f"not UTF-8: byte 0x{ord(error.object[error.start]) - 0xDC00:02x}", CONVERT)
    return None


def _checked_names(where: str, own: Sequence[str], columns: Sequence[Column]) -> list[str]:
    """The task's names for the columns of a table, each of which must exist exactly once."""
    names = our_names(own, columns)
    wanted = [column.name for column in columns]
    for name in (*wanted, LANGUAGE_COLUMN):
        if name in wanted and holder(names, name) is None:
            raise missing_column(where, name, own, columns)
        if names.count(name) > 1:
            raise UserError(f"{where}: several columns are named {name!r}", "rename or remove one")
    return names


def _csv_cells(lines: Iterable[str], delimiter: str) -> Cells:
    csv.field_size_limit(LONGEST_ROW)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    begins = 1
    try:
        for cells in reader:
            if cells:
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise Damaged(
            f"line {begins}: a quote is not closed, or is not doubled within a cell ({error})", QUOTES
        ) from error


def _plain_cells(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, start=1):
        text = line[:-2] if line.endswith("\r\n") else line.removesuffix("\n")
        if text:
            yield number, text.split("\t")


def _as_lines(stream: BinaryIO, end: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline=end)


def _quotes_cells(file: DataFile, held: bytes | None) -> bool:
    """Whether a TSV file quotes cells. Most writers of TSV do not, so quotes are text unless the file would
    not make sense without quoting. Every line is inspected before the first row is read.

    Args:
        held: the content, if it is in memory already.
    """

    def look(question: Callable[[Iterable[str]], bool], end: str) -> bool:
        with file.utf8() if held is None else io.BytesIO(held) as stream:
            lines = _as_lines(rows_within(stream), end)
            return question(lines)

    return look(_may_quote, "\n") and look(_are_quoted_rows, "")


def _may_quote(lines: Iterable[str]) -> bool:
    """Whether plain rows differ in width, or every cell that begins with a quote is quoted as in CSV.

    It is if all such cells also end with a quote, and one contains doubled quotes or the first row has only
    such cells.
    """
    widths, begin, whole, doubled, first = set[int](), False, True, False, None
    for _, row in _plain_cells(lines):
        widths.add(len(row))
        quoted = [cell for cell in row if cell.startswith('"')]
        first = len(quoted) == len(row) if first is None else first
        begin = begin or bool(quoted)
        whole = whole and all(map(_QUOTED.fullmatch, quoted))
        doubled = doubled or any('""' in cell[1:-1] for cell in quoted)
    return begin and (len(widths) > 1 or (whole and (doubled or bool(first))))


def _are_quoted_rows(lines: Iterable[str]) -> bool:
    """Whether lines can be read as quoted rows of one width."""
    try:
        return len({len(cells) for _, cells in _csv_cells(lines, "\t")}) == 1
    except Damaged:
        return False  # quotes are text


# --- Parquet ------------------------------------------------------------------------------------------------


def _parquet_rows(source: BinaryIO, name: str, columns: Sequence[Column], first: int) -> Iterator[FileRow]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(source, thrift_string_size_limit=FOOT_BYTES)
        own = file.schema_arrow.names
        there = _checked_names(name, own, columns)
        wanted = {*(holder(there, column.name) for column in columns), LANGUAGE_COLUMN}
        read = [old for old, new in zip(own, there, strict=True) if not columns or new in wanted]
        number = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if number + size <= first:
                number += size
                continue
            _check_sizes(file.metadata.row_group(group), number)
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=read):
                for row in _as_written(batch.rename_columns(our_names(batch.schema.names, columns))):
                    number += 1
                    if number > first:
                        yield FileRow(number, f"row {number}", row)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise Damaged(first_line(error)) from error


def _check_sizes(group: RowGroupMetaData, before: int) -> None:
    """Reject a row group whose mean cell is too long for memory."""
    for place in range(group.num_columns):
        column = group.column(place)
        if column.total_uncompressed_size > LONGEST_ROW * group.num_rows:
            raise Damaged(
                f"rows from {before + 1} on have more than {byte_size(LONGEST_ROW)} each in column "
                f"{column.path_in_schema!r}"
            )


def _as_written(batch: pa.RecordBatch) -> list[Row | BadRow]:
    """The rows of a batch; 0.1 in 32 bits becomes 0.1, not the nearest 64-bit value of its bits."""
    import pyarrow as pa

    for place, field in enumerate(batch.schema):
        if field.type == pa.float32():
            exact = batch.column(place).cast(pa.string()).cast(pa.float64())
            batch = batch.set_column(place, field.name, exact)
    try:
        return batch.to_pylist()
    except _NO_VALUE:
        return [_row_of(batch, place) for place in range(batch.num_rows)]


_NO_VALUE = (ValueError, OverflowError)  # for example bytes that are not UTF-8, and years after 9999


def _row_of(batch: pa.RecordBatch, place: int) -> Row | BadRow:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[place].as_py()
        except UnicodeDecodeError as error:
            return BadRow(f"column {name!r}: {not_utf8(error).reason}", "write its text in UTF-8")
        except _NO_VALUE as error:
            return BadRow(f"column {name!r} has a value that cannot be read: {first_line(error)}")
    return row
