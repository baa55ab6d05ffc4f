"""Local text: finding the files of each language and split, and reading their documents.

What is recognised below `path`:

- a file: one text, or one row a document;
- a folder, searched to the bottom;
- languages: folders (`de/`, `German/`), files that all name one (`wiki.de.txt`), or rows with a `language`
  column;
- splits, by the names of folders and files, see `splits`. Those without files are held out from the training
  documents.

What is left out is said: `Found.remarks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePath
from typing import NamedTuple

from mrt5cli.data.columns import LANGUAGE_COLUMN, missing_column, not_expected, text_column, text_of
from mrt5cli.data.folders import Folder
from mrt5cli.data.formats import FORMATS, TEXT, BadRow, Damaged, DataFile, format_of, supported
from mrt5cli.data.languages import LANGUAGES, language_meant
from mrt5cli.data.reading import Wanted, cannot_be_read, rows_of
from mrt5cli.data.splits import SPLITS, ParsedName, in_words, splits_of
from mrt5cli.errors import UserError
from mrt5cli.text import Tell, listed, say_nothing

# From so many plain texts of a split on, each is taken for one document; fewer are cut at blank lines.
MANY_FILES = 20

FilesOfSplits = dict[str, list[Path]]


# --- finding ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Local files with text.

    Attributes:
        languages: files by split, of each language. Languages without files of their own share one entry.
        apart: each language has files of its own.
        lines: one a split, with its files.
        remarks: what the user should know, a sentence each: what is left out, what is missing.
    """

    languages: dict[str, FilesOfSplits]
    apart: bool
    lines: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def splits(self, language: str) -> list[str]:
        """Splits of a language that have files of their own."""
        return list(self.languages[language])

    def files(self, language: str, split: str, tell: Tell = say_nothing) -> list[DataFile]:
        """Files of a split; nothing is told of those on this machine."""
        return text_files([DataFile.local(file) for file in self.languages[language][split]])


