"""Rows of a dataset in a task's columns: from local files or a Hub dataset, checked, held as Arrow tables.

Every value is read by its `Column`, so that rows of all formats end up the same, and what cannot be used is
one sentence with the file, the line, the column and the value. Rows with an empty text are taken, as the
authors take them, and counted. Ids that come twice are a mistake in files; published datasets have some.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from mrt5cli.data.files import text_of
from mrt5cli.data.folders import Folder, without_suffix
from mrt5cli.data.formats import ROWS, BadRow, DataFile, format_of, supported
from mrt5cli.data.hub_datasets import HubDataset
from mrt5cli.data.languages import language_meant
from mrt5cli.data.splits import Said, check_pieces, in_words, missing_pieces, read_name, splits_of, with_twins
from mrt5cli.data.tables import LANGUAGE_COLUMN, Wanted, json_value, rows_of, usable
from mrt5cli.errors import UserError
from mrt5cli.text import Tell, counted, listed, say_nothing, say_on_stderr

HUB_WAYS_OUT = (
    "read local files of the same columns instead (--data FOLDER, or task.source.kind: files), or connect to "
    "the network once (HF_ENDPOINT names a mirror, HF_HUB_OFFLINE=1 uses only what is cached)"
)
# The longest value of a wrong cell that an error shows.
SHOWN = 40
NO_GOLD_LABEL = "-"

Table = Any  # pyarrow.Table, which is imported only when rows are read
Row = Mapping[str, Any]

# --- columns ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of a task's rows.

    Attributes:
        name: of the column.
        others: names that it has in the data sets' own files.
        expected: what it holds, in words.
        read: makes the value we keep, a text or a list of texts, of one found in a row; raises `ValueError`
            that says what was found, or `Unusable`.
        many: the value is a list of texts.
        unique: no value may come twice.
    """

    name: str
    expected: str
    read: Callable[[Any], Any]
    many: bool = False
    unique: bool = False
    others: tuple[str, ...] = ()


class Unusable(Exception):
    """A row that is well-formed and of no use for the task: it is left out and counted, by the reason."""


def text_column(name: str, *others: str, unique: bool = False) -> Column:
    """A column of text. A lone surrogate, which no UTF-8 can hold, becomes "?"."""
    return Column(name, "text", _read_text, unique=unique, others=others)


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

    def read(value: Any) -> str:
        # 1.0 is what table writers make of a label beside missing ones, and is refused with them.
        key = str(value) if isinstance(value, int) else value
        if key == NO_GOLD_LABEL:
            raise Unusable("on whose label annotators did not agree")
        if not isinstance(key, str) or key not in places:
            raise ValueError(f"holds {_shown(value)}")
        return places[key]

    return Column(name, expected, read, others=others)


def answers_column(name: str) -> Column:
    """A column of accepted answers: SQuAD's lists, the same as JSON, or one answer as plain text."""
    return Column(name, 'answers such as {"text": ["..."], "answer_start": [0]}', _read_answers, many=True)


def _read_text(value: Any) -> str:
    if isinstance(value, str) and value.isascii():
        return value
    text = None if value is None else text_of(value)
    if text is None:
        raise ValueError(f"holds {_shown(value)}")
    if isinstance(text, BadRow):
        raise ValueError(f"is {text.reason}")
    return text.decode("utf-8")


def _read_answers(value: Any) -> list[str]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        found = json_value(value.encode("utf-8", errors="replace"))
        if isinstance(found, BadRow):
            raise ValueError(f"holds {_shown(value)}: {found.reason}")
        value = found
    if isinstance(value, str):
        return [_read_text(value)]
    texts = value.get("text") if isinstance(value, Mapping) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"holds {_shown(value)}")
    if not texts:
        raise Unusable("without an answer")
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
    left_out: Counter[str] | None = None,
) -> dict[str | None, Table]:
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
            read.append(value)
        else:
            for values, value in zip(groups[language], read, strict=True):
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
    file: DataFile, columns: Sequence[Column], *, header: bool = True, tell: Tell = say_nothing
) -> Iterator[tuple[str, int, Row]]:
    """Where each row of a file is, and its values in the task's columns, for `collect`.

    Args:
        header: of CSV and TSV files, see `Wanted`.
        tell: is told of what is suspicious and still read.

    Raises:
        UserError: what cannot be read, with the place in the file.
    """
    wanted = Wanted(
        [column.name for column in columns],
        partial(missing_column, columns=columns),
        also=[LANGUAGE_COLUMN],
        names={other: column.name for column in columns for other in column.others},
        header=header,
        tell=tell,
    )
    return usable(file, rows_of(file, wanted))


