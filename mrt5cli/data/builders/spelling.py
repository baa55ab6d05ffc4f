"""Spelling correction in context, after the character tasks of Huang et al. (2023): real sentences with one
word misspelt, in a known way.

A stand-in for the published data, which this toolkit does not have: the same form, lengths and kinds of test.
Numbers on it are not comparable with published ones.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrt5cli.data.builders.misspellings import Misspellings, open_misspellings
from mrt5cli.data.builders.sentences import sentences, text_documents, windows
from mrt5cli.data.builders.writing import (
    MADE_BY,
    Manifest,
    check_target,
    lot,
    share,
    split_at,
    tsv,
    with_progress,
    write_data_set,
)
from mrt5cli.data.splits import SPLITS
from mrt5cli.errors import UserError

KIND = "spelling_correction_contextual"
LONGEST = 62
"""Bytes of a source or target at most: with EOS they fit the published length of 64 tokens."""

# Of sentences, and of misspellings that mean one word only.
HELD_OUT_SENTENCES = {"validation": 0.05, "test": 0.10}
HELD_OUT_PAIRS = {"validation": 0.05, "test": 0.10}
PARTS = {"test_context_dependent": True, "test_context_independent": False}

_TOKEN = re.compile(r"(?<![A-Za-z'-])[A-Za-z]+(?:'[A-Za-z]+)*(?![A-Za-z'-])")

Pair = tuple[str, str]


@dataclass(frozen=True)
class Example:
    """A window with one word misspelt.

    Attributes:
        source: the window as it is to be read.
        target: as it should be.
        pair: the misspelling in lower case, and the word of the dictionary that it stands for.
    """

    source: str
    target: str
    pair: Pair


@dataclass(frozen=True)
class Options:
    """What is made.

    Attributes:
        seed: of every draw.
        window: bytes of a source or target, at most.
        common: take only so many of the text's most common correctable words; None takes all.
        per_pair: examples of one misspelling and word in training, at most.
        train, validation, test: examples at most; each test part has its own `test`.
        unchanged: share of examples without a misspelling, 0 to below 1.
    """

    seed: int = 42
    window: int = LONGEST
    common: int | None = None
    per_pair: int = 20
    train: int = 100_000
    validation: int = 2_000
    test: int = 4_000
    unchanged: float = 0.0


def build(
    out: Path,
    options: Options,
    *,
    text: Path | None = None,
    misspellings: Path | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write train, validation and two test files, and say what is in them.

    Args:
        out: the folder.
        options: sizes and seed.
        text: English to take sentences from; None takes the documentation inside Python.
        misspellings: a file of codespell's form; None takes codespell's own dictionary.
        overwrite: replace an earlier data set.

    Raises:
        UserError: what cannot be read or written, or too little of it.
    """
    check_target(out, overwrite=overwrite)
    dictionary = open_misspellings(misspellings)
    pieces = windows_of_splits(text_documents(text), dictionary, options)
    made = examples_of(pieces, dictionary, options)
    empty = [name for name, examples in made.items() if not examples]
    if empty:
        raise UserError(
            f"the text gives no examples for {', '.join(empty)}: {sum(map(len, pieces.values())):,} pieces "
            f"of at most {options.window} bytes, {len(dictionary.corrections):,} misspellings",
            "give more English text with --text, a larger --window, or no --common",
        )
    details = describe(made, pieces, dictionary, options, text)
    rows = {f"{name}.tsv": tsv((e.source, e.target) for e in examples) for name, examples in made.items()}
    return write_data_set(out, f"{MADE_BY} spelling", rows, details, overwrite=overwrite)


# --- sentences ----------------------------------------------------------------------------------------------


