"""Span corruption on arrays: lengths of spans, sampling of noise, assembly of inputs and targets.

A row of raw tokens alternates between kept and corrupted spans, beginning with a kept one. The input is the
kept spans, each followed by a sentinel in place of the corrupted span after it. The target is the corrupted
spans, each preceded by its sentinel. Both end with EOS.

Letters: B rows, N raw tokens, L input tokens, T target tokens, S spans.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mrt5cli.byte_tokens import EOS, LAST_BYTE_ID
from mrt5cli.data.corpus import IDS_OF_BYTES

FIRST_SENTINEL = LAST_BYTE_ID
# The ids of ASCII characters must not be used as sentinels.
MOST_SPANS = 128


@dataclass(frozen=True)
class SpanLengths:
    """The lengths into which a row is divided.

    Sentinels are 258, 257, ... downwards, one per span, as in ByT5: the ids of bytes 255, 254, ... The first
    11 are bytes that do not occur in UTF-8. The next are lead bytes: of four-byte characters from the 12th
    (emoji at the 16th), of three-byte ones from the 17th, of two-byte ones from the 33rd; continuation bytes
    from the 65th. A model must distinguish those from letters by context. With the paper's density and span
    length, they are used from inputs of 1313, 1891, 3720 and 7379 tokens on. `MOST_SPANS` keeps sentinels out
    of ASCII.

    Attributes:
        raw: N, the number of tokens cut from the text.
        noise: the number of corrupted tokens.
        spans: S, the number of corrupted spans, and of kept spans.
    """

    raw: int
    noise: int
    spans: int

    @property
    def kept(self) -> int:
        """The number of tokens that stay in the input."""
        return self.raw - self.noise

    @property
    def inputs(self) -> int:
        """L: kept tokens, sentinels, EOS."""
        return self.kept + self.spans + 1

    @property
    def targets(self) -> int:
        """T: corrupted tokens, sentinels, EOS."""
        return self.noise + self.spans + 1


def spans_of(raw: int, noise_density: float, mean_span_length: float) -> SpanLengths:
    """The lengths for a row of `raw` tokens, at least one of them corrupted and at least one kept."""
    noise = min(max(round(raw * noise_density), 1), raw - 1)
    spans = max(1, round(min(noise, raw - noise) / mean_span_length))
    return SpanLengths(raw, noise, spans)


def plan_lengths(input_length: int, noise_density: float, mean_span_length: float) -> SpanLengths:
    """The lengths for the longest row whose input has exactly `input_length` tokens.

    At density 0.5 the row is one token shorter if the target would be longer than the input, as in T5.
    """
    divided = partial(spans_of, noise_density=noise_density, mean_span_length=mean_span_length)
    candidates = range(2, int((input_length + 2) / (1 - noise_density)) + 3)
    place = bisect_right(candidates, input_length, key=lambda raw: divided(raw).inputs)
    best = divided(candidates[place - 1])
    if noise_density == 0.5 and best.targets > input_length == divided(best.raw - 1).inputs:
        best = divided(best.raw - 1)
    if best.inputs < input_length:
        # One more token would add both a kept token and a span: add only the token.
        best = SpanLengths(best.raw + 1, divided(best.raw + 1).noise, best.spans)
    return best


def draw_spans(
    generators: Iterable[np.random.Generator], rows: int, lengths: SpanLengths
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ends of kept and of corrupted spans; every division is equally likely.

    Each row uses two shuffles of its generator, as T5's masking does, so that passing the same generator for
    every row reproduces T5's noise.

    Returns:
        (B, S) and (B, S): the number of tokens in a row's first 1, 2, ... S kept spans, and likewise in its
        corrupted spans.
    """
    noise_cuts = _flags(rows, lengths.noise, lengths.spans)
    kept_cuts = _flags(rows, lengths.kept, lengths.spans)
    for noise_row, kept_row, generator in zip(noise_cuts, kept_cuts, generators, strict=False):
        generator.shuffle(noise_row)
        generator.shuffle(kept_row)
    return _ends(kept_cuts, lengths.spans), _ends(noise_cuts, lengths.spans)


def noise_mask(kept_ends: NDArray[np.int64], noise_ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(B, N), True where a token is corrupted."""
    rows, spans = kept_ends.shape
    # +1 where a corrupted span begins, -1 where the kept one after it does.
    steps = np.zeros((rows, kept_ends[0, -1] + noise_ends[0, -1]), dtype=np.int8)
    begins = kept_ends.copy()
    begins[:, 1:] += noise_ends[:, :-1]
    np.put_along_axis(steps, begins, 1, axis=1)
    np.put_along_axis(steps, (kept_ends + noise_ends)[:, : spans - 1], -1, axis=1)
    return np.cumsum(steps, axis=1, dtype=np.int8).view(np.bool_)


def corrupt(
    raw: NDArray[np.uint8], kept_ends: NDArray[np.int64], noise_ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs (B, L) and targets (B, T) of raw bytes (B, N), in which `END_OF_DOCUMENT` becomes EOS."""
    noise = noise_mask(kept_ends, noise_ends)
    before = np.zeros_like(noise_ends)
    before[:, 1:] = noise_ends[:, :-1]
    return _with_sentinels(raw[~noise], kept_ends), _with_sentinels(raw[noise], before)


def _with_sentinels(tokens: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of `tokens`, all of one length, with sentinel k after their first places[:, k] tokens, and EOS."""
    rows, spans = places.shape
    numbers = np.arange(spans)
    ids = np.zeros((rows, len(tokens) // rows + spans + 1), dtype=np.int64)
    np.put_along_axis(ids, places + numbers, FIRST_SENTINEL - numbers[None], axis=1)
    ids[:, -1] = EOS
    ids[ids == 0] = IDS_OF_BYTES[tokens]
    return ids


def _flags(rows: int, tokens: int, spans: int) -> NDArray[np.int64]:
    """(B, tokens - 1), spans - 1 ones, then zeros; after a shuffle, a one means that a span ends there."""
    # In 64 bits, because numpy shuffles them twice as fast as single bytes.
    return np.tile((np.arange(tokens - 1) < spans - 1).astype(np.int64), (rows, 1))


def _ends(cuts: NDArray[np.int64], spans: int) -> NDArray[np.int64]:
    rows, last = cuts.shape
    ends = np.full((rows, spans), last + 1)
    ends[:, :-1] = np.nonzero(cuts)[1].reshape(rows, spans - 1) + 1
    return ends
