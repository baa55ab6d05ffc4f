"""The ends of segments of bytes, as labels for a boundary predictor (after Nawrot et al. 2023).

`UnigramLabeller` ends a segment with each token of a unigram tokenizer. `EntropyLabeller` ends one before
each surprising byte: one whose entropy under a byte model, given the bytes before it, exceeds that of both
preceding bytes. In prose that is mostly the first letter of a word, or of its ending. Entropy therefore puts
the space between two words at the end of a segment, whereas a unigram token begins with it.

Both are fitted to rows of input ids (padding 0, EOS 1, byte b as b + 3) of any bytes. The labels of a row
depend only on the ids of that row. A labeler is saved as one .npz file.

Letters: B rows, L positions of the longest, C contexts, V symbols.
"""

from __future__ import annotations

import json
import math
import os
import re
import string
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrt5cli.byte_tokens import EOS, LAST_BYTE_ID, OFFSET, PAD, UNK
from mrt5cli.errors import UserError
from mrt5cli.writing import write_bytes

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float32]


class BoundaryLabeller(ABC):
    """Labels the ends of segments. The constructor's arguments are its attributes and its file's arrays."""

    kind: ClassVar[str]
    arrays: ClassVar[tuple[str, ...]]

    @classmethod
    @abstractmethod
    def fit(cls, ids: Ids, *, vocabulary: int) -> Self:
        """A labeler fitted to rows of ids (B, L), padded with 0; equal rows give equal labelers.

        Args:
            vocabulary: the most tokens of a tokenizer.

        Raises:
            ValueError: there is too little text, or the vocabulary is too small.
        """

    @abstractmethod
    def _ends(self, ids: Ids, real: Flags) -> Flags:
        """As `label`; values at padding, EOS and the last position are ignored."""

    def label(self, ids: ArrayLike) -> Flags:
        """(B, L), True at the last position of each segment, which includes every EOS and each row's last id.

        Padding, on either side, is False.
        """
        rows = np.asarray(ids, dtype=np.int64)
        real = rows != PAD
        if not real.any():
            return real
        ends = self._ends(np.where(rows > LAST_BYTE_ID, UNK, rows), real) | (rows == EOS)
        filled = np.flatnonzero(real.any(axis=1))
        ends[filled, rows.shape[1] - 1 - real[filled, ::-1].argmax(axis=1)] = True
        return ends & real

    def save(self, path: str | Path) -> None:
        """Write a file atomically; equal labelers write equal bytes."""
        buffer = BytesIO()
        arrays = {name: getattr(self, name) for name in self.arrays}
        np.savez_compressed(buffer, kind=np.array(self.kind), **arrays)
        write_bytes(path, buffer.getvalue())


def load(path: str | Path) -> BoundaryLabeller:
    """Load a saved labeler.

    Raises:
        UserError: the file does not exist, or is not a labeler.
    """
    try:
        # Through memory: numpy leaves a file open if it cannot read its archive.
        with np.load(BytesIO(Path(path).read_bytes()), allow_pickle=False) as file:
            arrays = dict(file)
        return LABELLERS[str(arrays.pop("kind"))](**arrays)
    except FileNotFoundError:
        problem = "does not exist"
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        problem = f"is not a file of boundary labels: {error}"
    raise UserError(
        f"{path} {problem}",
        "train the run again with --out: labels are fitted once, before its first step",
    )


# --- unigram ------------------------------------------------------------------------------------------------

SINGLE_BYTES = 256
# Marks added to the ends of words for the tokenizer's trainer.
WORD_ENDS = (chr(SINGLE_BYTES + EOS), chr(SINGLE_BYTES + UNK))
WHITE, WORD, MARK, ALONE = range(4)
LONGEST_REMEMBERED = 32
MOST_REMEMBERED = 100_000

