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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from mrt5cli.data.folders import Folder, without_suffix
from mrt5cli.data.formats import FORMATS, TEXT, BadRow, Damaged, DataFile, decoded, format_of, supported
from mrt5cli.data.languages import LANGUAGES, language_meant
from mrt5cli.data.paragraphs import paragraphs, whole_text
from mrt5cli.data.splits import (
    SPLITS,
    Said,
    check_pieces,
    in_words,
    missing_pieces,
    read_name,
    splits_of,
    with_twins,
)
from mrt5cli.data.tables import LANGUAGE_COLUMN, Wanted, cannot_be_read, rows_of
from mrt5cli.errors import UserError
from mrt5cli.text import Tell, listed, say_nothing

# From so many plain texts of a split on, each is taken for one document; fewer are cut at blank lines.
MANY_FILES = 20
# Bytes of plain text that are read at a time.
TEXT_AT_ONCE = 1 << 20
# What a value is called that is no text.
_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}

FilesOfSplits = dict[str, list[Path]]


# --- finding ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Local files with text.

    Attributes:
        languages: files by split, of each language. Languages without files of their own share one entry.
        apart: each language has files of its own.
        splits: a line a split, with its files.
        remarks: what the user should know, a sentence each: what is left out, what is missing.
    """

    languages: dict[str, FilesOfSplits]
    apart: bool
    splits: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


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
        return Found(dict.fromkeys(languages, one), apart=False, splits=in_words({"train": [path.name]}))
    folder = Folder(path, FORMATS)
    if not folder.files:
        raise UserError(f"{path} holds no text files (found: {folder.kinds()})", supported())
    said = {name: read_name(PurePath(without_suffix(name)), languages) for name in folder.files}
    said = with_twins(said, languages)
    check_pieces(said, str(path))
    own = _by_language(folder, said, languages)
    groups = {language: {name: said[name] for name in names} for language, names in own.items()}
    if not groups:
        groups = {"": said}
    found = {language: _by_split(folder, group) for language, group in groups.items()}
    named = {split: [name for one in found.values() for name in one.get(split, [])] for split in SPLITS}
    remarks = [f"{path}: {sentence}" for sentence in missing_pieces(said)] + folder.remarks()
    files = {
        language: {split: [folder.files[name] for name in names] for split, names in one.items()}
        for language, one in found.items()
    }
    return Found(
        files if own else dict.fromkeys(languages, files[""]),
        apart=bool(own),
        splits=in_words(named),
        remarks=remarks,
    )


def _by_language(folder: Folder, said: dict[str, Said], languages: Sequence[str]) -> dict[str, list[str]]:
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


def _names_are_languages(said: dict[str, Said], languages: Sequence[str]) -> bool:
    """Whether words in files' names that could be languages are meant so.

    They are where one asked for is among them, or where nothing else is in the names but the split.
    """
    if any(of.language in languages for of in said.values()):
        return True
    bare = [PurePath(of.set).name for of in said.values()]
    return all(
        of.split or language_meant(name, LANGUAGES) for of, name in zip(said.values(), bare, strict=True)
    )


def _by_split(folder: Folder, said: dict[str, Said]) -> dict[str, list[str]]:
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


@dataclass(frozen=True)
class TextFile(DataFile):
    """A file with documents in it.

    Attributes:
        whole: a plain text is one document.
    """

    whole: bool = False

    def texts(
        self, column: str, first: int = 0, *, languages: bool = False, tell: Tell = say_nothing
    ) -> Iterator[Text]:
        """The texts of the file, in order.

        Args:
            column: of rows, the one with the text.
            first: texts to pass over.
            languages: each row must name its language.
            tell: is told of what is suspicious and still read.

        Raises:
            UserError: the format is none that is read, or a row has no such column, or another thing in it.
            Damaged: what comes cannot be read.
        """
        if self.format.suffix in TEXT:
            with self.utf8() as stream:
                blocks = iter(lambda: stream.read(TEXT_AT_ONCE), b"")
                for number, part in enumerate(
                    whole_text(blocks) if self.whole else paragraphs(blocks), start=1
                ):
                    if number > first:
                        good = decoded(part)
                        yield Text(
                            number, number, None, good if isinstance(good, BadRow) else _no_blank(part)
                        )
            return
        columns = [column, LANGUAGE_COLUMN] if languages else [column]
        wanted = Wanted(columns, missing_text, also=[LANGUAGE_COLUMN], tell=tell)
        for number, line, row in rows_of(self, wanted, first):
            if isinstance(row, BadRow):
                yield Text(number, line, None, row)
                continue
            for name in columns:
                if name not in row:
                    raise missing_text(f"{self.name}, {self.unit} {line}", name, row)
            said = row.get(LANGUAGE_COLUMN)
            content = text_of(row[column])
            if content is None:
                raise no_text(f"{self.name}, {self.unit} {line}", column, row[column])
            content = content if isinstance(content, BadRow) else _no_blank(content)
            yield Text(number, line, None if said is None else str(said).strip() or None, content)


def _no_blank(content: bytes) -> bytes:
    """Nothing in place of white space alone."""
    return b"" if content.isspace() else content


def text_of(value: Any) -> bytes | BadRow | None:
    """A cell of text as UTF-8; None where it holds another thing. A lone surrogate becomes "?"."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace")
    if value is None:
        return b""
    if isinstance(value, bytes):
        good = decoded(value)
        return good if isinstance(good, BadRow) else value
    return None


def text_files(files: Sequence[DataFile]) -> list[TextFile]:
    """Files of one split; from so many plain texts on, each is one document."""
    plain = sum(format_of(file.name) is not None and file.format.suffix in TEXT for file in files)
    return [TextFile(file.name, file.open, file.remote, plain >= MANY_FILES) for file in files]


class LanguageRule:
    """Which rows are in which of the languages asked for, by what they say, and how many say another.

    Args:
        languages: asked for.

    Attributes:
        others: rows that say another language, by it.
    """

    def __init__(self, languages: Sequence[str]) -> None:
        self._asked = tuple(languages)
        self.others: Counter[str] = Counter()

    def __call__(self, said: str | None) -> str | None:
        """The language of a row; None where it is none of those asked for.

        A row that says nothing is in the only language, if only one is asked for.
        """
        if said is None and len(self._asked) == 1:
            return self._asked[0]
        meant = None if said is None else _meant(said, self._asked)
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
def _meant(said: str, asked: tuple[str, ...]) -> str | None:
    return language_meant(said, asked)


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
            for _, line, said, content in file.texts(column, languages=several, tell=tell):
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


def kind_of(value: object) -> str:
    """What a value is that was expected to be text."""
    return next(
        (name for kind, name in _KINDS.items() if isinstance(value, kind)), f"a {type(value).__name__}"
    )


def no_text(where: str, column: str, value: object) -> UserError:
    """What a row whose column holds something else is told."""
    return UserError(f"{where}: column {column!r} holds {kind_of(value)}, expected text")


def missing_text(where: str, column: str, found: Iterable[str]) -> UserError:
    """What a row or a file without a column of text is told."""
    hint = (
        "--set task.source.text_column=NAME"
        if column != LANGUAGE_COLUMN
        else "each row must name its language"
    )
    return UserError(f"{where} has no column {column!r}; it has {listed(list(found), 12) or 'none'}", hint)
