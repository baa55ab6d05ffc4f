"""The columns of rows: what each contains, and how a value is read; a text is a row with one column."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal

from mrt5cli.data.formats import BadRow, json_value, not_utf8
from mrt5cli.errors import UserError
from mrt5cli.text import listed, shortened

LANGUAGE_COLUMN = "language"
MANY = 1000
"""Most columns that are searched for a name similar to a missing one."""
OTHER_LANGUAGES = f"rows left out, because their column {LANGUAGE_COLUMN!r} names another language"

Row = Mapping[str, object]
# The value of a cell: a text, or several.
Value = str | list[str]


@dataclass(frozen=True)
class Column:
    """A column of a task's rows.

    Attributes:
        name: its name; "a.b" is a column of that name, or else b within a.
        expected: what it contains, for messages.
        read: turns a row's value into a text or a list of texts; raises `Unusable`, or `ValueError` with what
            was found.
        many: whether the value is a list of texts.
        others: further names of it, as in the data sets' own files.
        hint: what to do if it is missing; by default the hint lists the columns of a row.
    """

    name: str
    expected: str
    read: Callable[[object], Value]
    many: bool = False
    others: tuple[str, ...] = ()
    hint: str | None = None


class Unusable(Exception):
    """A well-formed row that the task cannot use: it is left out, and counted by reason."""


def text_column(name: str, *others: str, hint: str | None = None) -> Column:
    """A column of text. A lone surrogate, which UTF-8 cannot encode, becomes "?"."""
    return Column(name, "text", read_text, others=others, hint=hint)


def cell_column(name: str, hint: str | None = None) -> Column:
    """A column of texts, numbers or booleans; see `read_cell`."""
    return Column(name, "text, a number, true or false", read_cell, hint=hint)


def cells_column(name: str, hint: str | None = None, *, may_be_empty: bool = False) -> Column:
    """A column of what a `cell_column` accepts, or of lists of it.

    Args:
        may_be_empty: whether null and an empty list are allowed.
    """

    def read(value: object) -> list[str]:
        if may_be_empty and value is None:
            return []
        found = value if isinstance(value, list) else [value]
        if not found and not may_be_empty:
            raise ValueError("is an empty list")
        return [read_cell(one) for one in found]

    return Column(name, "text, a number, true or false, or a list of them", read, many=True, hint=hint)


def label_column(
    name: str, labels: Sequence[str], *others: str, also: Mapping[str, str] | None = None
) -> Column:
    """A column of labels, by name or by index in `labels`; read as the index, a text such as "0".

    Args:
        also: synonyms of labels. The label "-" marks disagreement of annotators and makes a row unusable.
    """
    places = {key: str(place) for place, label in enumerate(labels) for key in (str(place), label)}
    places |= {word: places[label] for word, label in (also or {}).items()}

    def read(value: object) -> str:
        # Table writers turn 1 into 1.0 in a column with missing labels; both are rejected.
        key = str(value) if isinstance(value, int) else value
        if key == "-":
            raise Unusable("on whose label annotators did not agree")
        if not isinstance(key, str) or key not in places:
            raise ValueError(f"is {shown(value)}")
        return places[key]

    return Column(
        name, f"{', '.join(map(str, range(len(labels))))} or {', '.join(labels)}", read, others=others
    )


def answers_column(name: str) -> Column:
    """A column of accepted answers: SQuAD's lists, the same as a JSON string, or one answer as plain text."""
    return Column(name, 'answers such as {"text": ["..."], "answer_start": [0]}', _read_answers, many=True)


def read_text(value: object) -> str:
    """The text in a cell; a `ValueError` names its type if it is not text."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"is {not_utf8(error).reason}") from None
    if not isinstance(value, str):
        raise ValueError(f"is {shown(value)}")
    return value if value.isascii() else value.encode("utf-8", errors="replace").decode("utf-8")


def read_cell(value: object) -> str:
    """The text of a cell that is a text, number, boolean or date.

    Cells of CSV and TSV are texts as they are written. Numbers and booleans of JSON and Parquet are written
    as in JSON: 3, 1.5, true.

    Raises:
        ValueError: it is null, NaN or infinite, a list or a nested object.
    """
    if isinstance(value, str):
        return read_text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"is {value}")
    if isinstance(value, int | float | Decimal | date | time):
        return str(value)
    if isinstance(value, Mapping):
        raise ValueError(f"has nested columns ({listed(list(value), 4)}), which are named with a dot")
    return read_text(value)


def _read_answers(value: object) -> list[str]:
    found = value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        found = json_value(value.encode("utf-8", errors="replace"))
        if isinstance(found, BadRow):
            raise ValueError(f"is {shown(value)}: {found.reason}")
    if isinstance(found, str):
        return [read_text(found)]
    texts = found.get("text") if isinstance(found, Mapping) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"is {shown(found)}")
    if not texts:
        raise Unusable("without an answer")
    return [read_text(text) for text in texts]


def shown(value: object) -> str:
    """A value for a message, cut if it is long."""
    return "null" if value is None else shortened(repr(value))


def cell(row: Row, name: str) -> object:
    """The value in a row's column; a column named "a.b" takes precedence over b within a.

    Raises:
        KeyError: the row lacks the column.
    """
    if name in row:
        return row[name]
    for head, rest in _ways_into(name):
        within = row.get(head)
        if isinstance(within, Mapping):
            return cell(within, rest)
        if head in row and within is None:
            return None
    raise KeyError(name)


def holder(existing: Iterable[str], name: str) -> str | None:
    """The table's column that a column is, or may be nested in."""
    existing = set(existing)
    return next((head for head in (name, *(head for head, _ in _ways_into(name))) if head in existing), None)


