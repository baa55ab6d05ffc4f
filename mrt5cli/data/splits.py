"""What the names of files and folders say: which split, which language, and which piece of how many.

One rule for texts and for rows. A name is read word by word, whatever stands between the words and however
they are capitalised, and a word says a split as in `WORDS`:

    train/a.txt   Train.txt   wiki_train.txt   wiki.train.en.txt   train-00000-of-00002.txt   trainData2.txt

A folder or file whose name is nothing but the split ("train", "Dev_2") decides; other names only count where
none is. `eval` is the validation split, or the test where there is another validation and no other test.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import PurePath

import regex

from mrt5cli.data.languages import LANGUAGES, language_meant
from mrt5cli.errors import UserError
from mrt5cli.text import counted, listed

SPLITS = ("train", "validation", "test")
HELD_OUT = ("validation", "test")
WORDS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev", "devel", "development", "newsdev", "validate"),
    "test": ("test", "tests", "testing", "tst", "devtest", "heldout", "holdout", "newstest"),
    "eval": ("eval", "evaluation", "evaluate"),
}
# As in "trainset" and "TestData".
ENDINGS = ("", "set", "sets", "data")

_SPLIT_OF_WORD = {
    word + ending: split for split, words in WORDS.items() for word in words for ending in ENDINGS
}
# As they are written, and "trainSet" and "TestData" in two.
_WORDS = regex.compile(r"\p{L}+|\d+")
_CAPITALISED = regex.compile(r"\p{Lu}+(?!\p{Ll})|\p{Lu}?\p{Ll}+|[\p{Lo}\p{Lm}]+|\d+")
_PIECE = regex.compile(r"[-._ ]?(?<!\d)(\d+)[-._ ]?of[-._ ]?(\d+)(?!\d)")
_NUMBER = regex.compile(r"[-._ ]?\d+$")


@dataclass(frozen=True)
class ParsedName:
    """What the path of a file says.

    Attributes:
        split: "train", "validation", "test", "eval", or None where it says none.
        language: one of those asked for, or another as it is written; None where it says none.
        folder: whether a folder says the language.
        exact: whether a folder or the file is called as the split and nothing else.
        set: the path without the number of the piece: what pieces of one set have in common.
        numbered: whether it ends in a number.
        piece: which piece it is of how many, or None.
        splits: several, where they contradict each other.
    """

    split: str | None
    language: str | None
    folder: bool
    exact: bool
    set: str
    numbered: bool
    piece: tuple[int, int] | None
    splits: tuple[str, ...] = ()


def read_name(path: PurePath, wanted: Iterable[str] = ()) -> ParsedName:
    """What a file's path says, relative to the folder that was asked for, without the suffix of its format.

    Args:
        path: of the file.
        wanted: languages that are looked for, beside the paper's.
    """
    codes = [*wanted, *LANGUAGES]
    parts = path.parts
    spoken = [_words(part) for part in parts]
    exact = [splits for words in spoken if (splits := _splits(words)) and _only_a_split(words)]
    found = set().union(*(exact or [_splits(words) for words in spoken]))
    if len(found) > 1 and "train" not in found:
        found.discard("eval")  # as in eval/dev.txt
    split = next(iter(found)) if len(found) == 1 else None

    folders = [of for part in parts[:-1] if (of := language_meant(part, codes))]
    named: set[str] = set()
    for part in reversed(parts):
        words = [word for word in _WORDS.findall(part) if word.lower() not in _SPLIT_OF_WORD]
        if named := {of for word in words if (of := language_meant(word, codes))}:
            if len(named) > 1 and (last := language_meant(words[-1], codes)):
                named = {last}  # "europarl.de-en.de"
            break
    # A code with a region is two words: "test-zh-TW".
    named = {longer for longer in wanted if _ends_with(path.name, longer)} or named
    language = folders[0] if folders else next(iter(named)) if len(named) == 1 else None

    piece = _PIECE.search(parts[-1])
    name = _PIECE.sub("", parts[-1]) if piece else _NUMBER.sub("", parts[-1])
    return ParsedName(
        split=split,
        language=language,
        folder=bool(folders),
        exact=bool(exact),
        set=str(path.with_name(name)) if name else str(path),
        numbered=name not in ("", parts[-1]),
        piece=(int(piece[1]), int(piece[2])) if piece else None,
        splits=tuple(sorted(found)) if len(found) > 1 else (),
    )


def with_twins(said: dict[str, ParsedName], wanted: Iterable[str]) -> dict[str, ParsedName]:
    """What paths say, and the languages of files that differ from one asked for by a code alone.

    "wiki.pl.txt" alone says nothing of Polish; beside "wiki.en.txt", where English is asked for, it does.
    """
    wanted = list(wanted)
    frames: set[tuple[str, ...]] = set()
    for of in said.values():
        if of.language in wanted:
            words = _words_in_order(of)
            frames |= {
                (*words[:n], "", *words[n + 1 :])
                for n, word in enumerate(words)
                if language_meant(word, wanted)
            }
    twins = dict(said)
    for name, of in said.items():
        words = _words_in_order(of)
        codes = [
            word
            for n, word in enumerate(words)
            if (*words[:n], "", *words[n + 1 :]) in frames and word.isalpha() and len(word) in (2, 3)
        ]
        if of.language is None and codes:
            twins[name] = replace(of, language=codes[0])
    return twins


def _words_in_order(of: ParsedName) -> list[str]:
    """The words of a path but those that say a split."""
    return [word for word in _WORDS.findall(of.set.lower()) if word not in _SPLIT_OF_WORD]


def splits_of(said: dict[str, ParsedName], where: str) -> dict[str, list[str]]:
    """Files by split; those that say none are under "".

    Args:
        said: what each file says.
        where: the folder, for people.

    Raises:
        UserError: a file says two splits, or it cannot be told which split `eval` is.
    """
    said = _unglued(said)
    for name, of in said.items():
        if of.splits:
            raise UserError(
                f"{where}: {name} says {' and '.join(of.splits)}, and can be of one split only",
                "rename it, or put it into a folder that is called train, validation or test",
            )
    there = {of.split for of in said.values()}
    evaluation = "validation"
    if "eval" in there and "validation" in there:
        if "test" in there:
            names = [name for name, of in said.items() if of.split == "eval"]
            raise UserError(
                f"{where} has validation and test files, and others for evaluation: {listed(names, 3)}",
                "say which split they are: name them validation or test, or take them out",
            )
        evaluation = "test"
    found: dict[str, list[str]] = {}
    for name, of in said.items():
        found.setdefault(evaluation if of.split == "eval" else of.split or "", []).append(name)
    return found


def _unglued(said: dict[str, ParsedName]) -> dict[str, ParsedName]:
    """Names such as "wikitrain" and "wikitest" apart: all are of one word and a split, and one is "train"."""
    if any(of.split or of.splits for of in said.values()):
        return said
    stems: set[str] = set()
    splits: dict[str, str] = {}
    for name, of in said.items():
        last = (_WORDS.findall(PurePath(of.set).name.lower()) or [""])[-1]
        word = max((word for word in _SPLIT_OF_WORD if last.endswith(word)), key=len, default="")
        if not word or last == word:
            return said
        stems.add(last.removesuffix(word))
        splits[name] = _SPLIT_OF_WORD[word]
    if len(stems) > 1 or "train" not in splits.values() or len(set(splits.values())) < 2:
        return said
    return {name: replace(of, split=splits[name]) for name, of in said.items()}


def missing_pieces(said: dict[str, ParsedName]) -> list[str]:
    """A sentence for each set of which not all pieces are there."""
    sentences = []
    for total, there in _sets(said).values():
        if len(there) >= total:
            continue
        found = f"only {len(there):,} of {counted(total, 'piece')} {'is' if len(there) == 1 else 'are'} there"
        one = next(iter(there.values()))
        # Some count from 0, some from 1.
        first = 0 if 0 in there else 1 if total in there else None
        if first is None:
            sentences.append(f"{found}, such as {one}")
            continue
        lost = islice((number for number in range(first, first + total) if number not in there), 3)
        names = [_PIECE.sub(lambda match, at=number: _renumbered(match, at), one) for number in lost]
        count = total - len(there)
        more = f" and {count - 3:,} more" if count > 3 else ""
        sentences.append(f"{found}: {', '.join(names)}{more} {'is' if count == 1 else 'are'} missing")
    return sentences


def check_pieces(said: dict[str, ParsedName], where: str) -> None:
    """Refuse pieces of two sets under one name, of which the one may be the other over again.

    Raises:
        UserError: it names two of them.
    """
    totals: dict[str, tuple[int, str]] = {}
    for name, of in said.items():
        if of.piece is None:
            continue
        number, total = of.piece
        before, other = totals.setdefault(of.set, (total, name))
        if before != total or number > total:
            what = f"{other} and {name} are" if before != total else f"{name} is"
            raise UserError(
                f"{where}: {what} no pieces of one set"
                if before != total
                else f"{where}: {what} no piece of {total}",
                "take out the set that is not to be read, or give it another name",
            )
    for total, there in _sets(said).values():
        if 0 in there and total in there:
            raise UserError(
                f"{where}: {there[0]} and {there[total]} are no pieces of one set: {total + 1} of {total}",
                "take out the one that is not to be read",
            )


def _sets(said: dict[str, ParsedName]) -> dict[str, tuple[int, dict[int, str]]]:
    """Of each set how many pieces it has, and those that are there."""
    sets: dict[str, tuple[int, dict[int, str]]] = {}
    for name, of in said.items():
        if of.piece is not None:
            sets.setdefault(of.set, (of.piece[1], {}))[1][of.piece[0]] = name
    return sets


def _renumbered(match: regex.Match[str], number: int) -> str:
    return match[0].replace(match[1], str(number).zfill(len(match[1])), 1)


def _words(part: str) -> set[str]:
    part = _PIECE.sub("", unicodedata.normalize("NFKC", part))
    words = _WORDS.findall(part)
    # "held-out" is "heldout".
    pairs = [first + second for first, second in pairwise(words)]
    split = [pair for pair in pairs if pair.lower() in ("heldout", "holdout")]
    return {word.lower() for word in (*words, *_CAPITALISED.findall(part), *split)}


def _splits(words: Iterable[str]) -> set[str]:
    return {_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD}


def _only_a_split(words: Iterable[str]) -> bool:
    return all(word in _SPLIT_OF_WORD or word.isdecimal() for word in words)


def _ends_with(name: str, code: str) -> bool:
    normal = name.lower().replace("_", "-")
    return "-" in code.replace("_", "-") and normal.endswith(code.lower().replace("_", "-"))


def in_words(splits: Mapping[str, Sequence[str]]) -> list[str]:
    """A line a split, with its files: "train: a.txt, b.txt and 3 more"."""
    return [f"{split}: {listed(splits[split], 3)}" for split in SPLITS if splits.get(split)]
