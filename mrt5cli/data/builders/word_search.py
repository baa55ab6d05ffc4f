"""Word search, after Huang et al. (2023): find the word that a clue describes in a string of letters.

The published clues are definitions, which are not available offline. Here the clue is the word with its
letters shuffled: `aelpp: krapplemonwq` describes `apple`. This requires reading every letter of the clue and
of the string, but no knowledge of meanings. The form and lengths are those of the published task; results are
not comparable with published ones.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path

from mrt5cli.data.builders.misspellings import INSTALL, codespell_dictionary, open_misspellings
from mrt5cli.data.builders.writing import (
    MADE_BY,
    Manifest,
    check_target,
    lot,
    share,
    tsv,
    with_progress,
    write_data_set,
)
from mrt5cli.data.formats import read_text
from mrt5cli.errors import UserError

KIND = "word_search"
SYSTEM_WORDS = Path("/usr/share/dict/words")
SHORTEST_WORD, LONGEST_WORD = 4, 15
"""Letters of a hidden word: with EOS the longest fits the published target length of 16 tokens."""
SHORTEST_STRING, LONGEST_STRING = 40, 110
"""Letters of the string: with the longest clue and EOS they fit the published source length of 128 tokens."""
HIDDEN = 4
"""Words in a string, only one of which the clue describes, so that finding any word is not enough."""
OVERLAP = 2
"""The fewest letters that two overlapping words share."""
ATTEMPTS = 20
"""Attempts per example: a word may have none to overlap with, a string may be too long, or match its clue
twice."""
NEW_WORDS = 0.1
FEWEST_WORDS = 100

_WORD = re.compile(rf"[a-z]{{{SHORTEST_WORD},{LONGEST_WORD}}}")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Options:
    """The seed of all random choices, and the most examples of each split; `test` is per part of the test."""

    seed: int = 42
    train: int = 100_000
    validation: int = 2_000
    test: int = 4_000


class Draws:
    """A sequence of random choices for a purpose, the same on every machine."""

    def __init__(self, seed: int, *purpose: object) -> None:
        # `random` is the only method of Python's generator that is guaranteed not to change.
        self._next = random.Random(lot(seed, *purpose)).random

    def below(self, choices: int) -> int:
        """A number from 0 to `choices` - 1."""
        return int(self._next() * choices)

    def one_of(self, things: Sequence[str]) -> str:
        """One of several texts, or one letter of a text."""
        return things[self.below(len(things))]

    def shuffled(self, letters: str) -> str:
        """The letters of a text in a different order, unless they are all equal."""
        left, drawn = list(letters), []
        while left:
            drawn.append(left.pop(self.below(len(left))))
        text = "".join(drawn)
        return text if text != letters else text[1:] + text[0]


def build(out: Path, options: Options, *, words: Path | None = None, overwrite: bool = False) -> Manifest:
    """Write train, validation and three test files; returns the manifest.

    - test_reshuffled: words of training in new strings, with newly shuffled letters;
    - test_overlap: words of training that share letters with another hidden word;
    - test_oov: words that do not occur in training, neither as answers nor hidden.

    Args:
        words: a file with one word per line; None uses the corrections in codespell's dictionary or, if it is
            not installed, the system's word list.

    Raises:
        UserError: the words cannot be read, or are too few.
    """
    check_target(out, overwrite=overwrite)
    listed, source = open_words(words)
    new = [word for word in listed if share(options.seed, "new", word) < NEW_WORDS]
    known = sorted(set(listed) - set(new))
    files = {
        "train": (known, False, options.train),
        "validation": (known, False, options.validation),
        "test_reshuffled": (known, False, options.test),
        "test_overlap": (known, True, options.test),
        "test_oov": (new, False, options.test),
    }
    rows: dict[str, list[tuple[str, str]]] = {}
    strings: set[str] = set()
    for name, (choice, overlapping, count) in files.items():
        rows[name] = []
        made = examples(choice, count, overlapping, options.seed, name)
        for row in with_progress(made, f"making {name} examples", count):
            if row[0] not in strings:
                strings.add(row[0])
                rows[name].append(row)
        if not rows[name]:
            raise UserError(f"the words give no examples for {name}", "pass a longer list with --words")
    about = {
        "task": KIND,
        "note": "The clue is the hidden word with its letters shuffled, in place of the published task's "
        "definitions, which are not available offline. The form and lengths are the same; results are not "
        "comparable with published ones.",
        "seed": options.seed,
        "options": {key: value for key, value in asdict(options).items() if key != "seed"},
        "sources": [source],
        "words": {"in_training": len(known), "new_in_test_oov": len(new)},
        "files": {
            f"{name}.tsv": {
                "examples": len(found),
                "words": len({word for _, word in found}),
                "longest_source_bytes": max(len(source) for source, _ in found),
                "longest_target_bytes": max(len(word) for _, word in found),
            }
            for name, found in rows.items()
        },
    }
    contents = {f"{name}.tsv": tsv(found) for name, found in rows.items()}
    return write_data_set(out, f"{MADE_BY} word-search", contents, about, overwrite=overwrite)


def open_words(file: Path | None) -> tuple[list[str], dict[str, str]]:
    """The different words in lower case, sorted, and their source for a manifest."""
    found: Iterable[str]
    if file is None and codespell_dictionary() is not None:
        dictionary = open_misspellings(None)
        found, source = chain.from_iterable(dictionary.corrections.values()), dictionary.source
    else:
        source = {"name": str(SYSTEM_WORDS), "licence": "the package's own"}
        if file is not None:
            source = {"name": file.name, "licence": "the file's own"}
        hint = f"pass --words FILE with one word per line, or run `{INSTALL}`"
        found = read_text(file or SYSTEM_WORDS, hint).split()
    words = sorted({word for word in found if _WORD.fullmatch(word)})
    if len(words) < FEWEST_WORDS:
        raise UserError(
            f"{source['name']} has {len(words)} words of {SHORTEST_WORD} to {LONGEST_WORD} letters a to z in "
            f"lower case, expected at least {FEWEST_WORDS}",
            "pass --words FILE with one word per line, such as a system's word list",
        )
    return words, {**source, "words_sha256": sha256("\n".join(words).encode()).hexdigest()}


def examples(
    words: Sequence[str], count: int, overlapping: bool, seed: int, name: str
) -> Iterator[tuple[str, str]]:
    """Sources and targets: `clue: letters`, and the word in the letters that the clue's letters spell.

    Args:
        count: the most examples; fewer only if the words are hard to fit.
        overlapping: whether the answer overlaps another hidden word at either end.
        seed, name: seed the random choices.
    """
    beginnings: dict[str, list[str]] = defaultdict(list)
    endings: dict[str, list[str]] = defaultdict(list)
    for word in words if overlapping else ():
        beginnings[word[:OVERLAP]].append(word)
        endings[word[-OVERLAP:]].append(word)
    made = 0
    for number in range(ATTEMPTS * count):
        if made == count:
            return
        draws = Draws(seed, name, number)
        word = block = draws.one_of(words)
        if overlapping:
            after = draws.below(2)
            others = beginnings[word[-OVERLAP:]] if after else endings[word[:OVERLAP]]
            if others == [word] or not others:
                continue
            other = draws.one_of(others)
            block = word + other[OVERLAP:] if after else other + word[OVERLAP:]
        blocks = [block, *(draws.one_of(words) for _ in range(HIDDEN - 1 - overlapping))]
        string = _string(blocks, draws)
        if string is not None and _is_in_one_place(word, string):
            made += 1
            yield f"{draws.shuffled(word)}: {string}", word


def _string(blocks: list[str], draws: Draws) -> str | None:
    """Blocks in random order with random letters around them; None if they do not fit."""
    taken = sum(map(len, blocks))
    length = max(taken, SHORTEST_STRING + draws.below(LONGEST_STRING - SHORTEST_STRING + 1))
    if length > LONGEST_STRING:
        return None
    places = len(blocks) + 1
    gaps = Counter(draws.below(places) for _ in range(length - taken))
    left, text = list(blocks), ""
    for place in range(places):
        text += "".join(draws.one_of(_LETTERS) for _ in range(gaps[place]))
        text += left.pop(draws.below(len(left))) if left else ""
    return text


def _is_in_one_place(word: str, string: str) -> bool:
    """Whether the clue's letters occur together in exactly one place of the string."""
    letters, size, codes = sorted(word), len(word), string.encode()
    whole, here, found = sum(word.encode()), sum(codes[:size]), 0
    for start in range(len(string) - size + 1):
        # Sorting every part would take most of the time; equal letters have equal sums.
        if here == whole and sorted(string[start : start + size]) == letters:
            found += 1
        if start + size < len(string):
            here += codes[start + size] - codes[start]
    return found == 1
