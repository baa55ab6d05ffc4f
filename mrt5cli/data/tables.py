"""Tables of a task's rows: from a folder of local files, or a dataset of the Hub.

Which split a file is, and in which language, is read as for texts; see `splits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from mrt5cli.data.columns import LANGUAGE_COLUMN, Column, Row, collect
from mrt5cli.data.folders import Folder, without_suffix
from mrt5cli.data.formats import ROWS, DataFile, format_of, supported
from mrt5cli.data.hub_datasets import HubDataset
from mrt5cli.data.languages import language_meant
from mrt5cli.data.reading import Wanted, usable_rows
from mrt5cli.data.splits import ParsedName, in_words, read_name, splits_of
from mrt5cli.errors import UserError
from mrt5cli.text import counted, listed, say_on_stderr

if TYPE_CHECKING:
    import pyarrow as pa

# Parts of a split that are asked for; None where files of all are read.
Parts = Callable[[str], Sequence[str]] | None


class RowFolder:
    """A folder with a file a split, or a split and part: `test.csv`, `test-sw.csv`, `sw/test.csv`.

    A split or part has one file, numbered pieces of one, or the files of a folder called as the split.

    Args:
        path: of the folder.
        columns: of the task's rows.
        languages: that are asked for.
        header: as in `Wanted`.
        language_of: the language a row of an undivided file says it is in, beside its language column.
        own_name: as in `Folder.read_names`.
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
        self.path = Path(path)
        self._columns, self._wanted = columns, Wanted(columns, header, self._remark)
        self._languages, self._language_of = tuple(languages), language_of
        self._tables: dict[tuple[str, str | None], dict[str | None, pa.Table]] = {}
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

    def splits(self, parts: Parts = None) -> list[str]:
        """A line a split, with its files."""
        read, _ = self._names(parts)
        return in_words(read)

    def remarks(self, parts: Parts = None) -> list[str]:
        """What the user should know of what has been read so far: what is left out, what is missing."""
        _, others = self._names(parts)
        left_out = [f"{counted(count, 'row')} left out, {reason}" for reason, count in self.left_out.items()]
        if others:
            left_out.append(f"files in languages that are not asked for are left out: {listed(others, 3)}")
        return [*self._remarks, *left_out]

    def table(self, split: str, language: str, wanted: Sequence[str]) -> pa.Table:
        """Rows of a split in a language.

        Args:
            wanted: the languages that the split is read in. If it is this one alone, rows that name none are
                in it.

        Raises:
            UserError: there are none, or what is wrong with one.
        """
        if (split, language) in self._files or (split, None) not in self._files:
            return self.part(split, language)
        groups = self._read(split, None)
        file = self._files[split, None][0]
        mine = {language, None} if len(wanted) == 1 else {language}
        own = [table for said, table in groups.items() if said in mine]
        if own:
            others = [said for said in groups if said not in mine and said not in wanted]
            if others:
                found = ", ".join(f"{len(groups[said]):,} in {said or 'none'}" for said in others)
                self._remark(f"{file}: rows in languages that are not asked for are left out: {found}")
            return own[0] if len(own) == 1 else _joined(own)
        if None in groups:
            raise UserError(
                f"{file} does not say which language its rows are in",
                f"give it a column {LANGUAGE_COLUMN!r}, or make a file a language: {split}-{language}"
                f"{file.suffix}, or {language}/{file.name}",
            )
        found = ", ".join(f"{len(table)} in {name}" for name, table in groups.items()) or "none at all"
        raise UserError(f"{file} has no rows in {language} ({found})")

    def part(self, split: str, part: str | None) -> pa.Table:
        """Rows of a split, or of a part of it with files of its own.

        Raises:
            UserError: there are none, or what is wrong with one.
        """
        if (split, part) in self._files:
            return self._read(split, part)[None]
        there = sorted({name if of is None else f"{name} ({of})" for name, of in self._files})
        names = [f"{split}.jsonl"]
        if part is not None:
            names = [f"{part}.jsonl"] if part.startswith(split) else [*names, f"{split}-{part}.jsonl"]
        raise UserError(
            f"{self.path} has no files of {_in_words(split, part)}; it has {', '.join(there)}",
            f"add {' or '.join(names)} (.csv, .tsv and .parquet will do too)",
        )

    def _names(self, parts: Parts) -> tuple[dict[str, list[str]], list[str]]:
        """Names of the files that are read, by split, and of those of other parts."""
        read: dict[str, list[str]] = {}
        others: list[str] = []
        for (split, part), files in self._files.items():
            wanted = parts is None or part is None or part in parts(split)
            names = read.setdefault(split, []) if wanted else others
            names += [str(file.relative_to(self.path)) for file in files]
        return read, others

    def _read(self, split: str, part: str | None) -> dict[str | None, pa.Table]:
        """Tables of the files of a split and part: by what rows say of their language where no name does."""
        key = (split, part)
        if key not in self._tables:
            files = [DataFile.local(file) for file in self._files[key]]
            rows: Iterable[tuple[str, int, Row]] = (
                row for file in files for row in usable_rows(file, self._wanted)
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
                raise UserError(f"{files[0].name} holds no rows")
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
        said = folder.read_names(self._languages, own_name)
        splits = splits_of(said, str(self.path))
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
                part = (
                    said[file].language
                    if part_of is None
                    else part_of(split, own_name(without_suffix(file)) or "")
                )
                groups.setdefault((split, part), []).append(file)
        for (split, part), files in groups.items():
            if not _one_set(files, said):
                raise UserError(
                    f"{self.path} has several files for {_in_words(split, part)}: {listed(files, 4)}",
                    "keep one of them, name the pieces of one set like train-00000-of-00002.parquet, or put "
                    f"all that is to be used into a folder {split}/",
                )
        for sentence in folder.remarks():
            self._remark(sentence)
        return {key: [folder.files[file] for file in files] for key, files in groups.items()}


def _in_words(split: str, part: str | None) -> str:
    return split if part is None else f"{split} ({part})"


def _one_set(files: Sequence[str], said: Mapping[str, ParsedName]) -> bool:
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


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables(tables)


def hub_tables(
    dataset: HubDataset,
    configuration: str | None,
    split: str,
    columns: Sequence[Column],
    *,
    language_of: Callable[[Row], str | None] | None = None,
    left_out: Counter[str] | None = None,
) -> dict[str | None, pa.Table]:
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
    rows = (
        row
        for file in dataset.files(configuration, split)
        for row in _hub_rows(dataset, configuration, file, columns)
    )
    return collect(rows, columns, published=True, language_of=language_of, left_out=left_out)


def _hub_rows(
    dataset: HubDataset, configuration: str, file: str, columns: Sequence[Column]
) -> Iterator[tuple[str, int, Row]]:
    """Rows of a file, labels by name, because a dataset may count them in an order of its own."""
    path = dataset.download(file)
    names = {column.name: dataset.label_names(configuration, column.name, path) for column in columns}

    def named(column: str, value: object) -> object:
        own = names.get(column)
        return own[value] if own and isinstance(value, int) and 0 <= value < len(own) else value

    opened = DataFile.local(path, f"{dataset.name}, {file}")
    for place, number, row in usable_rows(opened, Wanted(columns, tell=say_on_stderr)):
        yield place, number, {column: named(column, value) for column, value in row.items()}
