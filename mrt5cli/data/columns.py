"""The columns of a task's rows: what each holds, how a value is read, and checked rows as Arrow tables.

Every value is read by its `Column`, so that rows of all formats end up the same, and what cannot be used is
one sentence with the file, the line, the column and the value. A text is a row with one column. Rows with an
empty text are taken, as the authors take them, and counted. Ids that come twice are a mistake in files;
published datasets have some.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrt5cli.data.formats import BadRow, decoded, json_value
from mrt5cli.errors import UserError
from mrt5cli.text import listed

if TYPE_CHECKING:
    import pyarrow as pa

LANGUAGE_COLUMN = "language"
NO_GOLD_LABEL = "-"
# The longest value of a wrong cell that an error shows, and how many of a row's columns.
SHOWN, SHOWN_COLUMNS = 40, 12

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
        hint: what to do where rows lack it; by default they are told all that a row has.
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
    return Column(name, "text", _read_text, unique=unique, others=others, hint=hint)


def label_column(
    name: str, labels: Sequence[str], *others: str, also: Mapping[str, str] | None = None
) -> Column:
    """A column of labels, given by name or by place in `labels`; kept as the place, a text such as "0".

    Args:
        also: other words for labels. The label "-", on which annotators did not agree, makes a row unusable.
    """
    places = {key: str(place) for place, label in enumerate(labels) for key in (str(place), label)}
    places |= {word: places[label] for word, label in (also or {}).items()}
    expected = f"{', '.join(map(str, range(len(labels))))} or {', '.join(labels)}"

    def read(value: object) -> str:
        # 1.0 is what table writers make of a label beside missing ones, and is refused with them.
        key = str(value) if isinstance(value, int) else value
        if key == NO_GOLD_LABEL:
            raise Unusable("on whose label annotators did not agree")
        if not isinstance(key, str) or key not in places:
            raise ValueError(f"holds {shown(value)}")
        return places[key]

    return Column(name, expected, read, others=others)


def answers_column(name: str) -> Column:
    """A column of accepted answers: SQuAD's lists, the same as JSON, or one answer as plain text."""
    return Column(name, 'answers such as {"text": ["..."], "answer_start": [0]}', _read_answers, many=True)


def text_of(value: object) -> bytes | BadRow:
    """A cell of text as UTF-8, nothing where it holds nothing.

    Raises:
        ValueError: it holds another thing; the message says what.
    """
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace")
    if value is None:
        return b""
    if not isinstance(value, bytes):
        raise ValueError(f"holds {shown(value)}")
    good = decoded(value)
    return good if isinstance(good, BadRow) else value


def _read_text(value: object) -> str:
    if isinstance(value, str) and value.isascii():
        return value
    if value is None:
        raise ValueError(f"holds {shown(value)}")
    text = text_of(value)
    if isinstance(text, BadRow):
        raise ValueError(f"is {text.reason}")
    return text.decode("utf-8")


def _read_answers(value: object) -> list[str]:
    found = value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        found = json_value(value.encode("utf-8", errors="replace"))
        if isinstance(found, BadRow):
            raise ValueError(f"holds {shown(value)}: {found.reason}")
    if isinstance(found, str):
        return [_read_text(found)]
    texts = found.get("text") if isinstance(found, Mapping) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"holds {shown(found)}")
    if not texts:
        raise Unusable("without an answer")
    return [_read_text(text) for text in texts]


def shown(value: object) -> str:
    """A value, for a sentence about it."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def missing_column(where: str, name: str, there: Iterable[str], columns: Sequence[Column]) -> UserError:
    """What a row or a file without a column is told."""
    hint = next((column.hint for column in columns if column.name == name), None)
    return UserError(
        f"{where}: no column {name!r}; it has {listed(list(there), SHOWN_COLUMNS) or 'none'}",
        hint or "a row has " + "; ".join(f"{column.name}: {column.expected}" for column in columns),
    )


def language_column(row: Row) -> str | None:
    """The language in a row's language column; None in rows that say none.

    Raises:
        ValueError: the column is there and holds something else.
    """
    language = row.get(LANGUAGE_COLUMN)
    if language is None or (isinstance(language, str) and not language.strip()):
        return None
    if not isinstance(language, str):
        raise ValueError(f"column {LANGUAGE_COLUMN!r} holds {shown(language)}, expected a code such as en")
    return language


def collect(
    rows: Iterable[tuple[str, int, Row]],
    columns: Sequence[Column],
    *,
    published: bool = False,
    language_of: Callable[[Row], str | None] | None = None,
    left_out: Counter[str] | None = None,
) -> dict[str | None, pa.Table]:
    """Rows as tables, one for each language; rows that do not say theirs are under None.

    Args:
        rows: where each is ("train.csv, line", 7), and its values.
        columns: what a row must have; whatever else it has is left out.
        published: repeated ids are no mistakes.
        language_of: the language a row says it is in; by default none does.
        left_out: counts rows that are of no use, by the reason.

    Raises:
        UserError: the first row that is not as expected.
    """
    import pyarrow as pa

    groups: dict[str | None, list[list[Any]]] = {}
    seen: dict[tuple[str | None, str], str] = {}
    for place, number, row in rows:
        try:
            language = language_of(row) if language_of else None
        except ValueError as error:
            raise UserError(f"{place} {number}: {error}") from None
        if language not in groups:
            groups[language] = [[] for _ in columns]
        read: list[Any] = []
        for column in columns:
            if column.name not in row:
                raise missing_column(f"{place} {number}", column.name, row, columns)
            try:
                value = column.read(row[column.name])
            except Unusable as reason:
                if left_out is not None:
                    left_out[str(reason)] += 1
                break
            except ValueError as error:
                raise not_expected(f"{place} {number}", column, error) from None
            if column.unique and not published:
                # Translations of a question share its id, so languages are apart.
                before = seen.setdefault((language, value), f"{place} {number}")
                if before != f"{place} {number}":
                    raise UserError(
                        f"{place} {number}: column {column.name!r} holds {shown(value)}, which {before} has "
                        "already, expected another in every row"
                    )
            read.append(value)
        else:
            for values, value in zip(groups[language], read, strict=True):
                values.append(value)
    types = [pa.list_(pa.large_string()) if column.many else pa.large_string() for column in columns]
    names = [column.name for column in columns]
    return {
        language: pa.table(
            [pa.array(some, type=kind) for some, kind in zip(values, types, strict=True)], names
        )
        for language, values in groups.items()
    }


def not_expected(where: str, column: Column, found: ValueError) -> UserError:
    """What a row is told whose column holds something else.

    Args:
        found: what `Column.read` says that it holds.
    """
    return UserError(f"{where}: column {column.name!r} {found}, expected {column.expected}")


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
