"""Documents in memory: joined with an end mark, read by position in any order, divided into splits.

Text is stored as raw UTF-8 in one array. Byte 0xFF never occurs in UTF-8, so it marks the end of a document
and becomes EOS when bytes are converted to ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mrt5cli.byte_tokens import EOS, OFFSET

END_OF_DOCUMENT = 0xFF
IDS_OF_BYTES = np.arange(256, dtype=np.int64) + OFFSET
IDS_OF_BYTES[END_OF_DOCUMENT] = EOS

HELD_OUT_FRACTION = 0.01
# One percent of a small text would not fill a single example, so up to a tenth of it is held out instead.
SMALL_HELD_OUT_FRACTION = 0.1
SMALL_HELD_OUT_BYTES = 64 * 1024


class Order:
    """The documents of a corpus in sequence: permuted with `key` as the seed, or in the original order."""

    def __init__(self, corpus: Corpus, key: Sequence[int] | None = None) -> None:
        count = len(corpus.starts)
        order = np.arange(count) if key is None else np.random.default_rng(key).permutation(count)
        self._buffer = corpus.buffer
        self._starts = corpus.starts[order]
        self._ends = np.cumsum(corpus.lengths[order])
        self._taken = 0

    def take(self, count: int) -> NDArray[np.uint8]:
        """The next `count` bytes; fewer at the end."""
        start, self._taken = self._taken, min(self._taken + count, len(self._buffer))
        return self.read(start, self._taken) if start < self._taken else self._buffer[:0]

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes `start` to `stop` of the joined documents, end marks included."""
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right")
        ends = self._ends[first : last + 1]
        lengths = np.diff(ends, prepend=self._ends[first - 1] if first else 0)
        sources = self._starts[first : last + 1].copy()
        # The first document may have begun before `start`, the last may continue after `stop`.
        cut = lengths[0] - (ends[0] - start)
        sources[0] += cut
        lengths[0] -= cut
        lengths[-1] -= ends[-1] - stop
        pieces = zip(sources.tolist(), (sources + lengths).tolist(), strict=True)
        return np.concatenate([self._buffer[a:b] for a, b in pieces])


class Corpus:
    """The documents of one language and split.

    Attributes:
        buffer: (n,) uint8, all documents, each followed by `END_OF_DOCUMENT`.
        starts, lengths: (d,) int64, the offset of each document, and its length with the end mark.
    """

    def __init__(self, documents: Iterable[bytes]) -> None:
        kept = [document for document in documents if document]
        end = bytes([END_OF_DOCUMENT])
        self.buffer = np.frombuffer(end.join([*kept, b""]), dtype=np.uint8)
        self.lengths = np.array([len(document) + 1 for document in kept], dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths

    @property
    def size(self) -> int:
        """The number of bytes of text, without end marks."""
        return len(self.buffer) - len(self.lengths)


class Chunks:
    """A corpus cut into pieces of `size` tokens, in a different order in each epoch.

    The remainder at the end of an epoch is dropped. Piece i is a function of (key, i).

    Args:
        key: numbers that seed the orders.
        scattered: whether to shuffle the pieces too; else the pieces of a document follow each other.
    """

    def __init__(self, corpus: Corpus, size: int, key: Sequence[int], scattered: bool = False) -> None:
        self.per_epoch = len(corpus.buffer) // size
        self._corpus, self._size, self._key, self._scattered = corpus, size, tuple(key), scattered
        self._epoch = -1

    def read(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(P, size) the pieces with these ascending numbers (P,)."""
        pieces = []
        epochs, places = np.divmod(numbers, self.per_epoch)
        for epoch in np.unique(epochs).tolist():
            self._begin(epoch)
            own = self._places[places[epochs == epoch]]
            # Pieces that follow each other are read as one.
            for run in np.split(own, np.flatnonzero(np.diff(own) != 1) + 1):
                pieces.append(self._order.read(run[0] * self._size, (run[-1] + 1) * self._size))
        return np.concatenate(pieces).reshape(-1, self._size)

    def _begin(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        self._epoch, self._order = epoch, Order(self._corpus, (*self._key, epoch))
        self._places = np.arange(self.per_epoch)
        if self._scattered:
            self._places = np.random.default_rng((*self._key, epoch, 1)).permutation(self.per_epoch)


def fingerprint(document: bytes) -> int:
    """A hash of the text, 0 to 2**64 - 1, the same on every machine."""
    return int.from_bytes(blake2b(document, digest_size=8).digest(), "big")


def split_of(document: bytes) -> str:
    """The split of a document by its fingerprint alone: 1 % validation, 1 % test."""
    place = fingerprint(document) / 2**64
    if place < HELD_OUT_FRACTION:
        return "validation"
    return "test" if place < 2 * HELD_OUT_FRACTION else "train"


def hold_out(documents: Sequence[bytes], names: Sequence[str]) -> dict[str, list[bytes]]:
    """Divide documents into held-out splits, by their fingerprints, and "train".

    Each held-out split gets 1 % of the bytes (of small texts up to a tenth, at most 64 KiB) and at least one
    document. Equal documents share a split. The longest document, with its copies, always stays in training;
    so does everything if there are not more different documents than held-out splits.
    """
    prints = [fingerprint(document) for document in documents]
    sizes: dict[int, int] = {}
    for key, document in zip(prints, documents, strict=True):
        sizes[key] = sizes.get(key, 0) + len(document)
    home: dict[int, str] = {}
    if len(sizes) > len(names):
        total = sum(sizes.values())
        budget = max(HELD_OUT_FRACTION * total, min(SMALL_HELD_OUT_FRACTION * total, SMALL_HELD_OUT_BYTES))
        longest = max(sizes, key=lambda key: (sizes[key], key))
        waiting = sorted(set(sizes) - {longest}, reverse=True)
        for place, name in enumerate(names, start=1):
            taken = 0
            while len(waiting) > len(names) - place and (taken == 0 or taken < budget):
                key = waiting.pop()
                home[key] = name
                taken += sizes[key]
    splits: dict[str, list[bytes]] = {name: [] for name in ("train", *names)}
    for key, document in zip(prints, documents, strict=True):
        splits[home.get(key, "train")].append(document)
    return splits
