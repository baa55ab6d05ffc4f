"""The split, the language and the piece of a set that the names of files and folders give.

One rule for texts and for rows; README.md has examples. A split is a word of a name, whatever separates the
words and whatever their case. A folder or file whose whole name is a split ("train", "Dev_2") decides; other
names count only if there is none. `eval` is the validation split, or the test split if there is another
validation split and no other test split.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from mrt5cli.data.languages import LANGUAGES, language_meant
from mrt5cli.errors import UserError
from mrt5cli.text import counted, listed

SPLITS = ("train", "validation", "test")
HELD_OUT = ("validation", "test")
WORDS = {
    "train": "train|training|trn",
    "validation": "validation|validate|valid|val|dev|devel|development|newsdev",
    "test": "tests?|testing|tst|devtest|newstest|(?:held|hold)[-_. ]?out",
    "eval": "eval|evaluation|evaluate",
}

_LETTER = r"[^\W\d_]"
# Also "trainset" and "testdata"; and "TestData", by the capital.
_SPLIT = re.compile(
    rf"(?<!{_LETTER})(?:{'|'.join(f'(?P<{split}>{words})' for split, words in WORDS.items())})"
    rf"(?:sets?|data)?(?!{_LETTER})"
)
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(f"{_LETTER}+")
_PIECE = re.compile(r"[-._ ]?(?<!\d)(\d+)[-._ ]?of[-._ ]?(\d+)(?!\d)")
_NUMBER = re.compile(r"[-._ ]?\d+$")


@dataclass(frozen=True)
class ParsedName:
    """What the path of a file gives.

    Attributes:
        path: the path that was parsed.
        splits: "train", "validation", "test", "eval"; several if they contradict each other.
        language: a requested language, or another as it is written; None if the path has none.
        folder: whether a folder gives the language.
        base: the path without the number at its end, which the pieces of one set share.
        numbered: whether there is such a number.
    """

    path: PurePath
    splits: frozenset[str]
    language: str | None
    folder: bool
    base: str
    numbered: bool


def read_name(path: PurePath, wanted: Iterable[str] = ()) -> ParsedName:
    """Parse a path, relative to the folder that is searched, without the suffix of its format.

    It is searched for the wanted languages and the paper's.
    """
    decisive = [part for part in path.parts if only_a_split(part)] or path.parts
    splits = {str(match.lastgroup) for part in decisive for match in _SPLIT.finditer(_plain(part))}
    if len(splits) > 1 and "train" not in splits:
        splits.discard("eval")  # as in eval/dev.txt
    codes = (*wanted, *LANGUAGES)
    folders = [found for part in path.parts[:-1] if (found := language_meant(part, codes))]
    named = (found for part in reversed(path.parts) if (found := _language_in(part, codes)))
    name = _PIECE.sub("", path.name) if _PIECE.search(path.name) else _NUMBER.sub("", path.name)
    return ParsedName(
        path=path,
        splits=frozenset(splits),
        language=folders[0] if folders else next(named, None),
        folder=bool(folders),
        base=str(path.parent / name),
        numbered=name not in ("", path.name),
    )


def only_a_split(name: str) -> bool:
    """Whether the name of a folder or file is a split and nothing else, except for numbers."""
    rest, count = _SPLIT.subn("", _plain(name))
    return count > 0 and not _WORD.search(rest)


def _plain(name: str) -> str:
    return _CAPITAL.sub("_", _PIECE.sub("", name)).lower()


def _language_in(name: str, codes: tuple[str, ...]) -> str | None:
    """The last language in a name, with its region if that is wanted."""
    words = _WORD.findall(_PIECE.sub("", name))
    pairs = ("-".join(words[place : place + 2]) for place in reversed(range(len(words))))
    return next((found for pair in pairs if (found := language_meant(pair, codes))), None)


def with_twins(parsed: dict[str, ParsedName], wanted: Sequence[str]) -> dict[str, ParsedName]:
    """Parsed paths, with the languages that only a sibling reveals.

    "wiki.pl" alone does not name Polish; next to "wiki.en", if English is wanted, it does.
    """
    bases = {one.base for one in parsed.values() if one.language in wanted}
    twins = {
        name: replace(one, language=one.base[-2:])
        for name, one in parsed.items()
        if one.language is None and any(one.base[:-2] + language in bases for language in wanted)
    }
    return parsed | twins


def splits_of(parsed: Mapping[str, ParsedName], where: str) -> dict[str, list[str]]:
    """Files by split; those whose names give none are under "".

    Raises:
        UserError: a name gives two splits, or `eval` could be either split.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, one in parsed.items():
        if len(one.splits) > 1:
            raise UserError(
                f"{where}: {name} names two splits, {' and '.join(sorted(one.splits))}",
                "rename it, or move it into a folder named train, validation or test",
            )
        found["".join(one.splits)].append(name)
    if names := found.pop("eval", []):
        split = "test" if "validation" in found else "validation"
        if split in found:
            raise UserError(
                f"{where} has validation and test files, and {listed(names, 3)} could be either",
                "rename these files to validation or test, or remove them",
            )
        found[split] = names
    return dict(found)


def missing_pieces(names: Iterable[str]) -> list[str]:
    """A sentence for each incomplete set of numbered files ("train-00000-of-00002").

    Raises:
        UserError: two sets share one name, so that the same rows may be read twice.
    """
    sets: dict[str, tuple[int, list[str]]] = {}
    for name in names:
        if piece := _PIECE.search(name):
            total, there = sets.setdefault(_PIECE.sub("", name), (int(piece[2]), []))
            there.append(name)
            if total != int(piece[2]) or len(there) > total:
                raise UserError(
                    f"{there[0]} and {name} are not pieces of one set",
                    "remove the files of one of the two sets",
                )
    return [
        f"only {len(there):,} of {counted(total, 'piece')} found, such as {there[0]}"
        for total, there in sets.values()
        if len(there) < total
    ]


def split_lines(splits: Mapping[str, Sequence[str]]) -> list[str]:
    """One line per split, with its files: "train: a.txt, b.txt and 3 more"."""
    return [f"{split}: {listed(splits[split], 3)}" for split in SPLITS if splits.get(split)]
