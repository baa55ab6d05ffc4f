"""The columns of rows: what each holds, and how a value is read; a text is a row with one column."""

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
"""Columns that are looked through for one whose name was meant."""
OTHER_LANGUAGES = f"rows left out, because their column {LANGUAGE_COLUMN!r} says another language"

Row = Mapping[str, object]
# What is kept of a cell: a text, or several.
Value = str | list[str]


@dataclass(frozen=True)
class Column:
    """A column of a task's rows.

    Attributes:
        name: its name; "a.b" is a column of that name, or else b within a.
        expected: what it holds, in words.
        read: makes the value we keep, a text or a list of texts, of one found in a row; raises `ValueError`
            that says what was found, or `Unusable`.
        many: the value is a list of texts.
        others: names that it has in the data sets' own files.
        hint: what to do where rows lack it; by default the hint names all columns that a row has.
    """

    name: str
    expected: str
    read: Callable[[object], Value]
    many: bool = False
    others: tuple[str, ...] = ()
    hint: str | None = None


class Unusable(Exception):
    """A row that is well-formed and of no use for the task: it is left out and counted, by the reason."""


def text_column(name: str, *others: str, hint: str | None = None) -> Column:
    """A column of text. A lone surrogate, which no UTF-8 can hold, becomes "?"."""
    return Column(name, "text", read_text, others=others, hint=hint)


def cell_column(name: str, hint: str | None = None) -> Column:
    """A column of texts, numbers, or true and false; see `read_cell`."""
    return Column(name, "text, a number, true or false", read_cell, hint=hint)


def cells_column(name: str, hint: str | None = None, *, may_be_empty: bool = False) -> Column:
    """A column of what a `cell_column` holds, or of lists of it.

    Args:
        may_be_empty: a row may have none.
    """

    def read(value: object) -> list[str]:
        if may_be_empty and value is None:
            return []
        found = value if isinstance(value, list) else [value]
        if not found and not may_be_empty:
            raise ValueError("holds an empty list")
        return [read_cell(one) for one in found]

    return Column(name, "text, a number, true or false, or a list of them", read, many=True, hint=hint)


def label_column(
    name: str, labels: Sequence[str], *others: str, also: Mapping[str, str] | None = None
) -> Column:
    """A column of labels, given by name or by place in `labels`; kept as the place, a text such as "0".

    Args:
        also: other words for labels. The label "-", on which annotators did not agree, makes a row unusable.
    """
    places = {key: str(place) for place, label in enumerate(labels) for key in (str(place), label)}
    places |= {word: places[label] for word, label in (also or {}).items()}

    def read(value: object) -> str:
        # 1.0 is what table writers make of a label beside missing ones, and is refused with them.
        key = str(value) if isinstance(value, int) else value
        if key == "-":
            raise Unusable("on whose label annotators did not agree")
        if not isinstance(key, str) or key not in places:
            raise ValueError(f"holds {shown(value)}")
        return places[key]

    return Column(
        name, f"{', '.join(map(str, range(len(labels))))} or {', '.join(labels)}", read, others=others
    )


def answers_column(name: str) -> Column:
    """A column of accepted answers: SQuAD's lists, the same as JSON, or one answer as plain text."""
    return Column(name, 'answers such as {"text": ["..."], "answer_start": [0]}', _read_answers, many=True)


def read_text(value: object) -> str:
    """The text in a cell; a `ValueError` says what else it holds."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"is {not_utf8(error).reason}") from None
    if not isinstance(value, str):
        raise ValueError(f"holds {shown(value)}")
    return value if value.isascii() else value.encode("utf-8", errors="replace").decode("utf-8")


def read_cell(value: object) -> str:
    """The text of a cell: a text, or a number, truth or date as it is written.

    Cells of CSV and TSV are texts as they stand there. What JSON and Parquet hold as numbers is written as
    JSON does: 3, 1.5, true.

    Raises:
        ValueError: it is nothing, no number, a list or columns of its own.
    """
    if isinstance(value, str):
        return read_text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"holds {value}")
    if isinstance(value, int | float | Decimal | date | time):
        return str(value)
    if isinstance(value, Mapping):
        raise ValueError(f"holds columns of its own ({listed(list(value), 4)}), which are named with a dot")
    return read_text(value)


def _read_answers(value: object) -> list[str]:
    found = value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        found = json_value(value.encode("utf-8", errors="replace"))
        if isinstance(found, BadRow):
            raise ValueError(f"holds {shown(value)}: {found.reason}")
    if isinstance(found, str):
        return [read_text(found)]
    texts = found.get("text") if isinstance(found, Mapping) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"holds {shown(found)}")
    if not texts:
        raise Unusable("without an answer")
    return [read_text(text) for text in texts]


def shown(value: object) -> str:
    """A value, for a sentence about it."""
    return "nothing" if value is None else shortened(repr(value))


def cell(row: Row, name: str) -> object:
    """The value in a row's column; a column that is called "a.b" wins over b within a.

    Raises:
        KeyError: there is none.
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