# (259,) the class of each id. Letters, digits, "_" and all non-ASCII bytes form one class, other characters
# another. EOS and the last eleven bytes, which do not occur in UTF-8 and serve as sentinels, stay alone.
CLASSES = np.full(LAST_BYTE_ID + 1, MARK, dtype=np.uint8)
CLASSES[[OFFSET + byte for byte in (string.ascii_letters + string.digits + "_").encode()]] = WORD
CLASSES[OFFSET + 128 :] = WORD
CLASSES[[OFFSET + byte for byte in b" \t\n\r"]] = WHITE
CLASSES[[EOS, UNK, *range(OFFSET + 0xF5, OFFSET + 0x100)]] = ALONE


class UnigramLabeller(BoundaryLabeller):
    """Ends segments with the tokens of a unigram tokenizer, none of which crosses the end of a word.

    All single bytes are tokens, so that any input can be tokenized.

    Args:
        bytes: the bytes of all tokens, concatenated.
        lengths: the length of each token, in bytes.
        scores: the log-probability of each token.
    """

    kind = "unigram"
    arrays = ("bytes", "lengths", "scores")
    _remembered: dict[str, bytes]

    def __init__(self, bytes: NDArray[np.uint8], lengths: Ids, scores: NDArray[np.float64]) -> None:
        from tokenizers.models import Unigram

        self.bytes, self.lengths, self.scores = bytes, lengths, scores
        self._codes = _codes(bytes)
        self._words = _pattern(self._codes)
        letters = _text(OFFSET + bytes.astype(np.int64)[None], self._codes)
        tokens = [letters[start:end] for start, end in pairwise([0, *np.cumsum(lengths).tolist()])]
        self._model = Unigram(list(zip(tokens, scores.tolist(), strict=True)))
        # Text repeats its words, and looking one up is twenty times as fast as tokenizing it.
        self._remembered = {}

    @classmethod
    def fit(cls, ids: Ids, *, vocabulary: int = 8000) -> Self:
        if vocabulary <= SINGLE_BYTES:
            raise ValueError(f"a vocabulary of {vocabulary} tokens has room for single bytes only")
        from tokenizers import Tokenizer
        from tokenizers.models import Unigram
        from tokenizers.trainers import UnigramTrainer

        ids = np.where(ids > LAST_BYTE_ID, UNK, ids)
        codes = _codes(ids[ids >= OFFSET] - OFFSET)
        alone = {*map(chr, codes[CLASSES == ALONE].tolist())}
        words = [word for word in _pattern(codes).findall(_text(ids, codes)) if word not in alone]
        learned: dict[str, float] = {}
        if words:
            tokenizer = Tokenizer(Unigram())
            size = vocabulary - SINGLE_BYTES + len(set().union(*words)) + len(WORD_ENDS)
            # Each round removes half of the candidates: with a quarter, text without spaces takes minutes.
            trainer = UnigramTrainer(vocab_size=size, shrinking_factor=0.5, show_progress=False)
            # A process that has used the tokenizer's threads logs a warning at every later fork.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            tokenizer.train_from_iterator(_ended(words), trainer)
            table = {code: byte for byte, code in enumerate(codes[OFFSET:].tolist())}
            vocab = json.loads(tokenizer.to_str())["model"]["vocab"]
            learned = {piece.translate(table): score for piece, score in vocab}
        pieces = _canonical(learned)
        return cls(
            np.frombuffer("".join(pieces).encode("latin-1"), dtype=np.uint8),
            np.array([len(piece) for piece in pieces]),
            np.array(list(pieces.values())),
        )

    def _ends(self, ids: Ids, real: Flags) -> Flags:
        known = self._remembered
        if len(known) > MOST_REMEMBERED:
            known.clear()
        words = self._words.findall(_text(ids, self._codes))
        labels = b"".join([known.get(word) or self._of_word(word) for word in words])
        ends = np.zeros(ids.shape, dtype=np.bool_)
        ends[real] = np.frombuffer(labels, dtype=np.bool_)
        return ends

    def _of_word(self, word: str) -> bytes:
        """A 1 for each byte of a word that ends a token, a 0 for each other byte."""
        if len(word) < 2:
            return b"\1" * len(word)
        tokens = self._model.tokenize(word)
        ends = b"".join([bytes(len(token.value) - 1) + b"\1" for token in tokens])
        if len(word) <= LONGEST_REMEMBERED:
            self._remembered[word] = ends
        return ends


