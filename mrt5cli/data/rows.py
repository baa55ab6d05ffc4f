"""Rows of a dataset in a task's columns: from local files or a Hub dataset, checked, held as Arrow tables.

Every value is read by its `Column`, so that rows of all formats end up the same, and what cannot be used is
one sentence with the file, the line, the column and the value. Rows with an empty text are taken, as the
authors take them, and counted. Ids that come twice are a mistake in files; published datasets have some.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mrt5cli.data.files import kinds_of
from mrt5cli.data.formats import LANGUAGE_COLUMN, rows_of_file
from mrt5cli.data.hub import HubDataset
from mrt5cli.errors import UserError
from mrt5cli.text import listed

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".csv", ".tsv")
HUB_WAYS_OUT = (
    "read local files of the same columns instead (--data FOLDER, or task.source.kind: files), or connect to "
    "the network once (HF_ENDPOINT names a mirror, HF_HUB_OFFLINE=1 uses only what is cached)"
)
# The longest value of a wrong cell that an error shows.
SHOWN = 40

Table = Any  # pyarrow.Table, which is imported only when rows are read
Row = Mapping[str, Any]

# --- columns ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of a task's rows.

    Attributes:
        name: of the column.
        expected: what it holds, in words.
        read: makes the value we keep, a text or a list of texts, of one found in a row; raises `ValueError`
            that says what was found.
        many: the value is a list of texts.
        unique: no value may come twice.
    """

    name: str
    expected: str
    read: Callable[[Any], Any]
    many: bool = False
    unique: bool = False


def text_column(name: str, *, unique: bool = False) -> Column:
    """A column of text. A lone surrogate, which no UTF-8 can hold, becomes "?"."""
    return Column(name, "text", _read_text, unique=unique)


def label_column(name: str, labels: Sequence[str]) -> Column:
    """A column of labels, given by name or by place in `labels`; kept as the place, a text such as "0"."""
    places = {key: str(place) for place, label in enumerate(labels) for key in (str(place), label)}
    expected = f"{', '.join(map(str, range(len(labels))))} or {', '.join(labels)}"

    def read(value: Any) -> str:
        # 1.0 is what table writers make of a label beside missing ones, and is refused with them.
        key = str(value) if isinstance(value, int) else value
        if not isinstance(key, str) or key not in places:
            raise ValueError(f"holds {_shown(value)}")
        return places[key]

    return Column(name, expected, read)


def answers_column(name: str) -> Column:
    """A column of accepted answers: SQuAD's lists, the same as JSON, or one answer as plain text."""
    return Column(name, 'answers such as {"text": ["..."], "answer_start": [0]}', _read_answers, many=True)


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"holds {_shown(value)}")
    return value if value.isascii() else value.encode("utf-8", errors="replace").decode("utf-8")


def _read_answers(value: Any) -> list[str]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"holds {_shown(value)}, which is not JSON ({error.msg})") from error
    if isinstance(value, str):
        return [_read_text(value)]
    texts = value.get("text") if isinstance(value, Mapping) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"holds {_shown(value)}")
    if not texts:
        raise ValueError("holds no answer")
    return [_read_text(text) for text in texts]


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


# --- checking -----------------------------------------------------------------------------------------------


