"""The paper's diagnostic tasks: random letters in, the same letters without a known set out.

A source is "#", random upper- and lower-case letters and EOS, and always fills its length. Unlike in the
reference, "copy" also samples two letters fewer than the length, so that nothing is cut; the results are the
same.

Strings are sampled by hashing counters in 64-bit integers, so string i depends only on (seed, split, i): not
on generator state, the order of sets or the version of numpy. A hash of each string's letters assigns it to a
split, and strings of other splits are sampled again, so no string is in two splits.

Letters: B rows, L tokens of a source, n = L - 2 of them letters, T tokens of a target.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from mrt5cli.byte_tokens import EOS, IGNORED_LABEL, OFFSET, PAD, encode
from mrt5cli.recipe import DiagnosticTask
from mrt5cli.tasks.base import (
    HELD_OUT_SEED,
    Batch,
    BatchStream,
    SeekableStream,
    Task,
    batches_of,
    make_batch,
    register,
)

START = int(encode("#")[0])
UPPER, LOWER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
LETTERS = encode(UPPER + LOWER)
VOWELS = encode("AEIOUaeiou")
CONSONANTS = np.setdiff1d(LETTERS, VOWELS)
ABC = encode("ABC")
MERGED = encode("D")[0]
# (2, 420), every consonant with every vowel.
PAIRS = np.stack([np.repeat(CONSONANTS, len(VOWELS)), np.tile(VOWELS, len(CONSONANTS))])

# Indexed by id: whether it is a vowel, whether it is a lower-case consonant.
IS_VOWEL = np.isin(np.arange(OFFSET + 256), VOWELS)
IS_LOWER_CONSONANT = np.isin(np.arange(OFFSET + 256), np.setdiff1d(encode(LOWER), VOWELS))

# Two of sixteen strings are held out.
BUCKETS = 16
BUCKETS_OF_SPLIT = {"validation": (0, 1), "test": (1, 2), "train": (2, BUCKETS)}
SPLIT_KEYS = {split: number for number, split in enumerate(("train", "validation", "test"))}

# Mean number of pieces planted in a string of length 64 (62 letters), as in the paper; proportional at other
# lengths.
MEAN_INSERTIONS = {"contextual_vowel_removal": 25.0, "merge_ABC": 5.0}
PIECE_LENGTHS = {"contextual_vowel_removal": 2, "merge_ABC": 3}
REFERENCE_LENGTH = 64
# Roughly how many strings are made at a time.
AT_ONCE = 1024

# --- rules --------------------------------------------------------------------------------------------------


def unneeded(kind: str, ids: NDArray[np.int64], gate: NDArray[np.float32] | None = None) -> NDArray[np.bool_]:
    """(B, L), True at positions whose bytes a task's target does not need.

    These are vowels; vowels after a lower-case consonant; two letters of every ABC; nothing for "copy". Any
    position of an ABC can carry the D: it is the one with the highest gate value, or without `gate` the A,
    which the paper's models keep.

    Args:
        gate: (B, L) gate values.
    """
    if kind == "vowel_removal":
        return np.take(IS_VOWEL, ids)
    mask = np.zeros(ids.shape, dtype=np.bool_)
    if kind == "contextual_vowel_removal":
        mask[:, 1:] = IS_VOWEL[ids[:, 1:]] & IS_LOWER_CONSONANT[ids[:, :-1]]
    elif kind == "merge_ABC":
        rows, columns = np.nonzero(_starts_of_abc(ids))
        letters = columns[:, None] + np.arange(len(ABC))
        mask[rows[:, None], letters] = True
        carrier = 0 if gate is None else gate[rows[:, None], letters].argmax(axis=1)
        mask[rows, columns + carrier] = False
    return mask


def target_of(kind: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels (B, T) of sources (B, L): without unneeded bytes, with the A of every ABC replaced by D.

    T is the length of the longest row; shorter ones are padded with -100.
    """
    kept = ~unneeded(kind, ids) & (ids != PAD)
    if kind == "merge_ABC":
        starts = np.pad(_starts_of_abc(ids), ((0, 0), (0, 2)))
        ids = np.where(starts, MERGED, ids)
    lengths = kept.sum(axis=1)
    labels = np.full((len(ids), lengths.max()), IGNORED_LABEL, dtype=np.int64)
    labels[np.arange(labels.shape[1]) < lengths[:, None]] = ids[kept]
    return labels