def windows_of_splits(
    documents: Iterable[str], dictionary: Misspellings, options: Options
) -> dict[str, list[str]]:
    """Pieces of sentences by split; all of a sentence is in one split, and no piece comes twice.

    Sentences with a word that the dictionary takes for a misspelling are left out: they may not be right.
    """
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for document in with_progress(documents, "reading sentences"):
        for sentence in sentences(document):
            if any(token.lower() in dictionary.corrections for token in _TOKEN.findall(sentence)):
                continue
            split = split_at(HELD_OUT_SENTENCES, share(options.seed, "sentence", sentence))
            for piece in windows(sentence, options.window):
                if piece not in seen:
                    seen.add(piece)
                    found[split].append(piece)
    return found


# --- examples -----------------------------------------------------------------------------------------------


def examples_of(
    pieces: Mapping[str, list[str]], dictionary: Misspellings, options: Options
) -> dict[str, list[Example]]:
    """Examples of each file.

    A misspelling that means one word belongs to training, validation or the context-independent test, so that
    a test never repeats one. One that may mean several words is in all of them, in other sentences; each of
    its words gets at most as many examples as the second of them has, so that knowing the misspelling is not
    enough. Validation is made as the two tests together.
    """
    places = {split: _places(pieces[split], dictionary) for split in SPLITS}
    allowed = _most_common(places["train"], dictionary, options.common)
    by_word: dict[str, list[str]] = defaultdict(list)
    for wrong, rights in dictionary.corrections.items():
        for right in rights:
            by_word[right].append(wrong)

    made: dict[str, list[Example]] = {}
    known: set[Pair] = set()
    for split in SPLITS:
        found: dict[bool, list[Example]] = {True: [], False: []}
        limit = options.per_pair if split == "train" else max(1, options.per_pair // 4)
        ambiguous: dict[str, dict[str, list[Example]]] = defaultdict(dict)
        for right in with_progress(sorted(allowed), f"making {split} examples", len(allowed)):
            where = sorted(
                places[split].get(right, []),
                key=lambda place: lot(options.seed, "places", pieces[split][place[0]], place[1]),
            )
            for wrong in by_word[right]:
                alone = len(dictionary.corrections[wrong]) == 1
                if alone and split_at(HELD_OUT_PAIRS, share(options.seed, "pair", wrong)) != split:
                    continue
                examples = _at(where, pieces[split], (wrong, right), limit, options)
                if alone:
                    found[False] += examples
                elif examples and (split == "train" or (wrong, right) in known):
                    ambiguous[wrong][right] = examples
        for words in ambiguous.values():
            if len(words) > 1:
                second = sorted(map(len, words.values()))[-2]
                found[True] += [example for examples in words.values() for example in examples[:second]]
        if split == "train":
            known = {example.pair for example in found[True]}
        for name, kinds, count in _files(split, options):
            pool = [example for kind in kinds for example in found[kind]]
            made[name] = _drawn(pool, count, name, options)
    return made


def _files(split: str, options: Options) -> list[tuple[str, tuple[bool, ...], int]]:
    """Files of a split: their names, whether they need context, and how many examples they take at most."""
    if split == "test":
        return [(name, (dependent,), options.test) for name, dependent in PARTS.items()]
    return [(split, (True, False), options.train if split == "train" else options.validation)]


def _places(pieces: list[str], dictionary: Misspellings) -> dict[str, list[tuple[int, int, int]]]:
    """Where each correctable word stands: (piece, first character, first character after it)."""
    lowered = {right.lower(): right for rights in dictionary.corrections.values() for right in rights}
    found: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for number, piece in enumerate(pieces):
        for match in _TOKEN.finditer(piece):
            right = lowered.get(match[0].lower())
            # A name must be written as one, and no word in a case that a misspelling could not take over.
            if right and (right.islower() or match[0] == right) and _case(match[0]) is not None:
                found[right].append((number, match.start(), match.end()))
    return found


def _most_common(
    places: Mapping[str, list[tuple[int, int, int]]], dictionary: Misspellings, count: int | None
) -> set[str]:
    words = sorted(places, key=lambda word: (-len(places[word]), word))
    return set(words if count is None else words[:count])


def _case(token: str) -> str | None:
    """How a word is written: lower, upper or title; None for anything else."""
    if token.islower():
        return "lower"
    if token.isupper():
        return "upper" if len(token) > 1 else "title"
    return "title" if token[0].isupper() and token[1:].islower() else None


def _in_case(wrong: str, like: str) -> str:
    case = _case(like)
    return wrong.upper() if case == "upper" else wrong[0].upper() + wrong[1:] if case == "title" else wrong


def _at(
    where: list[tuple[int, int, int]], pieces: list[str], pair: Pair, limit: int, options: Options
) -> list[Example]:
    """Examples of one pair at `limit` of a word's places, which are in a drawn order.

    Each pair begins at a place of its own: drawing anew for every pair would take most of the time.
    """
    first = lot(options.seed, "place", *pair) % len(where) if where else 0
    examples = []
    for number, start, stop in [*where[first:], *where[:first]]:
        piece = pieces[number]
        source = f"{piece[:start]}{_in_case(pair[0], piece[start:stop])}{piece[stop:]}"
        if len(source) <= options.window:
            examples.append(Example(source, piece, pair))
            if len(examples) == limit:
                break
    return examples


def _drawn(pool: list[Example], count: int, name: str, options: Options) -> list[Example]:
    """`count` of a file's examples in a drawn order, some of them without their misspelling."""
    order = sorted(pool, key=lambda example: lot(options.seed, name, example.source, example.target))
    return [
        Example(example.target, example.target, example.pair)
        if share(options.seed, "unchanged", name, example.source) < options.unchanged
        else example
        for example in order[:count]
    ]


# --- what was made ------------------------------------------------------------------------------------------


def without_context(train: Iterable[Example], test: Iterable[Example]) -> float:
    """The share of `test` that is right when every misspelling is corrected to its most frequent word in
    `train`: what can be had without reading the context."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        counts[example.pair[0]][example.pair[1]] += 1
    outcomes = [
        max(counts[wrong], key=lambda word: (counts[wrong][word], word), default=None) == right
        for wrong, right in (example.pair for example in test)
    ]
    return sum(outcomes) / len(outcomes) if outcomes else 0.0


def describe(
    made: Mapping[str, list[Example]],
    pieces: Mapping[str, list[str]],
    dictionary: Misspellings,
    options: Options,
    text: Path | None,
) -> dict[str, Any]:
    """What the manifest says beside the files' fingerprints."""
    files = {}
    for name, examples in made.items():
        files[f"{name}.tsv"] = {
            "examples": len(examples),
            "misspellings": len({example.pair[0] for example in examples}),
            "words": len({example.pair[1] for example in examples}),
            "sentences": len({example.target for example in examples}),
            "copying_is_right": sum(e.source == e.target for e in examples) / len(examples),
        }
        if name != "train":
            files[f"{name}.tsv"]["most_frequent_word_is_right"] = without_context(made["train"], examples)
    return {
        "task": KIND,
        "note": "One word of a sentence is misspelt; the target is the sentence as it was. Made in place of "
        "the published data, in the same form; results are not comparable with published ones. What is "
        "derived from the dictionary and the text stays under their licences: keep it out of repositories.",
        "seed": options.seed,
        "options": {
            key: getattr(options, key) for key in Options.__dataclass_fields__ if key not in ("seed",)
        },
        "sources": [dictionary.source, _text_source(text)],
        "pieces_of_sentences": {split: len(found) for split, found in pieces.items()},
        "files": files,
    }


def _text_source(text: Path | None) -> dict[str, Any]:
    if text is not None:
        return {"name": text.name, "licence": "the text's own"}
    import platform

    return {
        "name": "documentation inside Python",
        "version": platform.python_version(),
        "licence": "PSF-2.0",
    }