def collect(
    rows: Iterable[tuple[str, int, Row]],
    columns: Sequence[Column],
    *,
    published: bool = False,
    language_of: Callable[[Row], str | None] | None = None,
) -> dict[str | None, Table]:
    """Rows as tables, one for each language; rows that do not say theirs are under None.

    Args:
        rows: where each is ("train.csv, line", 7), and its values.
        columns: what a row must have; whatever else it has is left out.
        published: repeated ids are no mistakes.
        language_of: the language a row says it is in; by default none does.

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
        for column, values in zip(columns, groups[language], strict=True):
            if column.name not in row:
                raise missing_column(f"{place} {number}", column.name, row, columns)
            try:
                value = column.read(row[column.name])
            except ValueError as error:
                raise UserError(
                    f"{place} {number}: column {column.name!r} {error}, expected {column.expected}"
                ) from None
            if column.unique and not published:
                # Translations of a question share its id, so languages are apart.
                before = seen.setdefault((language, value), f"{place} {number}")
                if before != f"{place} {number}":
                    raise UserError(
                        f"{place} {number}: column {column.name!r} holds {_shown(value)}, which {before} has "
                        "already, expected another in every row"
                    )
            values.append(value)
    types = [pa.list_(pa.large_string()) if column.many else pa.large_string() for column in columns]
    return {
        language: pa.table(
            {
                column.name: pa.array(column_values, type=kind)
                for column, column_values, kind in zip(columns, values, types, strict=True)
            }
        )
        for language, values in groups.items()
    }


def empty_texts(table: Table) -> int:
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


def read_rows(
    file: Path, columns: Sequence[Column], *, header: bool = True, name: str | None = None
) -> Iterator[tuple[str, int, Row]]:
    """Rows of a file for `collect`; see `rows_of_file`."""
    missing = partial(missing_column, columns=columns)
    return rows_of_file(file, [column.name for column in columns], missing, header=header, name=name)


def missing_column(where: str, name: str, found: Iterable[str], columns: Sequence[Column]) -> UserError:
    """What a row or a file without a column is told, with all that is expected."""
    return UserError(
        f"{where}: no column {name!r}; it has {', '.join(found) or 'none'}",
        "a row has " + "; ".join(f"{column.name}: {column.expected}" for column in columns),
    )


# --- folders ------------------------------------------------------------------------------------------------

# From a file's name without its suffix to its split and part (a language, a subset, or None), or None.
NameReader = Callable[[str], tuple[str, str | None] | None]
# Of one piece of a set of rows, as in train-00000-of-00002.parquet.
SHARD = re.compile(r"-\d+(-of-\d+)?\.")
SPLIT_NAMES = {name: name for name in ("train", "validation", "test")}
SPLIT_NAMES |= dict.fromkeys(("valid", "val", "dev"), "validation")
_LANGUAGE_FILE = re.compile(r"([a-z]+)(?:[-_.]([A-Za-z]{2,8}))?(?:-\d+(?:-of-\d+)?)?")


def split_and_language(name: str) -> tuple[str, str | None] | None:
    """What "test", "test-sw" or "dev-00000-of-00002" says, a file's name without its suffix."""
    match = _LANGUAGE_FILE.fullmatch(name)
    if match is None or match[1] not in SPLIT_NAMES:
        return None
    return SPLIT_NAMES[match[1]], match[2]


def language_column(row: Row) -> str | None:
    """The language in a row's language column; None in rows without one.

    Raises:
        ValueError: the column is there and names none.
    """
    language = row.get(LANGUAGE_COLUMN)
    if LANGUAGE_COLUMN in row and not (isinstance(language, str) and language.strip()):
        raise ValueError(f"column {LANGUAGE_COLUMN!r} holds {_shown(language)}, expected a code such as en")
    return language