def _starts_of_abc(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(B, L - 2), True where an ABC begins."""
    first, second, third = ABC
    return (ids[:, :-2] == first) & (ids[:, 1:-1] == second) & (ids[:, 2:] == third)


# --- strings ------------------------------------------------------------------------------------------------


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit words that scatters counters (the finalizer of splitmix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


_STRIDE = np.uint64(0x9E3779B97F4A7C15)


def _streams(keys: NDArray[np.uint64], purpose: int, words: int) -> NDArray[np.uint64]:
    """(B, words) random words for each key, independent for each purpose."""
    keys = _mix(keys ^ np.uint64(purpose))
    return _mix(keys[:, None] + np.arange(1, words + 1, dtype=np.uint64) * _STRIDE)


def _draws(keys: NDArray[np.uint64], purpose: int, count: int) -> NDArray[np.uint16]:
    """(B, count) random 16-bit numbers, four to a word."""
    return _streams(keys, purpose, -(-count // 4)).astype("<u8", copy=False).view("<u2")[:, :count]


def _pick(draws: NDArray[np.uint16], choices: int) -> NDArray[np.uint32]:
    """A number below `choices` for each draw, uniform to within 1 in 150 at worst (420 choices)."""
    return (draws.astype(np.uint32) * np.uint32(choices)) >> np.uint32(16)


# The low bits of a random rank store its position.
POSITION_BITS = 0xFFFF
LETTER_DRAW, COUNT_DRAW, PLACE_DRAW, PIECE_DRAW = range(4)


def _counts(keys: NDArray[np.uint64], mean: float) -> NDArray[np.int64]:
    """(B,) numbers of pieces to plant: the integer part of Normal(mean, mean / 2), at least 1."""
    uniform = (_streams(keys, COUNT_DRAW, 2) >> np.uint64(11)).astype(np.float64) / 2**53
    normal = np.sqrt(-2 * np.log1p(-uniform[:, 0])) * np.cos(2 * np.pi * uniform[:, 1])
    return np.maximum(1, (mean + mean / 2 * normal).astype(np.int64))


def _places(
    keys: NDArray[np.uint64], counts: NDArray[np.int64], letters: int, piece: int
) -> NDArray[np.bool_]:
    """(B, n - piece + 1), True where pieces begin: counts[b] in row b, or fewer if no more fit.

    Positions are tried in random order and used if they overlap none used before, until there are enough.
    This is the distribution of the reference, which tries random positions and gives up after 500 failures.
    """
    starts, reach = letters - piece + 1, piece - 1
    positions = np.arange(starts, dtype=np.uint64)
    ranks = _streams(keys, PLACE_DRAW, starts) & ~np.uint64(POSITION_BITS) | positions
    order = (np.sort(ranks, axis=1) & np.uint64(POSITION_BITS)).astype(np.int64)
    # The cells of all rows in one flat array, with borders so that every cell has neighbors on both sides.
    width = starts + 2 * reach
    cells = (order + np.arange(len(keys))[:, None] * width + reach).T.copy()
    taken = np.zeros(len(keys) * width, dtype=np.bool_)
    blocked = taken.copy()
    left = counts.copy()
    for tried in cells:
        if not left.any():
            break
        free = (left > 0) & ~blocked[tried]
        chosen = tried[free]
        taken[chosen] = True
        for shift in range(-reach, reach + 1):
            blocked[chosen + shift] = True
        left -= free
    return taken.reshape(len(keys), width)[:, reach : reach + starts]


def _plant(kind: str, keys: NDArray[np.uint64], letters: NDArray[np.int64], mean: float) -> None:
    """Write pieces into letters (B, n), in place."""
    starts = _places(keys, _counts(keys, mean), letters.shape[1], PIECE_LENGTHS[kind])
    rows, columns = np.nonzero(starts)
    if kind == "merge_ABC":
        pieces = ABC
    else:
        pieces = PAIRS[:, _pick(_draws(keys, PIECE_DRAW, starts.shape[1])[rows, columns], len(PAIRS[0]))]
    for offset, piece in enumerate(pieces):
        letters[rows, columns + offset] = piece


def _buckets(letters: NDArray[np.int64]) -> NDArray[np.int64]:
    """(B,) a number below `BUCKETS` for each row, from its letters alone."""
    weights = _mix(np.arange(1, letters.shape[1] + 1, dtype=np.uint64) * _STRIDE) | np.uint64(1)
    total = (letters.astype(np.uint64) * weights).sum(axis=1, dtype=np.uint64)
    return (_mix(total) % np.uint64(BUCKETS)).astype(np.int64)


def draw_strings(
    kind: str, split: str, indices: NDArray[np.int64], *, seed: int, length: int, mean_insertions: float
) -> NDArray[np.int64]:
    """Sources (B, length) of a split: string i for each of the indices (B,).

    Args:
        length: L, byte tokens of a source, "#" and EOS included.
        mean_insertions: mean number of pieces planted in a string, if the kind has any.
    """
    ids = np.empty((len(indices), length), dtype=np.int64)
    ids[:, 0], ids[:, -1] = START, EOS
    low, high = BUCKETS_OF_SPLIT[split]
    root = _mix(np.array([seed * len(SPLIT_KEYS) + SPLIT_KEYS[split] + 1], dtype=np.uint64) * _STRIDE)
    keys = _mix(root + indices.astype(np.uint64) * _STRIDE)
    waiting, attempt = np.arange(len(indices)), 0
    while len(waiting):
        # The fewer strings, the more attempts at once: numpy's overhead would dominate the last rounds.
        attempts = max(1, 128 // len(waiting))
        numbers = np.arange(attempt, attempt + attempts, dtype=np.uint64)
        tried = _mix(keys[waiting, None] + numbers * _STRIDE).reshape(-1)
        letters = LETTERS.take(_pick(_draws(tried, LETTER_DRAW, length - 2), len(LETTERS)))
        if kind in PIECE_LENGTHS:
            _plant(kind, tried, letters, mean_insertions)
        buckets = _buckets(letters)
        fits = ((buckets >= low) & (buckets < high)).reshape(-1, attempts)
        found = fits.any(axis=1)
        # The first attempt that fits, so that a string does not depend on those sampled with it.
        first = np.flatnonzero(found) * attempts + fits[found].argmax(axis=1)
        ids[waiting[found], 1:-1] = letters[first]
        waiting, attempt = waiting[~found], attempt + attempts
    return ids


# --- task ---------------------------------------------------------------------------------------------------


@register("copy", "vowel_removal", "contextual_vowel_removal", "merge_ABC")
class Diagnostic(Task):
    """A diagnostic task: every source fills its length, and every target is exactly determined."""

    def __init__(self, section: DiagnosticTask) -> None:
        self.name: str = section.kind
        self._section = section
        proportional = MEAN_INSERTIONS.get(section.kind, 0.0) * section.length / REFERENCE_LENGTH
        self._mean_insertions = section.mean_insertions or proportional

    def subsets(self, split: str) -> list[str]:
        return ["all"]

    def train_stream(self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> BatchStream:
        """Training batches; see `Task`. The first training string follows the last."""
        read = partial(self._train_batch, seed)
        return SeekableStream(read, batch_size=batch_size, rank=rank, world_size=world_size, at_once=AT_ONCE)

    def held_out(
        self, split: str, subset: str, *, batch_size: int, limit: int | None = None
    ) -> Iterator[Batch]:
        count = self._section.eval_examples if limit is None else min(limit, self._section.eval_examples)
        group = batch_size * max(1, AT_ONCE // batch_size)
        for start in range(0, count, group):
            examples = self._batch(split, np.arange(start, min(start + group, count)), HELD_OUT_SEED)
            yield from batches_of(examples, batch_size)

    def deletable(
        self, input_ids: torch.Tensor | NDArray[np.int64], gate: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_]:
        """(B, L), see `unneeded`."""
        return unneeded(self.name, np.asarray(input_ids, dtype=np.int64), gate)

    def describe(self) -> str:
        section = self._section
        planted = f", {self._mean_insertions:g} pieces planted" if self.name in PIECE_LENGTHS else ""
        return (
            f"{self.name}, generated letter strings of {section.length} byte tokens{planted}, "
            f"{section.train_examples:,} for training"
        )

    def _train_batch(self, seed: int, indices: NDArray[np.int64]) -> Batch:
        return self._batch("train", indices % self._section.train_examples, seed)

    def _batch(self, split: str, indices: NDArray[np.int64], seed: int) -> Batch:
        ids = draw_strings(
            self.name,
            split,
            indices,
            seed=seed,
            length=self._section.length,
            mean_insertions=self._mean_insertions,
        )
        return make_batch(ids, target_of(self.name, ids))
