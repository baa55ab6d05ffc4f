"""Spelling correction in context, after Huang et al. (2023): real sentences with one known misspelling.

It replaces the published data, which this toolkit does not have, with the same form, lengths and kinds of
tests. Results on it are not comparable with published ones.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from platform import python_version
from typing import NamedTuple

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
"""The most bytes of a source or target: with EOS they fit the published length of 64 tokens."""

# Shares of sentences, and of misspellings with a single correction.
HELD_OUT_SENTENCES = {"validation": 0.05, "test": 0.10}
HELD_OUT_PAIRS = {"validation": 0.05, "test": 0.10}
PARTS = {"test_context_dependent": True, "test_context_independent": False}

_TOKEN = re.compile(r"(?<![A-Za-z'-])[A-Za-z]+(?:'[A-Za-z]+)*(?![A-Za-z'-])")

Pair = tuple[str, str]


class Example(NamedTuple):
    """A window with one word misspelled, the correct window, and the misspelling with its correction."""

    source: str
    target: str
    pair: Pair


@dataclass(frozen=True)
class Options:
    """The options of `mrt5 data build spelling`, whose help describes them."""

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
    """Write train, validation and two test files; returns the manifest.

    Args:
        text: English text; None uses the documentation inside Python.
        misspellings: a file in codespell's format; None uses codespell's dictionary.

    Raises:
        UserError: a source cannot be read, or gives no examples for a file.
    """
    check_target(out, overwrite=overwrite)
    dictionary = open_misspellings(misspellings)
    pieces = windows_of_splits(text_documents(text), dictionary, options)
    made = examples_of(pieces, dictionary, options)
    if empty := [name for name, examples in made.items() if not examples]:
        raise UserError(
            f"the text gives no examples for {', '.join(empty)}: {sum(map(len, pieces.values())):,} pieces "
            f"of at most {options.window} bytes, {len(dictionary.corrections):,} misspellings",
            "pass more English text with --text, a larger --window, or no --common",
        )
    texts = {"name": "documentation inside Python", "version": python_version(), "licence": "PSF-2.0"}
    about = {
        "task": KIND,
        "note": "One word of each source is misspelled; the target is the correct text. This replaces the "
        "published data in the same form; results are not comparable with published ones. Data derived from "
        "the dictionary and the text stays under their licenses: keep it out of repositories.",
        "seed": options.seed,
        "options": {key: value for key, value in asdict(options).items() if key != "seed"},
        "sources": [
            dictionary.source,
            {"name": text.name, "licence": "the text's own"} if text else texts,
        ],
        "pieces_of_sentences": {split: len(found) for split, found in pieces.items()},
        "files": {f"{name}.tsv": _facts(examples, made["train"]) for name, examples in made.items()},
    }
    rows = {f"{name}.tsv": tsv(example[:2] for example in examples) for name, examples in made.items()}
    return write_data_set(out, f"{MADE_BY} spelling", rows, about, overwrite=overwrite)


def _facts(examples: list[Example], train: list[Example]) -> dict[str, float]:
    """The manifest's facts about a file."""
    facts: dict[str, float] = {
        "examples": len(examples),
        "misspellings": len({example.pair[0] for example in examples}),
        "words": len({example.pair[1] for example in examples}),
        "sentences": len({example.target for example in examples}),
        "copying_is_right": sum(e.source == e.target for e in examples) / len(examples),
    }
    if examples is not train:
        facts["most_frequent_word_is_right"] = without_context(train, examples)
    return facts


def without_context(train: Iterable[Example], test: Sequence[Example]) -> float:
    """The share of `test` that is right if every misspelling gets its most frequent correction in `train`.

    This is what a model can reach without reading the context, 0 to 1.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        counts[example.pair[0]][example.pair[1]] += 1
    right = sum(
        max(counts[wrong], key=lambda word: (counts[wrong][word], word), default=None) == word
        for wrong, word in (example.pair for example in test)
    )
    return right / len(test)


# --- sentences ----------------------------------------------------------------------------------------------


def windows_of_splits(
    documents: Iterable[str], dictionary: Misspellings, options: Options
) -> dict[str, list[str]]:
    """Pieces of sentences by split; a sentence is in one split only, and no piece occurs twice.

    Sentences with a word that the dictionary lists as a misspelling are left out, because they may be wrong.
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
    """The examples of each file.

    A misspelling with one correction belongs to training, validation or the context-independent test only, so
    that the test never repeats one. A misspelling with several corrections is in all splits, in different
    sentences; each of its corrections gets at most as many examples as the second most frequent one, so that
    knowing the misspelling is not enough. Validation is built like the two tests together.
    """
    places = {split: _places(pieces[split], dictionary) for split in SPLITS}
    common = sorted(places["train"], key=lambda word: (-len(places["train"][word]), word))
    allowed = sorted(common[: options.common])
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
        for right in with_progress(allowed, f"making {split} examples", len(allowed)):
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
        if split == "test":
            for name, dependent in PARTS.items():
                made[name] = _drawn(found[dependent], options.test, name, options)
        else:
            count = options.train if split == "train" else options.validation
            made[split] = _drawn(found[True] + found[False], count, split, options)
    return made


def _places(pieces: list[str], dictionary: Misspellings) -> dict[str, list[tuple[int, int, int]]]:
    """The places of each word that has a misspelling: (piece, first character, first character after it)."""
    lowered = {right.lower(): right for rights in dictionary.corrections.values() for right in rights}
    found: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for number, piece in enumerate(pieces):
        for match in _TOKEN.finditer(piece):
            right = lowered.get(match[0].lower())
            # A name must be capitalized as in the dictionary, and the word's case must fit a misspelling.
            if right and (right.islower() or match[0] == right) and _in_case(right, match[0]):
                found[right].append((number, match.start(), match.end()))
    return found


def _in_case(wrong: str, token: str) -> str | None:
    """A misspelling in the word's case, which is lower, upper or title case; None for any other case."""
    if token.islower():
        return wrong
    if token.isupper() and len(token) > 1:
        return wrong.upper()
    title = token[0].isupper() and (len(token) == 1 or token[1:].islower())
    return wrong[0].upper() + wrong[1:] if title else None


def _at(
    where: list[tuple[int, int, int]], pieces: list[str], pair: Pair, limit: int, options: Options
) -> list[Example]:
    """Examples of one pair at up to `limit` of a word's places, which are shuffled.

    Each pair starts at a different place, because shuffling again for every pair would take most of the time.
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
    """At most `count` of a file's examples, shuffled, some of them without their misspelling."""
    order = sorted(pool, key=lambda example: lot(options.seed, name, example.source, example.target))
    return [
        Example(example.target, example.target, example.pair)
        if share(options.seed, "unchanged", name, example.source) < options.unchanged
        else example
        for example in order[:count]
    ]
