"""Word search, after Huang et al. (2023): find the word that a clue asks for in a string of letters.

The published clues are definitions, and those cannot be had here. In their place stands the word itself with
its letters shuffled: `aelpp: krapplemonwq` asks for `apple`. That also needs every letter to be read, of the
clue and of the string, but no knowledge of meanings. The form and lengths are the published task's, numbers
on it are not comparable with published ones.
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
"""Words in a string; all but one are wanted by no clue, so that finding any word is not enough."""
OVERLAP = 2
"""Letters at least that two overlapping words share."""
ATTEMPTS = 20
"""Draws tried for an example: a word may have none to overlap with, a string be too long, or answer its clue
twice."""
NEW_WORDS = 0.1
FEWEST_WORDS = 100

_WORD = re.compile(rf"[a-z]{{{SHORTEST_WORD},{LONGEST_WORD}}}")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Options:
    """What is made: the seed of every draw, and examples at most; each test part has its own `test`."""

    seed: int = 42
    train: int = 100_000
    validation: int = 2_000
    test: int = 4_000


class Draws:
    """Numbers drawn one after the other for a purpose, the same everywhere."""

    def __init__(self, seed: int, *purpose: object) -> None:
        # Of Python's generator only `random` is promised to stay as it is.
        self._next = random.Random(lot(seed, *purpose)).random

    def below(self, choices: int) -> int:
        """One of 0 to `choices` - 1."""
        return int(self._next() * choices)

    def one_of(self, things: Sequence[str]) -> str:
        """One of some texts, or one letter of a text."""
        return things[self.below(len(things))]

    def shuffled(self, letters: str) -> str:
        """The letters of a text in another order, unless they are all the same."""
        left, drawn = list(letters), []
        while left:
            drawn.append(left.pop(self.below(len(left))))
        text = "".join(drawn)
        return text if text != letters else text[1:] + text[0]


def build(out: Path, options: Options, *, words: Path | None = None, overwrite: bool = False) -> Manifest:
    """Write train, validation and three test files, and say what is in them.

    - test_reshuffled: words of training in new strings, their letters shuffled anew;
    - test_overlap: also of training, but the word wanted shares letters with another hidden one;
    - test_oov: words that are neither wanted nor hidden in training.

    Args:
        words: a file with a word a line; None takes the right words of codespell's dictionary or, where
            the package is not installed, the system's word list.
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
            raise UserError(f"the words give no examples for {name}", "give a longer list with --words")
    about = {
        "task": KIND,
        "note": "The clue is the hidden word with its letters shuffled, in place of the published task's "
        "definitions, which cannot be had offline. The same form and lengths; results are not comparable "
        "with published ones.",
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
    """Words in lower case, in order, each once; and where they come from, for a manifest."""
    found: Iterable[str]
    if file is None and codespell_dictionary() is not None:
        dictionary = open_misspellings(None)
        found, source = chain.from_iterable(dictionary.corrections.values()), dictionary.source
    else:
        source = {"name": str(SYSTEM_WORDS), "licence": "the package's own"}
        if file is not None:
            source = {"name": file.name, "licence": "the file's own"}
        hint = f"give --words FILE with a word a line, or `{INSTALL}`"
        found = read_text(file or SYSTEM_WORDS, hint).split()
    words = sorted({word for word in found if _WORD.fullmatch(word)})
    if len(words) < FEWEST_WORDS:
        raise UserError(
            f"{source['name']} has {len(words)} words of {SHORTEST_WORD} to {LONGEST_WORD} letters a to z in "
            f"lower case, expected at least {FEWEST_WORDS}",
            "--words takes a file with a word a line, such as a system's word list",
        )
    return words, {**source, "words_sha256": sha256("\n".join(words).encode()).hexdigest()}


def examples(
    words: Sequence[str], count: int, overlapping: bool, seed: int, name: str
) -> Iterator[tuple[str, str]]:
    """Sources and targets: `clue: letters`, and the word in the letters that the clue's letters spell.

    Args:
        count: examples at most; fewer only where the words are hard to fit.
        overlapping: the word wanted ends with the beginning of another, or begins with its end.
        seed, name: of the draws.
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
    """Blocks in a drawn order with random letters around them; None when they do not fit."""
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
    """Whether the clue's letters stand together in one place of the string only."""
    letters, size, codes = sorted(word), len(word), string.encode()
    whole, here, found = sum(word.encode()), sum(codes[:size]), 0
    for start in range(len(string) - size + 1):
        # Sorting every part would take most of the time; letters that are the same have the same sum.
        if here == whole and sorted(string[start : start + size]) == letters:
            found += 1
        if start + size < len(string):
            here += codes[start + size] - codes[start]
    return found == 1