def _ways_into(name: str) -> Iterator[tuple[str, str]]:
    """ "a.b" and "c", "a" and "b.c" for "a.b.c"."""
    parts = name.split(".")
    return ((".".join(parts[:k]), ".".join(parts[k:])) for k in range(len(parts) - 1, 0, -1))


def names_in(row: Row) -> list[str]:
    """The names of a row's columns, nested ones with dots."""
    found: list[str] = []
    for name, value in row.items():
        inner = names_in(value) if isinstance(value, Mapping) else []
        found += [f"{name}.{one}" for one in inner] or [name]
    return found


def our_names(existing: Iterable[str], columns: Sequence[Column]) -> list[str]:
    """The names of columns, with those that match a task's column, in any case or by a synonym, replaced."""
    existing = list(existing)
    ours = {name.lower(): column.name for column in columns for name in (*column.others, column.name)}
    plain = [name.strip().lower() for name in existing]
    return [
        ours[near] if near in ours and ours[near] not in existing and plain.count(near) == 1 else name
        for name, near in zip(existing, plain, strict=True)
    ]


def missing_column(where: str, name: str, existing: Iterable[str], columns: Sequence[Column]) -> UserError:
    """The error for a row or a file without a column."""
    hint = next((column.hint for column in columns if column.name == name), None)
    existing = names_in(existing) if isinstance(existing, Mapping) else list(existing)
    odd = other_mark(existing)
    existing = [shortened(name) for name in existing[:MANY]]
    near = next(iter(difflib.get_close_matches(name, existing, 1)), None)
    if odd:
        near, hint = None, odd
    meant = f"; did you mean {near!r}?" if near else ""
    return UserError(
        f"{where}: no column {name!r}; it has {listed(existing, 12) or 'none'}{meant}",
        hint or "a row has " + "; ".join(f"{column.name}: {column.expected}" for column in columns),
    )


def other_mark(existing: Sequence[str]) -> str | None:
    """The hint for a table whose only column looks like several with another separator."""
    mark = next((mark for mark in ("\t", ";", "|", ",") if len(existing) == 1 and mark in existing[0]), None)
    return mark and f"its cells seem to be separated by {mark!r}; .csv needs ',' and .tsv needs tabs"


def values_of(where: str, row: Row, columns: Sequence[Column]) -> dict[str, Value]:
    """The values of a row's columns, as each `Column` reads them.

    Raises:
        UserError: a column is missing, or a value is not as expected.
        Unusable: the task cannot use the row.
    """
    values = {}
    for column in columns:
        try:
            values[column.name] = column.read(cell(row, column.name))
        except KeyError:
            raise missing_column(where, column.name, row, columns) from None
        except ValueError as found:
            raise UserError(f"{where}: column {column.name!r} {found}, expected {column.expected}") from None
    return values


def language_column(row: Row) -> str | None:
    """The language in a row's language column; None if it has none."""
    said = row.get(LANGUAGE_COLUMN)
    return (str(said).strip() or None) if said else None


def column_of_texts(name: str) -> Column:
    """The column that contains the text of a row."""
    return text_column(name, hint="rename it, or set task.source.text_column in the recipe")


def text_of(where: str, row: Row, column: Column) -> bytes:
    """The text of a row in UTF-8; empty if null or blank. Raises `UserError` as `values_of` does."""
    value = row.get(column.name)
    if not isinstance(value, str):
        if value is None and column.name in row:
            return b""
        value = str(values_of(where, row, [column])[column.name])
    content = value.encode("utf-8", errors="replace")
    return b"" if content.isspace() else content