def _codes(letters: NDArray[np.integer]) -> NDArray[np.uint16]:
    """(259,) the tokenizer's characters for ids, in which ASCII represents the most frequent bytes.

    The tokenizer works on UTF-8, and is twice as fast on characters of one byte. U+0000, which is padding,
    would end its training.

    Args:
        letters: (N,) bytes of the text.
    """
    order = np.argsort(-np.bincount(letters, minlength=SINGLE_BYTES), kind="stable")
    codes = np.zeros(LAST_BYTE_ID + 1, dtype=np.uint16)
    codes[OFFSET + order] = np.arange(1, SINGLE_BYTES + 1)
    codes[[EOS, UNK]] = [ord(end) for end in WORD_ENDS]
    return codes


def _text(ids: Ids, codes: NDArray[np.uint16]) -> str:
    """The characters of rows (B, L), with padding after each row."""
    return codes[np.pad(ids, ((0, 0), (0, 1)))].astype("<u2").tobytes().decode("utf-16-le")


def _pattern(codes: NDArray[np.uint16]) -> re.Pattern[str]:
    """The pattern of a word: characters of one class, after at most one white space."""
    known = np.arange(len(CLASSES)) != PAD
    white, word, mark, alone = (
        re.escape("".join(map(chr, codes[known & (of == CLASSES)].tolist()))) for of in range(4)
    )
    # The last white space before a word belongs to it; the others form a separate word.
    return re.compile(
        f"[{white}]?(?:[{word}]+|[{mark}]+)|[{alone}]|[{white}]+(?=[{white}][{word}{mark}])|[{white}]+"
    )


def _ended(words: list[str]) -> Iterator[str]:
    """Words with an end mark, alternately one of two.

    The trainer considers only prefixes that continue in several ways, which a complete word need not be; two
    different marks make it one. No token can contain a mark, because nothing follows one.
    """
    seen: Counter[str] = Counter()
    for word in words:
        seen[word] += 1
        yield word + WORD_ENDS[seen[word] % len(WORD_ENDS)]


def _canonical(learned: dict[str, float]) -> dict[str, float]:
    """Tokens and their scores, sorted, with all single bytes and without marks.

    The trainer visits words in an order that varies between runs. This affects the last digits of scores, and
    the scores of bytes that are tokens only because every byte must be: the trainer gives the first the least
    score, the second 0.0001 more, and so on.
    """
    marks = sum(math.exp(learned.pop(mark, -math.inf)) for mark in WORD_ENDS)
    learned = {piece: score - math.log1p(-marks) for piece, score in learned.items()}
    least = min((score for piece, score in learned.items() if len(piece) == 1), default=0.0)
    for byte in map(chr, range(SINGLE_BYTES)):
        score = learned.get(byte, least)
        learned[byte] = score if score > least + SINGLE_BYTES * 1e-4 else least
    return {piece: round(learned[piece], 6) for piece in sorted(learned)}


# --- entropy ------------------------------------------------------------------------------------------------

SYMBOLS = LAST_BYTE_ID + 1
# Contexts whose distributions are in memory at a time.
AT_ONCE = 8192


