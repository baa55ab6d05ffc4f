"""Where segments of bytes end, for teaching a boundary predictor (after Nawrot et al. 2023).

`UnigramLabeller` ends a segment with each token of a unigram tokenizer. `EntropyLabeller` ends one before
each byte that surprises: one whose entropy under a byte model, given the bytes before it, exceeds that of
each of the two bytes before it. In prose that is mostly the first letter of a word, or of its ending. So
entropy puts the space between two words at the end of a segment, and a unigram token has it in front.

Both are fitted to rows of input ids (padding 0, EOS 1, a byte b as b + 3), whatever the bytes are, and their
labels of a row depend on nothing but the row's own ids. Their file is one .npz.

Legend: B rows, L positions of the longest, C contexts, V symbols.
"""

from __future__ import annotations

import json
import math
import os
import string
import zipfile
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mrt5cli.byte_tokens import EOS, LAST_BYTE_ID, OFFSET, PAD, UNK
from mrt5cli.errors import UserError
from mrt5cli.rundir import write_bytes

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float32]


class BoundaryLabeller(ABC):
    """Says where segments end."""

    kind: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit(cls, ids: Ids, *, vocabulary: int) -> BoundaryLabeller:
        """A labeller fitted to rows of ids (B, L), padded with 0.

        Args:
            ids: the rows.
            vocabulary: tokens of a tokenizer; nothing to those that have none.
        """

    def label(self, ids: ArrayLike) -> Flags:
        """(B, L), True at the last position of each segment; the last of a row and every EOS end one.

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

    @abstractmethod
    def _ends(self, ids: Ids, real: Flags) -> Flags:
        """As `label`; what is said about padding, EOS and the last position does not count."""

    @abstractmethod
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """What a file must hold."""

    @classmethod
    @abstractmethod
    def _from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> BoundaryLabeller:
        """The inverse of `_arrays`."""

    def save(self, path: str | Path) -> None:
        """Write a file, whole or not at all; the same labeller makes the same bytes."""
        buffer = BytesIO()
        arrays: Any = {"kind": np.array(self.kind), **self._arrays()}
        np.savez_compressed(buffer, **arrays)
        write_bytes(path, buffer.getvalue())


def load(path: str | Path) -> BoundaryLabeller:
    """A labeller that was saved.

    Raises:
        UserError: the file is not there, or is none of ours.
    """
    try:
        # Through memory: numpy leaves a file open whose archive it cannot read.
        with np.load(BytesIO(Path(path).read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return LABELLERS[str(arrays.pop("kind"))]._from_arrays(arrays)
    except FileNotFoundError:
        problem = "is not there"
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        problem = f"is no file of boundary labels: {error}"
    raise UserError(
        f"{path} {problem}",
        "a run's labels are fitted once, before its first step; train it again elsewhere with --out",
    )


# --- unigram ------------------------------------------------------------------------------------------------

SINGLE_BYTES = 256
# What the tokenizer never sees: the character between words is taken out before, the ends of words after.
BETWEEN_WORDS = "\0"
WORD_ENDS = (chr(SINGLE_BYTES + EOS), chr(SINGLE_BYTES + UNK))
WHITE, WORD, MARK, ALONE = range(4)
LONGEST_REMEMBERED = 32
MOST_REMEMBERED = 100_000


def _classes() -> NDArray[np.uint8]:
    """(259,) the class of each id: a word is bytes of one class, with one white space in front if it has any.

    Letters, digits, `_` and all bytes beyond ASCII are of one class, other characters of another. The last
    eleven bytes, which are in no UTF-8 text and serve as sentinels, stand alone, and so does EOS.
    """
    classes = np.full(LAST_BYTE_ID + 1, MARK, dtype=np.uint8)
    letters = (string.ascii_letters + string.digits + "_").encode()
    classes[[OFFSET + byte for byte in (*letters, *range(128, 256))]] = WORD
    classes[[OFFSET + byte for byte in b" \t\n\r"]] = WHITE
    classes[[PAD, EOS, UNK, *range(OFFSET + 0xF5, OFFSET + 0x100)]] = ALONE
    return classes


CLASSES = _classes()


class UnigramLabeller(BoundaryLabeller):
    """Ends segments with the tokens of a unigram tokenizer, none of which reaches beyond a word.

    Args:
        pieces: the tokens, bytes as characters of Latin-1, and their log-probabilities. All single bytes are
            among them, so that whatever comes has tokens.
    """

    kind = "unigram"

    def __init__(self, pieces: list[tuple[str, float]]) -> None:
        from tokenizers.models import Unigram

        self.pieces = pieces
        letters = np.frombuffer("".join(piece for piece, _ in pieces).encode("latin-1"), dtype=np.uint8)
        self._codes = _codes(letters)
        table = dict(enumerate(self._codes[OFFSET:].tolist()))
        self._model = Unigram([(piece.translate(table), score) for piece, score in pieces])
        # Text says the same words again and again, and to look one up is twenty times as fast as its tokens.
        self._remembered: dict[str, bytes] = {}

    @classmethod
    def fit(cls, ids: Ids, *, vocabulary: int = 8000) -> UnigramLabeller:
        """See `BoundaryLabeller`; the same rows give the same tokens, at most `vocabulary`.

        Raises:
            ValueError: the vocabulary leaves nothing beside the 256 single bytes.
        """
        if vocabulary <= SINGLE_BYTES:
            raise ValueError(f"a vocabulary of {vocabulary} tokens has room for single bytes only")
        from tokenizers import Tokenizer
        from tokenizers.models import Unigram
        from tokenizers.trainers import UnigramTrainer

        ids = np.where(ids > LAST_BYTE_ID, UNK, ids)
        codes = _codes(ids[ids >= OFFSET] - OFFSET)
        alone = {"", *map(chr, codes[CLASSES == ALONE].tolist())}
        words = [word for word in _words(ids, ids != PAD, codes) if word not in alone]
        if not words:
            return cls(_canonical({}))
        tokenizer = Tokenizer(Unigram())
        size = vocabulary - SINGLE_BYTES + len(set().union(*words)) + len(WORD_ENDS)
        # Half of the candidates go in each round, not a quarter: text without spaces takes minutes otherwise.
        trainer = UnigramTrainer(vocab_size=size, shrinking_factor=0.5, show_progress=False)
        with _one_thread():
            tokenizer.train_from_iterator(_ended(words), trainer)
        table = {code: byte for byte, code in enumerate(codes[OFFSET:].tolist())}
        learned = json.loads(tokenizer.to_str())["model"]["vocab"]
        return cls(_canonical({piece.translate(table): score for piece, score in learned}))

    def _ends(self, ids: Ids, real: Flags) -> Flags:
        known = self._remembered
        if len(known) > MOST_REMEMBERED:
            known.clear()
        words = _words(ids, real, self._codes)
        labels = b"".join([known.get(word) or self._of_word(word) for word in words])
        ends = np.zeros(ids.shape, dtype=np.bool_)
        ends[real] = np.frombuffer(labels, dtype=np.bool_)
        return ends

    def _of_word(self, word: str) -> bytes:
        """A 1 for each byte of a word that ends a token, a 0 for the others."""
        if len(word) < 2:
            return b"\1" * len(word)
        tokens = self._model.tokenize(word)
        ends = b"".join([bytes(len(token.value) - 1) + b"\1" for token in tokens])
        if len(word) <= LONGEST_REMEMBERED:
            self._remembered[word] = ends
        return ends

    def _arrays(self) -> dict[str, NDArray[Any]]:
        pieces = [piece.encode("latin-1") for piece, _ in self.pieces]
        return {
            "bytes": np.frombuffer(b"".join(pieces), dtype=np.uint8),
            "lengths": np.array([len(piece) for piece in pieces]),
            "scores": np.array([score for _, score in self.pieces]),
        }

    @classmethod
    def _from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> UnigramLabeller:
        text = arrays["bytes"].tobytes().decode("latin-1")
        ends = arrays["lengths"].cumsum().tolist()
        pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return cls(list(zip(pieces, arrays["scores"].tolist(), strict=True)))


def _codes(letters: NDArray[Any]) -> NDArray[np.uint16]:
    """(259,) the characters of ids for the tokenizer, the most frequent bytes those of ASCII.

    It works on UTF-8, and twice as fast on characters of one byte. U+0000 would end its training.

    Args:
        letters: (N,) bytes as they come.
    """
    order = np.argsort(-np.bincount(letters, minlength=SINGLE_BYTES), kind="stable")
    codes = np.zeros(LAST_BYTE_ID + 1, dtype=np.uint16)
    codes[OFFSET + order] = np.arange(1, SINGLE_BYTES + 1)
    codes[[EOS, UNK]] = [ord(end) for end in WORD_ENDS]
    return codes


def _words(ids: Ids, real: Flags, codes: NDArray[np.uint16]) -> list[str]:
    """The words of all rows (B, L) in order, characters for ids; the first is empty."""
    classes = np.take(CLASSES, np.where(real, ids, PAD), mode="clip")
    before, behind = np.full_like(classes, ALONE), np.full_like(classes, ALONE)
    before[:, 1:], behind[:, :-1] = classes[:, :-1], classes[:, 1:]
    starts = (classes != before) | (classes == ALONE)
    # The last white space before something is in front of its word, the others are a word of their own.
    starts &= ~((before == WHITE) & (classes != ALONE))
    starts |= (classes == WHITE) & (before != WHITE)
    starts |= (classes == WHITE) & (behind != WHITE) & (behind != ALONE)
    apart = np.insert(ids[real], np.flatnonzero(starts[real]), PAD)
    return codes[apart].astype("<u2").tobytes().decode("utf-16-le").split(BETWEEN_WORDS)


def _ended(words: list[str]) -> Iterator[str]:
    """Words with an end mark, one of two in turn.

    The trainer considers only beginnings of words that go on in several ways, and so no word that is no
    beginning of others. No token can hold a mark, because nothing ever comes after one.
    """
    seen: defaultdict[str, int] = defaultdict(int)
    for word in words:
        seen[word] += 1
        yield word + WORD_ENDS[seen[word] % len(WORD_ENDS)]


def _canonical(learned: dict[str, float]) -> list[tuple[str, float]]:
    """Tokens with their scores, in order, all single bytes added, marks taken out.

    The trainer visits words in an order that changes from run to run. It shows in the last digits of scores,
    and in those of bytes that are tokens only because each byte must be: it gives them the least score there
    is, the second one 0.0001 more, and so on.
    """
    marks = sum(math.exp(learned.pop(mark, -math.inf)) for mark in WORD_ENDS)
    learned = {piece: score - math.log1p(-marks) for piece, score in learned.items()}
    least = min((score for piece, score in learned.items() if len(piece) == 1), default=0.0)
    for byte in map(chr, range(SINGLE_BYTES)):
        score = learned.get(byte, least)
        learned[byte] = score if score > least + SINGLE_BYTES * 1e-4 else least
    return sorted((piece, round(score, 6)) for piece, score in learned.items())


@contextmanager
def _one_thread() -> Iterator[None]:
    """No threads in the tokenizer: a process that has used them warns at every later fork."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


