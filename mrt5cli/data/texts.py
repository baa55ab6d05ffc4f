"""Local text: finding the files of each language and split, and reading their documents; see README.md.

What is left out is said: `Found.remarks`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mrt5cli.data.columns import (
    LANGUAGE_COLUMN,
    OTHER_LANGUAGES,
    column_of_texts,
    language_column,
    text_of,
)
from mrt5cli.data.folders import Folder
from mrt5cli.data.formats import FORMATS, TEXT, DataFile, suffix_of, supported
from mrt5cli.data.languages import language_meant
from mrt5cli.data.reading import usable_rows
from mrt5cli.data.splits import HELD_OUT, SPLITS, ParsedName, in_words, splits_of
from mrt5cli.errors import UserError
from mrt5cli.text import Tell, listed, say_nothing

# From so many plain texts of a split on, each is taken for one document; fewer are cut at blank lines.
MANY_FILES = 20

# --- finding ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Local files with text.

    Attributes:
        top: the folder that they are in.
        languages: files by split, of each language.
        apart: each language has files of its own.
        remarks: what the user should know, a sentence each: what is left out, what is missing.
    """

    top: Path
    languages: dict[str, dict[str, list[Path]]]
    apart: bool = False
    remarks: Sequence[str] = ()

    @property
    def lines(self) -> list[str]:
        """One a split, with its files, or that it is held out."""

        def names(split: str) -> list[str]:
            files = dict.fromkeys(file for one in self.languages.values() for file in one.get(split, []))
            return [str(file.relative_to(self.top)) for file in files]

        everywhere = set.intersection(*(set(one) for one in self.languages.values()))
        held_out = [split for split in HELD_OUT if "train" in everywhere and split not in everywhere]
        found = in_words({split: names(split) for split in SPLITS})
        return [*found, *(f"{split}: held out from the training documents" for split in held_out)]

    def splits(self, language: str) -> list[str]:
        """Splits of a language that have files of their own."""
        return list(self.languages[language])

    def files(self, language: str, split: str, tell: Tell = say_nothing) -> list[DataFile]:
        """Files of a split. Of those on this machine there is nothing to tell."""
        return text_files([DataFile.local(file) for file in self.languages[language][split]])


def find_files(path: Path, languages: Sequence[str]) -> Found:
    """The files of each language and split.

    Raises:
        UserError: nothing there, or something that could be read in two ways.
    """
    if path.is_dir():
        return _find_in(Folder(path, FORMATS), languages)
    if not path.exists():
        raise UserError(f"{path} does not exist", f"expected a file, or a folder with files; {supported()}")
    if not suffix_of(path.name):
        raise UserError(f"{path} is not a text file this toolkit reads", supported())
    return Found(path.parent, {language: {"train": [path]} for language in languages})


def _find_in(folder: Folder, languages: Sequence[str]) -> Found:
    if not folder.files:
        raise UserError(f"{folder.path} holds no text files (found: {folder.kinds()})", supported())
    said = folder.read_names(languages)
    own = _by_language(folder, said, languages)
    found = {language: _by_split(folder, own.get(language, said)) for language in languages}
    remarks, named = folder.remarks(), {of.language for of in said.values()}
    if not own and None not in named:
        remarks.append(
            f"the names of the files speak of {listed(sorted(map(str, named)))}, and all are read as "
            f"{listed(languages)}: task.languages names the languages of the text"
        )
    return Found(folder.path, found, bool(own), remarks)


def _by_language(
    folder: Folder, said: Mapping[str, ParsedName], languages: Sequence[str]
) -> dict[str, dict[str, ParsedName]]:
    """What the files of each language say; empty where names say nothing of languages.

    Names of files do where all of them have a language, and a wanted one is among these.
    """
    named = [of.language for of in said.values()]
    apart = {name: of for name, of in said.items() if of.folder}
    if not apart and all(named) and not set(named).isdisjoint(languages):
        apart = dict(said)
    if not apart:
        return {}
    there: defaultdict[str, dict[str, ParsedName]] = defaultdict(dict)
    for name, of in apart.items():
        there[str(of.language)][name] = of
    if missing := [language for language in languages if language not in there]:
        raise UserError(
            f"{folder.path} has files for {listed(sorted(there))}, but none for {listed(missing)}",
            "every language of task.languages needs files or a folder of its name; "
            f"for what is there, --set task.languages=[{', '.join(sorted(there))}]",
        )
    folder.leave_out("beside the folders of languages", *(name for name in said if name not in apart))
    for language, files in there.items():
        if language not in languages:
            folder.leave_out(f"in {language}, which task.languages does not ask for", *files)
    return {language: there[language] for language in languages}


def _by_split(folder: Folder, said: Mapping[str, ParsedName]) -> dict[str, list[Path]]:
    splits = splits_of(said, str(folder.path))
    unnamed = splits.pop("", [])
    if splits and unnamed:
        raise UserError(
            f"{folder.path} has files for {listed(sorted(splits))} and others beside them: "
            f"{listed(unnamed, 3)}",
            "name all of them after a split, as train.txt or wiki_test.txt, or none; or put what is training "
            "text into a folder train/",
        )
    return {
        split: [folder.files[name] for name in names]
        for split, names in (splits or {"train": unnamed}).items()
    }


# --- reading ------------------------------------------------------------------------------------------------


def text_files(files: Sequence[DataFile]) -> list[DataFile]:
    """Files of one split; from so many plain texts on, each is one document."""
    plain = sum(suffix_of(file.name) in TEXT for file in files)
    return [replace(file, whole=plain >= MANY_FILES) for file in files]


def read_documents(
    files: Sequence[DataFile], column: str, languages: Sequence[str], tell: Tell = say_nothing
) -> dict[str, list[bytes]]:
    """Documents of the files of a split by language. Empty and missing texts are no documents.

    Args:
        column: of rows, the one with the text.
        languages: that the files hold; the rows of several say theirs in a column.
        tell: is given what is left out.

    Raises:
        UserError: what cannot be read, with file and line, row or paragraph.
    """
    groups: dict[str, list[bytes]] = {language: [] for language in languages}
    others: Counter[str] = Counter()
    several = len(languages) > 1
    texts = column_of_texts(column)
    for file in files:
        for where, row in usable_rows(file, [texts]):
            said, content = language_column(row), text_of(where, row, texts)
            meant = language_meant(said, tuple(languages)) if said else None if several else languages[0]
            if meant is None:
                others[said or "no language"] += 1
            elif content:
                groups[meant].append(content)
    names = listed([file.name for file in files], 1)
    found = ", ".join(f"{count:,} in {said!r}" for said, count in others.most_common(5))
    empty = [language for language, documents in groups.items() if not documents]
    if empty and (several or others):
        raise UserError(
            f"{names}: no rows in {listed(empty)} ({found or 'none in others'})",
            f"make one folder a language, or give rows a column {LANGUAGE_COLUMN!r} that says theirs",
        )
    if others:
        tell(f"{names}: {OTHER_LANGUAGES}: {found}")
    return groups
