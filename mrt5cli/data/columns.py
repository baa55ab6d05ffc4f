"""The columns of a task's rows: what each holds, how a value is read, and checked rows as Arrow tables.

Rows with an empty text are taken, as the authors take them, and counted. Ids that come twice are a mistake in
files; published datasets have some.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrt5cli.data.formats import BadRow, json_value, not_utf8
from mrt5cli.errors import UserError
from mrt5cli.text import listed, shortened

if TYPE_CHECKING:
    import pyarrow as pa

LANGUAGE_COLUMN = "language"
# Columns of a row that an error names.
SHOWN_COLUMNS = 12

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a task's rows.

    Attributes:
        name: of the column.
        expected: what it holds, in words.
        read: makes the value we keep, a text or a list of texts, of one found in a row; raises `ValueError`
            that says what was found, or `Unusable`.
        many: the value is a list of texts.
        unique: no value may come twice.
        others: names that it has in the data sets' own files.
        hint: what to do where rows lack it; by default the hint names all columns that a row has.
    """

    name: str
    expected: str
    read: Callable[[Any], Any]
    many: bool = False
    unique: bool = False
    others: tuple[str, ...] = ()
    hint: str | None = None


class Unusable(Exception):
    """A row that is well-formed and of no use for the task: it is left out and counted, by the reason."""


def text_column(name: str, *others: str, unique: bool = False, hint: str | None = None) -> Column:
    """A column of text. A lone surrogate, which no UTF-8 can hold, becomes "?"."""
    return Column(name, "text", read_text, unique=unique, others=others, hint=hint)


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
    """The text in a cell.

    Raises:
        ValueError: it holds another thing; the message says what.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"is {not_utf8(error).reason}") from None
    if not isinstance(value, str):
        raise ValueError(f"holds {shown(value)}")
    return value if value.isascii() else value.encode("utf-8", errors="replace").decode("utf-8")


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
    return UserError(
        f"{where}: no column {name!r}; it has {listed(list(there), SHOWN_COLUMNS) or 'none'}",
        hint or "a row has " + "; ".join(f"{column.name}: {column.expected}" for column in columns),
    )


def value_of(where: str, column: Column, row: Row, columns: Sequence[Column]) -> Any:
    """The value of one of a row's columns as its `Column` reads it.

    Raises:
        UserError: the column is not there, or holds something else.
        Unusable: the row is of no use.
    """
    if column.name not in row:
        raise missing_column(where, column.name, row, columns)
    try:
        return column.read(row[column.name])
    except ValueError as found:
        raise UserError(f"{where}: column {column.name!r} {found}, expected {column.expected}") from None


def language_column(row: Row) -> str | None:
    """The language in a row's language column; None in rows that say none."""
    return str(row.get(LANGUAGE_COLUMN) or "").strip() or None


def collect(
    rows: Iterable[tuple[str, Row]],
    columns: Sequence[Column],
    *,
    published: bool = False,
    language_of: Callable[[Row], str | None] = lambda row: None,
    left_out: Counter[str] | None = None,
) -> dict[str | None, pa.Table]:
    """Rows as tables of these columns, one for each language; rows that do not say theirs are under None.

    Args:
        rows: where each is ("train.csv, line 7"), and its values.
        published: repeated ids are no mistakes.
        left_out: counts rows that are of no use, by the reason.

    Raises:
        UserError: the first row that is not as expected.
    """
    import pyarrow as pa

    groups: dict[str | None, list[list[Any]]] = {}
    # Translations of a question share its id, so languages are apart.
    seen: dict[tuple[str | None, str], str] = {}
    for where, row in rows:
        try:
            language = language_of(row)
            values = groups.setdefault(language, [])
            values.append([value_of(where, column, row, columns) for column in columns])
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        except Unusable as reason:
            if left_out is not None:
                left_out[str(reason)] += 1
            continue
        for column, value in zip(columns, values[-1], strict=True):
            if (
                column.unique
                and not published
                and (before := seen.setdefault((language, value), where)) != where
            ):
                raise UserError(
                    f"{where}: column {column.name!r} holds {shown(value)}, which {before} has already"
                )
    text = pa.large_string()
    schema = pa.schema([(column.name, pa.list_(text) if column.many else text) for column in columns])

    def table(values: list[list[Any]]) -> pa.Table:
        cells = [pa.array([row[place] for row in values], kind) for place, kind in enumerate(schema.types)]
        return pa.table(cells, schema=schema)

    return {language: table(values) for language, values in groups.items()}


def empty_texts(table: pa.Table) -> int:
    """Rows of which a text, or the first of several, is empty or blank."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    empty = np.zeros(len(table), dtype=np.bool_)
    for name in table.column_names:
        column = table[name].combine_chunks()
        texts = pc.list_element(column, 0) if pa.types.is_list(column.type) else column
        empty |= pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0).to_numpy(zero_copy_only=False)
    return int(empty.sum())