# --- entropy ------------------------------------------------------------------------------------------------

SYMBOLS = LAST_BYTE_ID + 1
# Contexts whose whole distributions are in memory together.
AT_ONCE = 8192


class EntropyLabeller(BoundaryLabeller):
    """Ends a segment before each byte whose entropy exceeds those of both bytes before it.

    The entropy is that of a trigram byte model: the distribution after the last three symbols, interpolated
    with those after the last two, the last, and none (Witten-Bell). Only entropies are kept, so that labels
    are a look-up. A row begins as if padding stood before it.

    Args:
        after_two: (V * V,) bits after each pair of symbols, the later one in the lower digit of base V.
        contexts: (C,) triples of symbols that were seen, in base V, in order.
        after_three: (C,) bits after them.
    """

    kind = "entropy"

    def __init__(self, after_two: Floats, contexts: NDArray[np.int32], after_three: Floats) -> None:
        if after_two.shape != (SYMBOLS**2,) or contexts.shape != after_three.shape or not len(contexts):
            raise ValueError("its tables are not those of a byte model")
        self.after_two, self.contexts, self.after_three = after_two, contexts, after_three

    @classmethod
    def fit(cls, ids: Ids, *, vocabulary: int = 0) -> EntropyLabeller:
        """See `BoundaryLabeller`; the same rows give the same model."""
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
        """(B, L) bits of uncertainty about each id, given those before it in its row."""
        _, two, three = _contexts(np.where(ids > LAST_BYTE_ID, UNK, ids))
        place = np.minimum(np.searchsorted(self.contexts, three), len(self.contexts) - 1)
        seen = self.contexts[place] == three
        return np.where(seen, self.after_three[place], self.after_two[two])

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"after_two": self.after_two, "contexts": self.contexts, "after_three": self.after_three}

    @classmethod
    def _from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> EntropyLabeller:
        return cls(arrays["after_two"], arrays["contexts"], arrays["after_three"])