def holder(there: Iterable[str], name: str) -> str | None:
    """Which of a table's columns a column is, or may be within."""
    there = set(there)
    return next((head for head in (name, *(head for head, _ in _ways_into(name))) if head in there), None)


def _ways_into(name: str) -> Iterator[tuple[str, str]]:
    """ "a.b" and "c", "a" and "b.c" for "a.b.c"."""
    parts = name.split(".")
    return ((".".join(parts[:k]), ".".join(parts[k:])) for k in range(len(parts) - 1, 0, -1))


def names_in(row: Row) -> list[str]:
    """Names of a row's columns, with dots where they have columns of their own."""
    found: list[str] = []
    for name, value in row.items():
        inner = names_in(value) if isinstance(value, Mapping) else []
        found += [f"{name}.{one}" for one in inner] or [name]
    return found


def our_names(there: Iterable[str], columns: Sequence[Column]) -> list[str]:
    """Names of columns, in any case and by any of their other names, as the task calls them."""
    there = list(there)
    ours = {name.lower(): column.name for column in columns for name in (*column.others, column.name)}
    plain = [name.strip().lower() for name in there]
    return [
        ours[near] if near in ours and ours[near] not in there and plain.count(near) == 1 else name
        for name, near in zip(there, plain, strict=True)
    ]


def missing_column(where: str, name: str, there: Iterable[str], columns: Sequence[Column]) -> UserError:
    """The error for a row or a file without a column."""
    hint = next((column.hint for column in columns if column.name == name), None)
    there = names_in(there) if isinstance(there, Mapping) else list(there)
    odd = other_mark(there)
    there = [shortened(name) for name in there[:MANY]]
    near = next(iter(difflib.get_close_matches(name, there, 1)), None)
    if odd:
        near, hint = None, odd
    meant = f"; did you mean {near!r}?" if near else ""
    return UserError(
        f"{where}: no column {name!r}; it has {listed(there, 12) or 'none'}{meant}",
        hint or "a row has " + "; ".join(f"{column.name}: {column.expected}" for column in columns),
    )


def other_mark(there: Sequence[str]) -> str | None:
    """The hint for a table whose one column is named as if several were, parted by another mark."""
    mark = next((mark for mark in ("\t", ";", "|", ",") if len(there) == 1 and mark in there[0]), None)
    return mark and f"its cells seem to be separated by {mark!r}; .csv takes ',' and .tsv takes tabs"


def values_of(where: str, row: Row, columns: Sequence[Column]) -> dict[str, Value]:
    """The values of a row's columns as each `Column` reads them.

    Raises:
        UserError: a column is not there, or holds something else.
        Unusable: the row is of no use.
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
    """The language in a row's language column; None in rows that say none."""
    said = row.get(LANGUAGE_COLUMN)
    return (str(said).strip() or None) if said else None


def column_of_texts(name: str) -> Column:
    """The column of rows that holds the text."""
    return text_column(name, hint="rename it, or name it in the recipe: task.source.text_column")


def text_of(where: str, row: Row, column: Column) -> bytes:
    """The text of a row; empty where there is none. Raises `UserError` as `values_of` does."""
    value = row.get(column.name)
    if not isinstance(value, str):
        if value is None and column.name in row:
            return b""
        value = str(values_of(where, row, [column])[column.name])
    content = value.encode("utf-8", errors="replace")
    return b"" if content.isspace() else content