def missing_column(where: str, name: str, found: Iterable[str], columns: Sequence[Column]) -> UserError:
    """What a row or a file without a column is told, with all that is expected."""
    return UserError(
        f"{where}: no column {name!r}; it has {', '.join(found) or 'none'}",
        "a row has " + "; ".join(f"{column.name}: {column.expected}" for column in columns),
    )


# --- folders ------------------------------------------------------------------------------------------------


def language_column(row: Row) -> str | None:
    """The language in a row's language column; None in rows that say none.

    Raises:
        ValueError: the column is there and holds something else.
    """
    language = row.get(LANGUAGE_COLUMN)
    if language is None or (isinstance(language, str) and not language.strip()):
        return None
    if not isinstance(language, str):
        raise ValueError(f"column {LANGUAGE_COLUMN!r} holds {_shown(language)}, expected a code such as en")
    return language


class RowFolder:
    """A folder with a file a split, or a split and part: `test.csv`, `test-sw.csv`, `sw/test.csv`.

    Which split a file is, and in which language, is read as for texts; see `splits`. A split or part has one
    file, numbered pieces of one, or the files of a folder that is called as the split.

    Args:
        path: of the folder.
        columns: of the task's rows.
        languages: that are asked for.
        header: as in `Wanted`.
        language_of: the language a row of an undivided file says it is in, beside its language column.
        own_name: what a file's path says, without what is the task's own in it; None where the file is none
            of the task's.
        part_of: from split and own name, the part that a file is of its split, or None: undivided. By default
            the language that its name says.

    Raises:
        UserError: no such folder, no files in it, two files for the same rows.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Sequence[Column],
        *,
        languages: Sequence[str] = (),
        header: bool = True,
        language_of: Callable[[Row], str | None] | None = None,
        own_name: Callable[[str], str | None] = str,
        part_of: Callable[[str, str], str | None] | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self._columns, self._header = columns, header
        self._languages, self._language_of = tuple(languages), language_of
        self._tables: dict[tuple[str, str | None], dict[str | None, Table]] = {}
        self._remarks: dict[str, None] = {}
        self.left_out: Counter[str] = Counter()
        self._files = self._find(own_name, part_of)

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

    def splits(self, parts: Callable[[str], Sequence[str]] | None = None) -> list[str]:
        """A line a split, with its files.

        Args:
            parts: of a split that are asked for, where files of others are not read.
        """
        files: dict[str, list[str]] = {}
        for (split, part), some in self._files.items():
            if parts is None or part is None or part in parts(split):
                files.setdefault(split, []).extend(str(file.relative_to(self.path)) for file in some)
        return in_words(files)

    def remarks(self, parts: Callable[[str], Sequence[str]] | None = None) -> list[str]:
        """What the user should know of what has been read so far: what is left out, what is missing.

        Args:
            parts: as in `splits`.
        """
        others = [
            str(file.relative_to(self.path))
            for (split, part), some in self._files.items()
            if parts is not None and part is not None and part not in parts(split)
            for file in some
        ]
        left_out = [f"{counted(count, 'row')} left out, {reason}" for reason, count in self.left_out.items()]
        if others:
            left_out.append(f"files in languages that are not asked for are left out: {listed(others, 3)}")
        return [*self._remarks, *left_out]

    def table(self, split: str, language: str, asked: Sequence[str]) -> Table:
        """Rows of a split in a language.

        Args:
            asked: the languages that the split is read in. If it is this one alone, rows that name none are
                in it.

        Raises:
            UserError: there are none, or what is wrong with one.
        """
        if (split, language) in self._files or (split, None) not in self._files:
            return self.part(split, language)
        groups = self._read(split, None)
        file = self._files[split, None][0]
        sole = len(asked) == 1
        own = [table for said, table in groups.items() if said == language or (sole and said is None)]
        if own:
            others = [said for said in groups if said not in asked and not (sole and said is None)]
            if others:
                found = ", ".join(f"{len(groups[said]):,} in {said or 'none'}" for said in others)
                self._remark(f"{file}: rows in languages that are not asked for are left out: {found}")
            return own[0] if len(own) == 1 else pa_concatenated(own)
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
            rows: Iterable[tuple[str, int, Row]] = (
                row
                for file in self._files[key]
                for row in read_rows(
                    DataFile.local(file), self._columns, header=self._header, tell=self._remark
                )
            )
            divided = part is None and self._language_of is not None
            if part is not None and self._language_of is not None:
                rows = self._in_language(part, rows)
            groups = collect(
                rows,
                self._columns,
                language_of=self._meant if divided else None,
                left_out=self.left_out,
            )
            if not groups:
                raise UserError(f"{self._files[key][0]} holds no rows")
            self._tables[key] = groups
        return self._tables[key]

    def _meant(self, row: Row) -> str | None:
        """The language that a row is in, by the code that is asked for where it is one of these."""
        said = None if self._language_of is None else self._language_of(row)
        return said and (language_meant(said, self._languages) or said)

    def _in_language(
        self, language: str, rows: Iterable[tuple[str, int, Row]]
    ) -> Iterator[tuple[str, int, Row]]:
        """The rows of a file in a language that do not say that they are in another."""
        for place, number, row in rows:
            said = row.get(LANGUAGE_COLUMN)
            if (
                isinstance(said, str)
                and said.strip()
                and language_meant(said, [language, *self._languages]) != language
            ):
                self.left_out[f"whose column {LANGUAGE_COLUMN!r} says another language than {language}"] += 1
            else:
                yield place, number, row

    def _remark(self, text: str) -> None:
        self._remarks[text] = None

    def _find(
        self, own_name: Callable[[str], str | None], part_of: Callable[[str, str], str | None] | None
    ) -> dict[tuple[str, str | None], list[Path]]:
        if not self.path.is_dir():
            raise UserError(
                f"{self.path} is a file" if self.path.exists() else f"{self.path} does not exist",
                f"expected a folder with train, validation and test files; {supported(ROWS)}",
            )
        folder = Folder(self.path, ROWS)
        names = {file: own_name(without_suffix(file)) for file in folder.files}
        said = {
            file: read_name(PurePath(name), self._languages)
            for file, name in names.items()
            if name is not None
        }
        said = with_twins(said, self._languages)
        check_pieces(said, str(self.path))
        splits = splits_of(said, str(self.path))
        folder.leave_out("of another task", *(file for file, name in names.items() if name is None))
        unnamed = splits.pop("", [])
        if not splits:
            found = listed(unnamed, 5) if unnamed else folder.kinds()
            raise UserError(
                f"{self.path} has no train, validation or test files (found: {found})",
                f"name them train.jsonl, validation.jsonl, test.jsonl; {supported(ROWS)}",
            )
        folder.leave_out("named after no split", *unnamed)
        groups: dict[tuple[str, str | None], list[str]] = {}
        for split, files in splits.items():
            for file in files:
                part = said[file].language if part_of is None else part_of(split, names[file] or "")
                groups.setdefault((split, part), []).append(file)
        for (split, part), files in groups.items():
            if not _one_set(files, said):
                what = split if part is None else f"{split} ({part})"
                raise UserError(
                    f"{self.path} has several files for {what}: {listed(files, 4)}",
                    "keep one of them, name the pieces of one set like train-00000-of-00002.parquet, or put "
                    f"all that is to be used into a folder {split}/",
                )
        for sentence in (*missing_pieces(said), *folder.remarks()):
            self._remark(sentence)
        return {key: [folder.files[file] for file in files] for key, files in groups.items()}

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


def _one_set(files: Sequence[str], said: Mapping[str, Said]) -> bool:
    """Whether files belong together: one, the pieces of one, or those of a folder called as their split."""
    if len(files) == 1:
        return True
    folder = PurePath(files[0]).parent
    if len({format_of(file) for file in files}) > 1:
        return False
    if len({said[file].set for file in files}) == 1:
        return all(said[file].numbered for file in files)
    together = all(PurePath(file).parent == folder for file in files)
    return together and folder.name != "" and read_name(folder).exact


def pa_concatenated(tables: Sequence[Table]) -> Table:
    """Tables one after the other."""
    import pyarrow as pa

    return pa.concat_tables(tables)


# --- Hub ----------------------------------------------------------------------------------------------------


def hub_tables(
    dataset: HubDataset,
    configuration: str | None,
    split: str,
    columns: Sequence[Column],
    *,
    language_of: Callable[[Row], str | None] | None = None,
    left_out: Counter[str] | None = None,
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
        left_out=left_out,
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

    opened = DataFile.local(path, f"{dataset.name}, {file}")
    for place, number, row in read_rows(opened, columns, tell=say_on_stderr):
        yield place, number, {column: named(column, value) for column, value in row.items()}
