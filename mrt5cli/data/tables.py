"""Tables of a task's rows: from a folder of local files, or a Hub dataset.

The split and language of a file are found as for texts; see `splits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from mrt5cli.data.columns import LANGUAGE_COLUMN, Column, Row, Unusable, Value, language_column, values_of
from mrt5cli.data.folders import Folder
from mrt5cli.data.formats import ROWS, DataFile, suffix_of, supported, without_suffix
from mrt5cli.data.hub_datasets import HubDataset
from mrt5cli.data.languages import language_meant
from mrt5cli.data.reading import usable_rows
from mrt5cli.data.splits import SPLITS, ParsedName, only_a_split, read_name, split_lines, splits_of
from mrt5cli.errors import UserError
from mrt5cli.recipe.loading import builder_of
from mrt5cli.text import counted, listed

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

# Rows held as Python objects at a time.
AT_ONCE = 4096


def collect(
    rows: Iterable[tuple[str, Row]],
    columns: Sequence[Column],
    language_of: Callable[[Row], str | None],
    left_out: Counter[str],
) -> dict[str | None, pa.Table]:
    """Rows as tables with these columns, one per language; rows without a language are under None.

    Rows with an empty text are kept, as in the authors' code.

    Args:
        rows: the place of each row ("train.csv, line 7"), and its values.
        language_of: the language of a row; raises `ValueError` if the row is invalid, or `Unusable`.
        left_out: counts unusable rows by reason.

    Raises:
        UserError: a row is not as expected; the first one is reported.
    """
    import pyarrow as pa

    text = pa.large_string()
    schema = pa.schema([(column.name, pa.list_(text) if column.many else text) for column in columns])
    groups: dict[str | None, list[dict[str, Value]]] = {}
    tables: dict[str | None, list[pa.RecordBatch]] = {}
    for where, row in rows:
        try:
            language = language_of(row)
            group = groups.setdefault(language, [])
            group.append(values_of(where, row, columns))
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        except Unusable as reason:
            left_out[str(reason)] += 1
            continue
        if len(group) == AT_ONCE:
            tables.setdefault(language, []).append(pa.RecordBatch.from_pylist(group, schema))
            group.clear()
    for language, group in groups.items():
        tables.setdefault(language, []).append(pa.RecordBatch.from_pylist(group, schema))
    return {language: pa.Table.from_batches(batches, schema) for language, batches in tables.items()}


def first_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The texts of a column, or the first of each list of texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.list_element(column, 0) if pa.types.is_list(column.type) else column


def blank(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """(R,) whether the first text of each row is empty or white space."""
    import pyarrow.compute as pc

    found: NDArray[np.bool_] = pc.equal(pc.utf8_trim_whitespace(first_texts(column)), "").to_numpy()
    return found


def rows_left_out(counts: Counter[str]) -> list[str]:
    """One phrase for each reason why rows were left out."""
    return [f"{counted(count, 'row')} left out, {reason}" for reason, count in counts.items()]


class RowFolder:
    """A folder with one file per split, or per split and part: `test.csv`, `test-sw.csv`, `sw/test.csv`.

    A split or part has one file, numbered pieces of one, or the files of a folder named after the split.

    Args:
        plain: whether a file is accepted in place of the folder, and, if no file is named train, files that
            name no split are training rows.
        whole: whether such files are also the rows of every other split that no file names.
        columns, header: as in `rows_of`.
        left_out: counts rows that are left out, by reason.
        language_of: the language of a row; None if parts are not languages.
        own_name: as in `Folder.read_names`.
        part_of: the part of a split that a file belongs to, by its path; None if the split is undivided. By
            default the language in its name.
        parts: the parts of a split that are read; None reads all.

    Attributes:
        splits: one line per split, with its files.
        remarks: which files are left out or missing, one sentence each.

    Raises:
        UserError: the folder does not exist, has no files, or has two files for the same rows.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Sequence[Column],
        left_out: Counter[str],
        *,
        languages: Sequence[str] = (),
        header: bool = True,
        language_of: Callable[[Row], str | None] | None = None,
        own_name: Callable[[str], str | None] = str,
        part_of: Callable[[str, PurePath], str | None] | None = None,
        parts: Callable[[str], Sequence[str]] | None = None,
        plain: bool = False,
        whole: bool = False,
    ) -> None:
        self.path = Path(path)
        self._columns, self._header, self._left_out = columns, header, left_out
        self._languages, self._language_of = tuple(languages), language_of
        self._tables: dict[tuple[str, str | None], dict[str | None, pa.Table]] = {}
        self._unnamed = SPLITS if whole else ("train",) if plain else ()
        if plain and self.path.is_file():
            self._files = self._alone()
            self.splits, self.remarks = split_lines({split: [self.path.name] for split, _ in self._files}), []
            return
        if not self.path.is_dir():
            wanted = "a file, or a folder of" if plain else "a folder with train, validation and test"
            builder = None if self.path.exists() else builder_of(self.path)
            raise UserError(
                f"{self.path} is {'a file' if self.path.is_file() else 'not a folder'}"
                if self.path.exists()
                else f"{self.path} does not exist",
                f"build it: {builder}" if builder else f"expected {wanted} files; {supported(ROWS)}",
            )
        folder = Folder(self.path, ROWS)
        self._files = self._find(folder, own_name, part_of)
        read: dict[str, list[str]] = {}
        for (split, part), files in self._files.items():
            if parts is None or part is None or part in parts(split):
                read.setdefault(split, []).extend(files)
            else:
                folder.leave_out("in languages that are not requested", *files)
        self.splits, self.remarks = split_lines(read), folder.remarks()

    def has(self, split: str) -> bool:
        """Whether a split has files."""
        return any(name == split for name, _ in self._files)

    def files(self, split: str) -> list[DataFile]:
        """The files of all parts of a split."""
        return [
            DataFile.local(self.path / file)
            for (name, _), files in self._files.items()
            for file in files
            if name == split
        ]

    def parts(self, split: str) -> list[str]:
        """The parts of a split that have separate files, sorted."""
        return sorted(part for name, part in self._files if name == split and part is not None)

    def table(self, split: str, part: str | None, wanted: Sequence[str]) -> pa.Table:
        """The rows of a part of a split.

        Args:
            part: a language, or another part with separate files; None is all of the split.
            wanted: the languages that are read. If `part` is the only one, rows without a language belong to
                it.

        Raises:
            UserError: there are no rows, or one is invalid.
        """
        import pyarrow as pa

        undivided = (split, part) not in self._files
        key = split, None if undivided else part
        if key not in self._files:
            raise self._missing(split, part)
        if key not in self._tables:
            self._tables[key] = self._read(key)
        groups, file = self._tables[key], self.path / self._files[key][0]
        mine = {part} if undivided and len(wanted) > 1 else {part, None}
        own = [table for said, table in groups.items() if said in mine]
        others = {said or "no language": len(table) for said, table in groups.items() if said not in mine}
        if not own:
            found = ", ".join(f"{count} in {said}" for said, count in others.items())
            if not found:
                raise UserError(f"{file} contains no rows", "add rows, or remove the file")
            raise UserError(
                f"{file} contains no rows in {part} ({found})",
                f"add a column {LANGUAGE_COLUMN!r}, or make one file per language: {split}-{part}.*",
            )
        for said, count in others.items():
            if not (undivided and said in wanted):
                self._left_out[f"which {file.name} has in {said}"] = count
        return pa.concat_tables(own)

    def groups(self, split: str) -> dict[str | None, pa.Table]:
        """All rows of a split without parts, by their language.

        Raises:
            UserError: there are no rows, or one is invalid.
        """
        if (split, None) not in self._files:
            raise self._missing(split, None)
        groups = self._read((split, None))
        if not any(map(len, groups.values())):
            files = self._files[split, None]
            which = (
                f"{self.path / files[0]} contains" if len(files) == 1 else f"all {len(files)} files contain"
            )
            why = "; ".join(rows_left_out(self._left_out))
            raise UserError(f"{which} no rows", why or "add rows: it is empty, or has only column names")
        return groups

    def _missing(self, split: str, part: str | None) -> UserError:
        there = ", ".join(sorted(_named(*key) for key in self._files))
        name = split if part is None else part if part.startswith(split) else f"{split}-{part}"
        return UserError(
            f"{self.path} has no files of {_named(split, part)}; it has {there}",
            f"add {name}.jsonl (or .csv, .tsv, .parquet)",
        )

    def _read(self, key: tuple[str, str | None]) -> dict[str | None, pa.Table]:
        """The tables of a split and part, by the language of the rows."""
        files = [DataFile.local(self.path / file) for file in self._files[key]]
        rows = (row for file in files for row in usable_rows(file, self._columns, header=self._header))
        # If the file's name gives the language, only an explicit language column can overrule it.
        said = self._language_of and (self._language_of if key[1] is None else language_column)

        def language(row: Row) -> str | None:
            meant = said and said(row)
            return meant and (language_meant(meant, self._languages) or meant)

        return collect(rows, self._columns, language, self._left_out)

    def _alone(self) -> dict[tuple[str, str | None], list[str]]:
        """The file in place of a folder; its path relative to `self.path` is empty."""
        name = self.path.name
        if suffix_of(name) not in ROWS:
            raise UserError(
                f"{self.path} is in an unsupported format",
                f"{supported(ROWS)}; rename a table whose cells are separated by tabs to .tsv",
            )
        [(split, _)] = splits_of({name: read_name(PurePath(without_suffix(name)))}, str(self.path)).items()
        return {(one, None): [""] for one in ([split] if split else self._unnamed)}

    def _find(
        self,
        folder: Folder,
        own_name: Callable[[str], str | None],
        part_of: Callable[[str, PurePath], str | None] | None,
    ) -> dict[tuple[str, str | None], list[str]]:
        parsed = folder.read_names(self._languages, own_name)
        splits = splits_of(parsed, str(self.path))
        unnamed = splits.pop("", [])
        if self._unnamed and unnamed and "train" not in splits:
            splits, unnamed = dict.fromkeys(self._unnamed, unnamed) | splits, []
        if not splits:
            found = listed(unnamed, 5) if unnamed else folder.kinds()
            raise UserError(
                f"{self.path} has no train, validation or test files (found: {found})",
                f"name them train.jsonl, validation.jsonl, test.jsonl; {supported(ROWS)}",
            )
        folder.leave_out("not named after a split", *unnamed)
        groups: dict[tuple[str, str | None], list[str]] = {}
        for split, files in splits.items():
            for file in files:
                part = part_of(split, parsed[file].path) if part_of else parsed[file].language
                groups.setdefault((split, part), []).append(file)
        for key, files in groups.items():
            if not self._one_set(files, parsed):
                formats = len({suffix_of(file) for file in files})
                raise UserError(
                    f"{self.path} has several files for {_named(*key)}: {listed(files, 4)}",
                    "they may contain the same rows: keep those of one format"
                    if formats > 1
                    else "keep one of them, name the pieces of one set like train-00000-of-00002.parquet, or "
                    f"move all files to use into a folder {key[0]}/",
                )
        return groups

    def _one_set(self, files: Sequence[str], parsed: Mapping[str, ParsedName]) -> bool:
        """Whether files form one set: one file, its pieces, or the files of a folder named after the split.

        So do all files of one format that name no split, if those are read.
        """
        if len(files) == 1:
            return True
        if len({suffix_of(file) for file in files}) > 1:
            return False
        if len({parsed[file].path for file in files}) < len(files):
            return False  # the same file, compressed and not
        if len({parsed[file].base for file in files}) == 1:
            return all(parsed[file].numbered for file in files)
        folders = {PurePath(file).parent for file in files}
        called = len(folders) == 1 and only_a_split(folders.pop().name)
        return called or (bool(self._unnamed) and not any(parsed[file].splits for file in files))


