"""Span corruption: ByT5's pre-training task, made on the fly from text.

Documents are joined with EOS and cut into rows that do not overlap. Noise is drawn for each example from
the seed and the example's number alone, so that streams can begin anywhere, and held-out noise is the
same for every run.

Letters: B examples, N raw tokens of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mrt5cli.data.corpus import Chunks
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.data.mixtures import draw_sources, shares
from mrt5cli.data.sources import HubFiles, MemoryText, StreamedText, open_source
from mrt5cli.data.span_noise import MOST_SPANS, SpanLengths, corrupt, draw_spans, plan_lengths
from mrt5cli.data.streams import DocumentStream, LeftOut
from mrt5cli.errors import UserError
from mrt5cli.recipe import SpanCorruptionTask
from mrt5cli.tasks.base import HELD_OUT_SEED, Batch, BatchStream, SeekableStream, Task, make_batch, register
from mrt5cli.text import Tell, say_nothing, say_on_stderr

# What a number is drawn for, beside the seed: the draws of one must not repeat those of another.
NOISE_DRAW, DOCUMENTS_DRAW, PARTS_DRAW, FILES_DRAW = range(4)
# From running numbers (P,) to raw rows (P, N).
RowReader = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
# Batches whose ends a streamed source remembers: loaders, and steps of many batches, read ahead of what
# the training has used.
REMEMBERED_BATCHES = 1024
SKIPPED_AT_ONCE = 2**16
"""Examples that are drawn at a time where many are left to others."""


# --- examples -----------------------------------------------------------------------------------------------


class Noise:
    """The noise of examples: number i's comes from (seed, i) alone.

    A counter-based generator is set to each example's own counter, which is ten times faster than a new
    generator.
    """

    def __init__(self, seed: int) -> None:
        key = np.random.SeedSequence((seed, NOISE_DRAW)).generate_state(2, np.uint64)
        self._bits = np.random.Philox(key=key)
        self._generator = np.random.Generator(self._bits)
        self._fresh = self._bits.state

    def generators(self, indices: NDArray[np.int64]) -> Iterator[np.random.Generator]:
        """Generators of these examples; each is valid until the next is taken."""
        for index in indices.tolist():
            self._fresh["state"]["counter"] = np.array([0, index, 0, 0], dtype=np.uint64)
            self._bits.state = self._fresh
            yield self._generator

    def batch(self, raw: NDArray[np.uint8], indices: NDArray[np.int64], lengths: SpanLengths) -> Batch:
        """Examples of raw rows (B, N) that have these indices (B,)."""
        return make_batch(*corrupt(raw, *draw_spans(self.generators(indices), len(raw), lengths)))


class Part(NamedTuple):
    """One language of one source: what an example is drawn from, and what evaluation reports apart.

    Attributes:
        subset: its name in evaluations.
        weight: of its source, divided among the languages of that.
    """

    subset: str
    source: str
    language: str
    text: MemoryText | StreamedText
    weight: Fraction


class Examples:
    """Batches of examples by their indices (B,): each has a part drawn for it, and spans are corrupted.

    Args:
        readers: of each part; from the running numbers (P,) of its examples to their raw rows (P, N).
    """

    def __init__(
        self, parts: Sequence[Part], readers: Sequence[RowReader], lengths: SpanLengths, seed: int
    ) -> None:
        self._weights = [part.weight for part in parts]
        self._readers, self._lengths, self._seed, self._noise = readers, lengths, seed, Noise(seed)

    def __call__(self, indices: NDArray[np.int64]) -> Batch:
        return self.corrupted(self.rows(indices), indices)

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Raw rows (B, N)."""
        raw = np.empty((len(indices), self._lengths.raw), dtype=np.uint8)
        drawn, numbers = self.parts(indices)
        for part in np.unique(drawn):
            rows = np.flatnonzero(drawn == part)
            raw[rows] = self._readers[part](numbers[rows])
        return raw

    def parts(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(B,) the part of each example, and (B,) its running number there."""
        return draw_sources(self._weights, (self._seed, PARTS_DRAW), indices)

    def corrupted(self, raw: NDArray[np.uint8], indices: NDArray[np.int64]) -> Batch:
        """The batch that raw rows (B, N) make."""
        return self._noise.batch(raw, indices, self._lengths)


class StreamedExamples(BatchStream):
    """Training batches of text of which some is read in order, beside some in memory perhaps.

    Every rank and every loader worker reads all of the text, and makes the examples of its own batches: which
    these are, and what is in them, depends neither on ranks nor on workers. Reading is cheap beside making
    noise (see mrt5cli/training/README.md for how many ranks that holds).

    Any of them can resume any other's state, from where the text was at a batch just before. Notes on a Hub
    that is away, and counts of what is left out, come from the first worker of the first rank, on behalf of
    all.
    """

    may_fail = True

    def __init__(self, task: SpanCorruption, seed: int, batch_size: int, rank: int, world_size: int) -> None:
        super().__init__()
        self._task, self._seed = task, seed
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._streamed = [isinstance(part.text, StreamedText) for part in task.parts]
        # A row says where the text is after so many examples: that number, lines and files left out before,
        # and pass, file, row, bytes taken and `found` of every stream. The first row is the beginning, the
        # second that of a loaded state. Of batches that workers have handed over, rows are whole; those that
        # are still to come are at -1, so that nobody takes one that another worker is writing.
        self._marks = torch.zeros(2 + REMEMBERED_BATCHES, 3 + 5 * sum(self._streamed), dtype=torch.int64)
        self._marks[1:, 0] = -1
        self._marks.share_memory_()  # type: ignore[no-untyped-call]
        # Lines and files left out, counted by the first worker.
        self._left_out = torch.zeros(2, dtype=torch.int64)
        self._left_out.share_memory_()  # type: ignore[no-untyped-call]

    def batches(self, worker: int, workers: int) -> Iterator[Batch]:
        counts = self._left_out if worker == 0 else torch.zeros_like(self._left_out)
        streams, readers = self._open(counts, say_on_stderr if self._rank == worker == 0 else say_nothing)
        examples = Examples(self._task.parts, readers, self._task.lengths, self._seed)
        at = self._restore(streams, counts)
        for batch in itertools.count(self.start_batch + worker, workers):
            first = self._first_example(batch)
            for start in range(at, first, SKIPPED_AT_ONCE):
                self._skip(streams, examples, np.arange(start, min(first, start + SKIPPED_AT_ONCE)))
            at = first + self._batch_size
            indices = np.arange(first, at)
            raw = examples.rows(indices)
            states = [[*state["at"], state["found"]] for state in map(DocumentStream.state_dict, streams)]
            row = [at, *counts.tolist(), *itertools.chain(*states)]
            self._marks[2 + batch % REMEMBERED_BATCHES] = torch.tensor(row)
            yield examples.corrupted(raw, indices)

    def _first_example(self, batch: int) -> int:
        return (batch * self._world_size + self._rank) * self._batch_size

    def _open(self, counts: torch.Tensor, tell: Tell) -> tuple[list[DocumentStream], list[RowReader]]:
        """The streams at their beginnings, and the readers of all parts."""
        streams: list[DocumentStream] = []
        readers: list[RowReader] = []
        for number, part in enumerate(self._task.parts):
            if isinstance(part.text, MemoryText):
                readers.append(self._task.chunks(number, part.text, self._seed).read)
                continue
            key = self._seed, FILES_DRAW, number
            streams.append(part.text.train(part.language, key=key, counts=counts, tell=tell))
            readers.append(partial(_next_rows, streams[-1], self._task.lengths.raw))
        return streams, readers

    def _skip(
        self, streams: Sequence[DocumentStream], examples: Examples, indices: NDArray[np.int64]
    ) -> None:
        """Leave these examples to others."""
        counts = np.bincount(examples.parts(indices)[0], minlength=len(self._streamed))
        for stream, count in zip(streams, counts[self._streamed].tolist(), strict=True):
            stream.skip(count * self._task.lengths.raw)

    def _mark(self, batch: int) -> list[int]:
        """The last mark before a batch of this rank's."""
        numbers = self._marks[:, 0].clone()  # read once: workers write meanwhile
        before = numbers.where(numbers <= self._first_example(batch), -1)
        mark: list[int] = self._marks[before.argmax()].tolist()
        return mark

    def _restore(self, streams: Sequence[DocumentStream], counts: torch.Tensor) -> int:
        """Set the streams to the last mark before `start_batch`; returns how many examples are before it."""
        at, lines, files, *places = self._mark(self.start_batch)
        counts.copy_(torch.tensor([lines, files]))
        for number, stream in enumerate(streams):
            *place, found = places[5 * number : 5 * number + 5]
            stream.load_state_dict({"at": place, "found": bool(found)})
        return at

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Where to resume, with the mark of a batch just before."""
        state = super().state_dict(consumed)
        return {**state, "mark": self._mark(state["start_batch"])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        mark = state["mark"]
        # Without one, or with that of an earlier version, text is read again from the beginning.
        if mark is not None and len(mark) == self._marks.shape[1]:
            self._marks[1] = torch.tensor(mark)

    def remarks(self) -> list[str]:
        return LeftOut(self._left_out).sentences()


def _next_rows(stream: DocumentStream, size: int, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    return stream.take(len(numbers) * size).reshape(-1, size)


# --- task ---------------------------------------------------------------------------------------------------


@register("span_corruption")
class SpanCorruption(Task):
    """Spans of bytes are replaced by sentinels, and the target spells them out.

    Raises:
        UserError: the text cannot be had, or the spans outnumber the sentinels.
    """

    name = "span_corruption"

    def __init__(self, section: SpanCorruptionTask) -> None:
        self.shuffle = section.shuffle
        self.lengths = plan_lengths(section.input_length, section.noise_density, section.mean_span_length)
        if self.lengths.spans > MOST_SPANS:
            raise UserError(
                f"task.input_length {section.input_length} takes {self.lengths.spans} corrupted spans an "
                f"example, and there are {MOST_SPANS} sentinels",
                "lower task.input_length or task.noise_density, or raise task.mean_span_length",
            )
        self.sentinels = self.lengths.spans
        self.parts = _parts(section)
        self.texts = {part.source: part.text for part in self.parts}

    def subsets(self, split: str) -> list[str]:
        return [part.subset for part in self.parts]

    def chunks(self, number: int, text: MemoryText, seed: int) -> Chunks:
        """The training rows of a part by its number, whose text is in memory."""
        size, scattered = self.lengths.raw, self.shuffle == "examples"
        corpus = text.corpus(self.parts[number].language, "train", size)
        return Chunks(corpus, size, (seed, DOCUMENTS_DRAW, number), scattered)

    def train_stream(self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> BatchStream:
        readers: list[RowReader] = []
        for number, part in enumerate(self.parts):
            if isinstance(part.text, StreamedText):
                return StreamedExamples(self, seed, batch_size, rank, world_size)
            readers.append(self.chunks(number, part.text, seed).read)
        examples = Examples(self.parts, readers, self.lengths, seed)
        return SeekableStream(examples, batch_size=batch_size, rank=rank, world_size=world_size)

    def held_out(
        self, split: str, subset: str, *, batch_size: int, limit: int | None = None
    ) -> Iterator[Batch]:
        """Batches of one part; see `Task`. Example i has the same noise in every run."""
        size, noise, first = self.lengths.raw, Noise(HELD_OUT_SEED), 0
        part = next(part for part in self.parts if part.subset == subset)
        source = part.text.held_out(part.language, split, size)
        while limit is None or first < limit:
            wanted = batch_size if limit is None else min(batch_size, limit - first)
            taken = source.take(wanted * size)
            whole = len(taken) // size
            if first == whole == 0:
                raise UserError(
                    f"too little {split} text in {part.text.description} ({part.language}): "
                    f"{len(taken)} bytes, and one example takes {size}"
                )
            if whole:
                raw = taken[: whole * size].reshape(whole, size)
                yield noise.batch(raw, np.arange(first, first + whole), self.lengths)
            if whole < wanted:
                return
            first += wanted

    def is_remote(self, subset: str) -> bool:
        [text] = (part.text for part in self.parts if part.subset == subset)
        return isinstance(text, StreamedText) and isinstance(text.files, HubFiles)

    def shares(self) -> dict[str, float]:
        found = dict.fromkeys(self.texts, 0.0)
        if len(found) == 1:
            return {}
        for part, share in zip(self.parts, shares([part.weight for part in self.parts]), strict=True):
            found[part.source] += share
        return found

    def remarks(self) -> list[str]:
        return [self._of(name, line) for name, text in self.texts.items() for line in text.remarks()]

    def splits(self) -> list[str]:
        return [self._of(name, line) for name, text in self.texts.items() for line in text.splits]

    def _of(self, name: str, line: str) -> str:
        """A line on a source, in front of which its name stands where there are others."""
        return line if len(self.texts) == 1 else f"{name}: {line}"

    def commits(self) -> dict[str, str]:
        files = [text.files for text in self.texts.values() if isinstance(text, StreamedText)]
        return {one.dataset.name: one.dataset.commit for one in files if isinstance(one, HubFiles)}

    def describe(self) -> str:
        codes = list(dict.fromkeys(part.language for part in self.parts))
        first = LANGUAGES[codes[0]].name if codes[0] in LANGUAGES else codes[0]
        languages = first if len(codes) == 1 else f"{len(codes)} languages"
        lengths = f"{self.lengths.inputs} -> {self.lengths.targets} byte tokens"
        shares = self.shares()
        texts = [
            f"{100 * shares[name]:.3g} % {name}: {text.description}" if shares else text.description
            for name, text in self.texts.items()
        ]
        return f"span corruption, {', '.join(texts)}, {languages}, {lengths}"


def _parts(section: SpanCorruptionTask) -> list[Part]:
    """Every language of every source.

    With one source, evaluations call them by their languages; with several, by their sources, and by both
    where there are several languages too.
    """
    used = section.in_use()
    codes = {language for one in used for language in one.languages}
    parts = []
    for one in used:
        text = open_source(one.source, one.languages)
        for language in one.languages:
            both = one.name if len(codes) == 1 else f"{one.name}/{language}"
            weight = Fraction(str(one.weight)) / len(one.languages)
            parts.append(Part(language if len(used) == 1 else both, one.name, language, text, weight))
    return parts