def _contexts(ids: Ids) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """(B, L) numbers of the one, two and three symbols before each position."""
    padded = np.zeros((ids.shape[0], ids.shape[1] + 3), dtype=np.int32)
    padded[:, 3:] = ids
    one = padded[:, 2:-1]
    two = one + SYMBOLS * padded[:, 1:-2]
    return one, two, two + SYMBOLS**2 * padded[:, :-3]


def _counts(contexts: NDArray[Any], symbols: Ids, number: int) -> Floats:
    """(C, V) how often each symbol follows each of `number` contexts."""
    flat = np.bincount(contexts * SYMBOLS + symbols, minlength=number * SYMBOLS)
    return flat.reshape(number, SYMBOLS).astype(np.float32)


def _interpolated(counts: Floats, lower: Floats | np.float32) -> Floats:
    """(C, V) distributions: as much weight for `lower` as there are different symbols after the context."""
    kinds = np.maximum((counts > 0).sum(axis=1, keepdims=True), 1).astype(np.float32)
    return (counts + kinds * lower) / (counts.sum(axis=1, keepdims=True) + kinds)


def _bits(distributions: Floats) -> Floats:
    """(C,) entropies of distributions (C, V) that are nowhere 0, in thousandths: less is no spike."""
    return np.round(-(distributions * np.log2(distributions)).sum(axis=1), 3)


LABELLERS: dict[str, type[BoundaryLabeller]] = {
    labeller.kind: labeller for labeller in (UnigramLabeller, EntropyLabeller)
}