def _named(split: str, part: str | None) -> str:
    return split if part is None else f"{split} ({part})"


def hub_tables(
    dataset: HubDataset,
    configuration: str | None,
    split: str,
    columns: Sequence[Column],
    *,
    language_of: Callable[[Row], str | None],
    left_out: Counter[str],
) -> dict[str | None, pa.Table]:
    """A split of a Hub dataset as tables, see `collect`; it is downloaded once, then read from the cache.

    Raises:
        UserError: the split does not exist, cannot be downloaded, or has an invalid row.
    """
    configuration = dataset.configuration(configuration)
    if split not in (there := dataset.splits(configuration)):
        raise UserError(
            f"{dataset.name} ({configuration}) has no {split} split; it has {', '.join(there)}",
            "correct task.source.name or task.source.revision",
        )
    rows = (
        row
        for file in dataset.files(configuration, split)
        for row in _hub_rows(dataset, configuration, file, columns)
    )
    return collect(rows, columns, language_of, left_out)


def _hub_rows(
    dataset: HubDataset, configuration: str, file: str, columns: Sequence[Column]
) -> Iterator[tuple[str, Row]]:
    """The rows of a file, with class labels by name, because a dataset may number them in another order."""
    path = dataset.download(file)
    names = {column.name: dataset.label_names(configuration, column.name, path) for column in columns}

    def named(column: str, value: object) -> object:
        own = names.get(column)
        return own[value] if own and isinstance(value, int) and 0 <= value < len(own) else value

    for where, row in usable_rows(DataFile.local(path, f"{dataset.name}, {file}"), columns):
        yield where, {column: named(column, value) for column, value in row.items()}