class RowFolder:
    """A folder with a file a split, or a split and part: `test.csv`, `test-sw.csv`, `sw/test.csv`.

    Args:
        path: of the folder.
        columns: of the task's rows.
        read_name: what a file's name says.
        header: as in `rows_of_file`.
        language_of: the language a row of an undivided file says it is in, beside its language column.
        by_language: parts are languages, and so are folders.

    Raises:
        UserError: no such folder, no files in it, two files for the same rows.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Sequence[Column],
        read_name: NameReader,
        *,
        header: bool = True,
        language_of: Callable[[Row], str | None] | None = None,
        by_language: bool = True,
    ) -> None:
        self.path = Path(path).expanduser()
        self._columns, self._header = columns, header
        self._language_of = language_of
        self._tables: dict[tuple[str, str | None], dict[str | None, Table]] = {}
        self._files = _find(self.path, read_name, by_language)

    @property
    def description(self) -> str:
        """One phrase."""
        return f"rows of {self.path}"

    def has(self, split: str) -> bool:
        """Whether there are files of a split."""
        return any(name == split for name, _ in self._files)

    def parts(self, split: str) -> list[str]:
        """Parts of a split that have files of their own, in order of their names."""
        return sorted(part for name, part in self._files if name == split and part is not None)

    def table(self, split: str, language: str, *, sole: bool) -> Table:
        """Rows of a split in a language.

        Args:
            sole: the split is in this language alone, so that rows which name none are in it.

        Raises:
            UserError: there are none, or what is wrong with one.
        """
        if (split, language) in self._files or (split, None) not in self._files:
            return self.part(split, language)
        groups = self._read(split, None)
        if language in groups:
            return groups[language]
        file = self._files[split, None][0]
        if None in groups and sole:
            return groups[None]
        if None in groups:
            raise UserError(
                f"{file} does not say which language its rows are in",
                f"give it a column {LANGUAGE_COLUMN!r}, or make a file a language: {split}-{language}"
                f"{file.suffix}, or {language}/{file.name}",
            )
        found = ", ".join(f"{len(table)} in {name}" for name, table in groups.items()) or "none at all"
        raise UserError(f"{file} has no rows in {language} ({found})")

    def part(self, split: str, part: str | None) -> Table:
        """Rows of a split, or of a part of it with files of its own.

        Raises:
            UserError: there are none, or what is wrong with one.
        """
        if (split, part) not in self._files:
            raise self._no_rows(split, part)
        return self._read(split, part)[None]

    def _read(self, split: str, part: str | None) -> dict[str | None, Table]:
        """Tables of the files of a split and part: by what rows say of their language where no name does."""
        key = (split, part)
        if key not in self._tables:
            rows = (
                row
                for file in self._files[key]
                for row in read_rows(file, self._columns, header=self._header)
            )
            divided = part is None and self._language_of is not None
            groups = collect(rows, self._columns, language_of=self._language_of if divided else None)
            if not groups:
                raise UserError(f"{self._files[key][0]} holds no rows")
            self._tables[key] = groups
        return self._tables[key]

    def _no_rows(self, split: str, part: str | None) -> UserError:
        there = sorted({name if of is None else f"{name} ({of})" for name, of in self._files})
        wanted = split if part is None else f"{split} ({part})"
        names = [f"{split}.jsonl"]
        if part is not None:
            names = [f"{part}.jsonl"] if part.startswith(split) else [*names, f"{split}-{part}.jsonl"]
        return UserError(
            f"{self.path} has no files of {wanted}; it has {', '.join(there)}",
            f"add {' or '.join(names)} (.csv, .tsv and .parquet will do too)",
        )


def _find(folder: Path, read_name: NameReader, by_language: bool) -> dict[tuple[str, str | None], list[Path]]:
    if not folder.is_dir():
        raise UserError(
            f"{folder} is a file" if folder.exists() else f"{folder} does not exist",
            f"expected a folder with train, validation and test files ({', '.join(SUFFIXES)})",
        )
    found: dict[tuple[str, str | None], list[Path]] = {}
    others = []
    for file in sorted([*folder.glob("*"), *(folder.glob("*/*") if by_language else [])]):
        suffix = next((suffix for suffix in SUFFIXES if file.name.endswith(suffix)), None)
        if suffix is None or file.name.startswith(".") or not file.is_file():
            continue
        named = read_name(file.name.removesuffix(suffix))
        inner = file.parent.name if file.parent != folder else None
        if named is None or (inner and named[1] is not None):
            others.append(str(file.relative_to(folder)))
            continue
        split, part = named
        found.setdefault((split, inner or part), []).append(file)
    if not found:
        seen = listed(others, 5) or kinds_of(folder.iterdir())
        raise UserError(
            f"{folder} has no train, validation or test files (found: {seen})",
            f"name them train.jsonl, validation.jsonl, test.jsonl (also {', '.join(SUFFIXES[1:])})",
        )
    for (split, part), files in found.items():
        whole = [file for file in files if not SHARD.search(file.name)]
        if len({file.suffix for file in files}) > 1 or len(whole) > 1 or (whole and len(files) > 1):
            names = listed([file.relative_to(folder) for file in files], 4)
            raise UserError(
                f"{folder} has several files for {split if part is None else f'{split} ({part})'}: {names}",
                "keep one of them, or name the pieces of one set like train-00000-of-00002.parquet",
            )
    return found


# --- Hub ----------------------------------------------------------------------------------------------------


def hub_tables(
    dataset: HubDataset,
    configuration: str | None,
    split: str,
    columns: Sequence[Column],
    *,
    language_of: Callable[[Row], str | None] | None = None,
) -> dict[str | None, Table]:
    """A split of a Hub dataset as tables, as `collect` makes them; downloaded once, then from the cache.

    Raises:
        UserError: it cannot be had, or is not as expected.
    """
    configuration = dataset.configuration(configuration)
    if split not in (there := dataset.splits(configuration)):
        raise UserError(
            f"{dataset.name} ({configuration}) has no {split} split; it has {', '.join(there)}",
            "see task.source.name and task.source.revision",
        )
    return collect(
        (
            row
            for file in dataset.files(configuration, split)
            for row in _hub_rows(dataset, configuration, file, columns)
        ),
        columns,
        published=True,
        language_of=language_of,
    )


def _hub_rows(
    dataset: HubDataset, configuration: str, file: str, columns: Sequence[Column]
) -> Iterator[tuple[str, int, Row]]:
    """Rows of a file, labels by name, because a dataset may count them in an order of its own."""
    path = dataset.download(file)
    names = {column.name: dataset.label_names(configuration, column.name, path) for column in columns}

    def named(column: str, value: Any) -> Any:
        own = names.get(column)
        return own[value] if own and isinstance(value, int) and 0 <= value < len(own) else value

    for place, number, row in read_rows(path, columns, name=f"{dataset.name}, {file}"):
        yield place, number, {column: named(column, value) for column, value in row.items()}
