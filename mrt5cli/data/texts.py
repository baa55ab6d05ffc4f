"""Local text: finding the files of each language and split, and reading their documents; see README.md.

`Found.remarks` reports what is left out.
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
from mrt5cli.data.splits import HELD_OUT, SPLITS, ParsedName, split_lines, splits_of
from mrt5cli.errors import UserError
from mrt5cli.text import Tell, listed, say_nothing

# If a split has at least this many plain texts, each is one document; fewer are cut at blank lines.
MANY_FILES = 20

# --- finding ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Local files with text.

    Attributes:
        top: the folder that contains them.
        languages: for each language, its files by split.
        by_language: whether each language has separate files.
        remarks: what is left out or missing, one sentence each.
    """

    top: Path
    languages: dict[str, dict[str, list[Path]]]
    by_language: bool = False
    remarks: Sequence[str] = ()

    @property
    def lines(self) -> list[str]:
        """One line per split: its files, or that it is held out."""

        def names(split: str) -> list[str]:
            files = dict.fromkeys(file for one in self.languages.values() for file in one.get(split, []))
            return [str(file.relative_to(self.top)) for file in files]

        everywhere = set.intersection(*(set(one) for one in self.languages.values()))
        held_out = [split for split in HELD_OUT if "train" in everywhere and split not in everywhere]
        found = split_lines({split: names(split) for split in SPLITS})
        return [*found, *(f"{split}: held out from the training documents" for split in held_out)]

    def splits(self, language: str) -> list[str]:
        """The splits of a language that have files."""
        return list(self.languages[language])

    def files(self, language: str, split: str, tell: Tell = say_nothing) -> list[DataFile]:
        """The files of a split; `tell` is not used, because local files need no waiting."""
        return text_files([DataFile.local(file) for file in self.languages[language][split]])


def find_files(path: Path, languages: Sequence[str]) -> Found:
    """The files of each language and split.

    Raises:
        UserError: the path does not exist, contains no text, or is ambiguous.
    """
    if path.is_dir():
        return _find_in(Folder(path, FORMATS), languages)
    if not path.exists():
        raise UserError(f"{path} does not exist", f"expected a file, or a folder of files; {supported()}")
    if not suffix_of(path.name):
        raise UserError(f"{path} is in an unsupported format", supported())
    return Found(path.parent, {language: {"train": [path]} for language in languages})


def _find_in(folder: Folder, languages: Sequence[str]) -> Found:
    if not folder.files:
        raise UserError(f"{folder.path} contains no text files (found: {folder.kinds()})", supported())
    parsed = folder.read_names(languages)
    own = _by_language(folder, parsed, languages)
    found = {language: _by_split(folder, own.get(language, parsed)) for language in languages}
    remarks, named = folder.remarks(), {one.language for one in parsed.values()}
    if not own and None not in named:
        remarks.append(
            f"the files are named after {listed(sorted(map(str, named)))} but are read as "
            f"{listed(languages)}; set task.languages to the languages of the text"
        )
    return Found(folder.path, found, bool(own), remarks)


def _by_language(
    folder: Folder, parsed: Mapping[str, ParsedName], languages: Sequence[str]
) -> dict[str, dict[str, ParsedName]]:
    """The parsed paths of each language; empty if the paths do not give languages.

    Folders do if any is named after a language; file names only if all have a language, one of them wanted.
    """
    named = [one.language for one in parsed.values()]
    named_after = {name: one for name, one in parsed.items() if one.folder}
    if not named_after and all(named) and not set(named).isdisjoint(languages):
        named_after = dict(parsed)
    if not named_after:
        return {}
    found: defaultdict[str, dict[str, ParsedName]] = defaultdict(dict)
    for name, one in named_after.items():
        found[str(one.language)][name] = one
    if missing := [language for language in languages if language not in found]:
        raise UserError(
            f"{folder.path} has files for {listed(sorted(found))}, but none for {listed(missing)}",
            "add files or a folder for each language of task.languages, or read the existing ones with "
            f"--set task.languages=[{', '.join(sorted(found))}]",
        )
    folder.leave_out("outside the language folders", *(name for name in parsed if name not in named_after))
    others = sorted(set(found) - set(languages))
    unwanted = [file for language in others for file in found[language]]
    folder.leave_out(f"in {listed(others, 4)}, not in task.languages", *unwanted)
    return {language: found[language] for language in languages}


def _by_split(folder: Folder, parsed: Mapping[str, ParsedName]) -> dict[str, list[Path]]:
    splits = splits_of(parsed, str(folder.path))
    unnamed = splits.pop("", [])
    if splits and unnamed:
        raise UserError(
            f"{folder.path} has files for {listed(sorted(splits))}, and files that name no split: "
            f"{listed(unnamed, 3)}",
            "name all files after a split, such as train.txt or wiki_test.txt, or none; or move the training "
            "text into a folder train/",
        )
    return {
        split: [folder.files[name] for name in names]
        for split, names in (splits or {"train": unnamed}).items()
    }


# --- reading ------------------------------------------------------------------------------------------------


def text_files(files: Sequence[DataFile]) -> list[DataFile]:
    """The files of one split; if it has `MANY_FILES` plain texts, each is one document."""
    plain = sum(suffix_of(file.name) in TEXT for file in files)
    return [replace(file, whole=plain >= MANY_FILES) for file in files]


def read_documents(
    files: Sequence[DataFile], column: str, languages: Sequence[str], tell: Tell = say_nothing
) -> dict[str, list[bytes]]:
    """The documents of a split's files by language; empty and missing texts are skipped.

    Args:
        column: the column of rows that contains the text.
        languages: the languages of the files; if several, a column gives the language of each row.
        tell: receives a sentence about what is left out.

    Raises:
        UserError: a file or row cannot be read; the message gives file and line, row or paragraph.
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
            f"make one folder per language, or add a column {LANGUAGE_COLUMN!r} to the rows",
        )
    if others:
        tell(f"{names}: {OTHER_LANGUAGES}: {found}")
    return groups