def find_files(path: Path, languages: Sequence[str]) -> Found:
    """The files of each language and split.

    Raises:
        UserError: nothing there, or something that could be read in two ways.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist", f"task.source.path names a file or a folder; {supported()}")
    if not path.is_dir():
        if format_of(path.name) is None:
            raise UserError(f"{path} is not a text file this toolkit reads", supported())
        one: FilesOfSplits = {"train": [path]}
        return Found(dict.fromkeys(languages, one), apart=False, lines=in_words({"train": [path.name]}))
    folder = Folder(path, FORMATS)
    if not folder.files:
        raise UserError(f"{path} holds no text files (found: {folder.kinds()})", supported())
    said = folder.read_names(languages)
    own = _by_language(folder, said, languages)
    groups = {language: {name: said[name] for name in names} for language, names in own.items()}
    found = {language: _by_split(folder, group) for language, group in (groups or {"": said}).items()}
    named = {split: [name for one in found.values() for name in one.get(split, [])] for split in SPLITS}
    files = {
        language: {split: [folder.files[name] for name in names] for split, names in one.items()}
        for language, one in found.items()
    }
    return Found(
        files if own else dict.fromkeys(languages, files[""]), bool(own), in_words(named), folder.remarks()
    )


def _by_language(
    folder: Folder, said: dict[str, ParsedName], languages: Sequence[str]
) -> dict[str, list[str]]:
    """Names of the files of each language; empty where names say nothing of languages."""
    folders = {name: of.language for name, of in said.items() if of.folder}
    named = {name: of.language for name, of in said.items() if of.language and not of.folder}
    if not folders and not (len(named) == len(said) and _names_are_languages(said, languages)):
        return {}
    own: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for name, language in (folders or named).items():
        assert language is not None
        (own if language in languages else others).setdefault(language, []).append(name)
    what = "folders" if folders else "files"
    if not own:
        raise UserError(
            f"{folder.path} has {what} for {listed(sorted(others))}, but none for {listed(languages)}",
            f"ask for what is there: --set task.languages=[{', '.join(sorted(others))}]",
        )
    if missing := [language for language in languages if language not in own]:
        raise UserError(
            f"{folder.path} has {'a folder' if len(own) == 1 and folders else what} for {listed(list(own))}, "
            f"but none for {listed(missing)}",
            f"every language of task.languages needs {what} of its name once one has",
        )
    if folders and len(folders) < len(said):
        folder.leave_out("beside the folders of languages", *(name for name in said if name not in folders))
    for language, names in others.items():
        folder.leave_out(f"in {language}, which task.languages does not ask for", *names)
    return {language: own[language] for language in languages}


def _names_are_languages(said: dict[str, ParsedName], languages: Sequence[str]) -> bool:
    """Whether words in files' names that could be languages are meant so.

    They are where one asked for is among them, or where nothing else is in the names but the split.
    """
    if any(of.language in languages for of in said.values()):
        return True
    bare = [PurePath(of.set).name for of in said.values()]
    return all(
        of.split or language_meant(name, LANGUAGES) for of, name in zip(said.values(), bare, strict=True)
    )


def _by_split(folder: Folder, said: dict[str, ParsedName]) -> dict[str, list[str]]:
    splits = splits_of(said, str(folder.path))
    unnamed = splits.pop("", [])
    if not splits:
        return {"train": unnamed}
    if unnamed:
        raise UserError(
            f"{folder.path} has files for {listed(sorted(splits))} and others beside them: "
            f"{listed(unnamed, 3)}",
            "name all of them after a split, as train.txt or wiki_test.txt, or none; or put what is training "
            "text into a folder train/",
        )
    return splits


# --- reading ------------------------------------------------------------------------------------------------


class Text(NamedTuple):
    """A text of a file.

    Attributes:
        number: from 1 on, by which reading can begin anywhere.
        line: where it is, for people.
        language: what its row says; None where it says nothing.
        content: UTF-8, or what keeps it from being used. Empty where there is none.
    """

    number: int
    line: int
    language: str | None
    content: bytes | BadRow


def texts(
    file: DataFile, column: str, first: int = 0, *, languages: bool = False, tell: Tell = say_nothing
) -> Iterator[Text]:
    """The texts of a file, in order.

    Args:
        column: of rows, the one with the text.
        first: texts to pass over.
        languages: each row must name its language.
        tell: is told of what is suspicious and still read.

    Raises:
        UserError: the format is none that is read, or a row has no such column, or another thing in it.
        Damaged: what comes cannot be read.
    """
    columns = [text_column(column, hint="--set task.source.text_column=NAME")]
    if languages:
        columns.append(text_column(LANGUAGE_COLUMN, hint="each row must name its language"))
    for number, line, row in rows_of(file, Wanted(columns, tell=tell), first):
        if isinstance(row, BadRow):
            yield Text(number, line, None, row)
            continue
        for wanted in columns:
            if wanted.name not in row:
                raise missing_column(f"{file.name}, {file.unit} {line}", wanted.name, row, columns)
        said = row.get(LANGUAGE_COLUMN)
        try:
            content = text_of(row[column])
        except ValueError as found:
            raise not_expected(f"{file.name}, {file.unit} {line}", columns[0], found) from None
        if isinstance(content, bytes) and content.isspace():
            content = b""
        yield Text(number, line, None if said is None else str(said).strip() or None, content)


def text_files(files: Sequence[DataFile]) -> list[DataFile]:
    """Files of one split; from so many plain texts on, each is one document."""
    plain = sum(format_of(file.name) is not None and file.format.suffix in TEXT for file in files)
    return [replace(file, whole=plain >= MANY_FILES) for file in files]


class LanguageRule:
    """Which rows are in which of the languages asked for, by what they say, and how many say another.

    Args:
        languages: asked for.

    Attributes:
        others: rows that say another language, by it.
    """

    def __init__(self, languages: Sequence[str]) -> None:
        self._languages = tuple(languages)
        self.others: Counter[str] = Counter()

    def __call__(self, said: str | None) -> str | None:
        """The language of a row; None where it is none of those asked for.

        A row that says nothing is in the only language, if only one is asked for.
        """
        if said is None and len(self._languages) == 1:
            return self._languages[0]
        meant = None if said is None else _meant(said, self._languages)
        if meant is None:
            self.others[said or "no language"] += 1
        return meant

    def sentence(self) -> str | None:
        """What the others are, if there are any."""
        if not self.others:
            return None
        found = ", ".join(f"{count:,} in {said!r}" for said, count in self.others.most_common(5))
        return f"rows left out, because their column {LANGUAGE_COLUMN!r} says another language: {found}"


@lru_cache(maxsize=1024)
def _meant(said: str, wanted: tuple[str, ...]) -> str | None:
    return language_meant(said, wanted)


def read_documents(
    files: Sequence[Path], column: str, languages: Sequence[str], tell: Tell = say_nothing
) -> dict[str, list[bytes]]:
    """Documents of files by language.

    Args:
        files: of one split.
        column: of rows, the one with the text. Empty and missing texts are no documents.
        languages: that the files hold; the rows of several say theirs in a column.
        tell: is told of what is suspicious or left out.

    Raises:
        UserError: what cannot be read, with file and line, row or paragraph.
    """
    groups: dict[str, list[bytes]] = {language: [] for language in languages}
    rule = LanguageRule(languages)
    several = len(languages) > 1
    for file in text_files([DataFile.local(path) for path in files]):
        if several and file.format.suffix in TEXT:
            raise UserError(
                f"{file.name} does not say which language it is in, and {len(languages)} are asked for",
                f"make one folder a language ({languages[0]}/, {languages[1]}/ ...), or use rows with a "
                f"{LANGUAGE_COLUMN!r} column",
            )
        try:
            for _, line, said, content in texts(file, column, languages=several, tell=tell):
                if isinstance(content, BadRow):
                    raise UserError(f"{file.name}, {file.unit} {line}: {content.reason}", content.hint)
                if (language := rule(said)) is not None and content:
                    groups[language].append(content)
        except Damaged as error:
            raise cannot_be_read(file, error) from error
    empty = [language for language, documents in groups.items() if not documents]
    if empty and (several or rule.others):
        found = ", ".join(f"{count:,} in {name!r}" for name, count in rule.others.most_common(8))
        raise UserError(
            f"{listed(files, 1)}: no rows in {listed(empty)} ({found or 'none in others'})",
            f"task.languages takes what column {LANGUAGE_COLUMN!r} says",
        )
    if sentence := rule.sentence():
        tell(f"{listed(files, 1)}: {sentence}")
    return groups