class EntropyLabeller(BoundaryLabeller):
    """Ends a segment before each byte whose entropy exceeds those of both bytes before it.

    The entropy is that of a byte model with three symbols of context, interpolated with the distributions
    after two, one and no symbols (Witten-Bell). Only entropies are stored, so that labeling is a look-up. A
    row begins as if padding preceded it.

    Args:
        after_two: (V * V,) entropy in bits after each pair of symbols, the later symbol in the lower digit of
            base V.
        contexts: (C,) the observed triples of symbols, in base V, sorted.
        after_three: (C,) entropy in bits after these triples.
    """

    kind = "entropy"
    arrays = ("after_two", "contexts", "after_three")

    def __init__(self, after_two: Floats, contexts: NDArray[np.int32], after_three: Floats) -> None:
        if after_two.shape != (SYMBOLS**2,) or contexts.shape != after_three.shape or not len(contexts):
            raise ValueError("its tables are not those of a byte model")
        self.after_two, self.contexts, self.after_three = after_two, contexts, after_three

    @classmethod
    def fit(cls, ids: Ids, *, vocabulary: int = 0) -> Self:
        ids = np.where(ids > LAST_BYTE_ID, UNK, ids)
        real = ids != PAD
        if not real.any():
            raise ValueError("there is no text to fit to")
        symbols = ids[real]
        one, two, three = (contexts[real] for contexts in _contexts(ids))
        none = _interpolated(_counts(np.zeros_like(symbols), symbols, 1), np.float32(1 / SYMBOLS))
        after_one = _interpolated(_counts(one, symbols, SYMBOLS), none)
        pairs, number = np.unique(two, return_inverse=True)
        after_pairs = _interpolated(_counts(number, symbols, len(pairs)), after_one[pairs % SYMBOLS])
        after_two = np.tile(_bits(after_one), SYMBOLS)
        after_two[pairs] = _bits(after_pairs)

        triples, number = np.unique(three, return_inverse=True)
        order = np.argsort(number, kind="stable")
        symbols, number = symbols[order], number[order]
        below = np.searchsorted(pairs, triples % SYMBOLS**2)
        after_three = np.empty(len(triples), dtype=np.float32)
        for first in range(0, len(triples), AT_ONCE):
            last = min(first + AT_ONCE, len(triples))
            some = slice(*np.searchsorted(number, [first, last]))
            counts = _counts(number[some] - first, symbols[some], last - first)
            after_three[first:last] = _bits(_interpolated(counts, after_pairs[below[first:last]]))
        return cls(after_two, triples.astype(np.int32), after_three)

    def _ends(self, ids: Ids, real: Flags) -> Flags:
        bits = np.where(real, self.entropy(ids), -np.inf)
        before, before_that = np.full_like(bits, -np.inf), np.full_like(bits, -np.inf)
        before[:, 1:], before_that[:, 2:] = bits[:, :-1], bits[:, :-2]
        surprising = (bits > before) & (bits > before_that)
        ends = np.zeros(ids.shape, dtype=np.bool_)
        ends[:, :-1] = surprising[:, 1:]
        return ends

    def entropy(self, ids: Ids) -> Floats:
        """(B, L) entropy of each id in bits, given the ids before it in its row."""
        _, two, three = _contexts(np.where(ids > LAST_BYTE_ID, UNK, ids))
        place = np.minimum(np.searchsorted(self.contexts, three), len(self.contexts) - 1)
        seen = self.contexts[place] == three
        return np.where(seen, self.after_three[place], self.after_two[two])


def _contexts(ids: Ids) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """(B, L) numbers of the one, two and three symbols before each position."""
    padded = np.zeros((ids.shape[0], ids.shape[1] + 3), dtype=np.int32)
    padded[:, 3:] = ids
    one = padded[:, 2:-1]
    two = one + SYMBOLS * padded[:, 1:-2]
    return one, two, two + SYMBOLS**2 * padded[:, :-3]


def _counts(contexts: NDArray[np.integer], symbols: Ids, number: int) -> Floats:
    """(C, V) counts of each symbol after each of `number` contexts."""
    flat = np.bincount(contexts * SYMBOLS + symbols, minlength=number * SYMBOLS)
    return flat.reshape(number, SYMBOLS).astype(np.float32)


def _interpolated(counts: Floats, lower: Floats | np.float32) -> Floats:
    """(C, V) distributions; `lower` has a weight equal to the number of different symbols after a context."""
    kinds = np.maximum((counts > 0).sum(axis=1, keepdims=True), 1).astype(np.float32)
    return (counts + kinds * lower) / (counts.sum(axis=1, keepdims=True) + kinds)


def _bits(distributions: Floats) -> Floats:
    """(C,) entropies in bits of distributions (C, V) without zeros, rounded so that noise is not a peak."""
    return np.round(-(distributions * np.log2(distributions)).sum(axis=1), 3)


LABELLERS: dict[str, type[BoundaryLabeller]] = {
    labeller.kind: labeller for labeller in (UnigramLabeller, EntropyLabeller)
}
