"""Span corruption: ByT5's pre-training task, made on the fly from text.

Documents are joined with EOS and cut into rows that do not overlap. The noise of an example depends only on
the seed and the example's number, so that streams can begin anywhere and held-out noise is the same in every
run.

Letters: B examples of a batch, N raw tokens of each, P examples of a part.
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

# Added to the seed, so that random numbers for different purposes are independent.
NOISE_DRAW, DOCUMENTS_DRAW, PARTS_DRAW, FILES_DRAW = range(4)
# From running numbers (P,) to raw rows (P, N).
RowReader = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
# Batches for which a streamed source stores its position: loaders, and steps of many batches, read ahead of
# training.
REMEMBERED_BATCHES = 1024
SKIPPED_AT_ONCE = 2**16
"""Examples that are assigned to parts at a time while many are skipped."""


# --- examples -----------------------------------------------------------------------------------------------


class Noise:
    """The noise of examples: that of example i is a function of (seed, i).

    A counter-based generator is set to each example's counter, which is ten times faster than creating a new
    generator.
    """

    def __init__(self, seed: int) -> None:
        key = np.random.SeedSequence((seed, NOISE_DRAW)).generate_state(2, np.uint64)
        self._bits = np.random.Philox(key=key)
        self._generator = np.random.Generator(self._bits)
        self._fresh = self._bits.state

    def generators(self, indices: NDArray[np.int64]) -> Iterator[np.random.Generator]:
        """Generators for these examples; each is valid until the next one is requested."""
        for index in indices.tolist():
            self._fresh["state"]["counter"] = np.array([0, index, 0, 0], dtype=np.uint64)
            self._bits.state = self._fresh
            yield self._generator

    def batch(self, raw: NDArray[np.uint8], indices: NDArray[np.int64], lengths: SpanLengths) -> Batch:
        """The batch of raw rows (B, N) with these indices (B,)."""
        return make_batch(*corrupt(raw, *draw_spans(self.generators(indices), len(raw), lengths)))


class Part(NamedTuple):
    """One language of one source, which evaluation reports separately.

    Attributes:
        subset: its name in evaluations.
        weight: the weight of its source, divided equally among the source's languages.
    """

    subset: str
    source: str
    language: str
    text: MemoryText | StreamedText
    weight: Fraction


class Examples:
    """Batches of examples by their indices (B,): each is assigned a part, read, and corrupted.

    Args:
        readers: for each part, from the running numbers (P,) of its examples to their raw rows (P, N).
    """

    def __init__(
        self, parts: Sequence[Part], readers: Sequence[RowReader], lengths: SpanLengths, seed: int
    ) -> None:
        self._weights = [part.weight for part in parts]
        self._readers, self._lengths, self._seed, self._noise = readers, lengths, seed, Noise(seed)

    def __call__(self, indices: NDArray[np.int64]) -> Batch:
        return self.corrupted(self.rows(indices), indices)

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Raw rows (B, N) of examples (B,)."""
        raw = np.empty((len(indices), self._lengths.raw), dtype=np.uint8)
        drawn, numbers = self.parts(indices)
        for part in np.unique(drawn):
            rows = np.flatnonzero(drawn == part)
            raw[rows] = self._readers[part](numbers[rows])
        return raw

    def parts(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(B,) the part of each example, and (B,) its running number in the part."""
        return draw_sources(self._weights, (self._seed, PARTS_DRAW), indices)

    def corrupted(self, raw: NDArray[np.uint8], indices: NDArray[np.int64]) -> Batch:
        """The batch of raw rows (B, N) after corruption."""
        return self._noise.batch(raw, indices, self._lengths)


class StreamedExamples(BatchStream):
    """Training batches from text that is read in order, possibly mixed with text in memory.

    Every rank and every loader worker reads all of the text, and makes the examples of its own batches. The
    examples do not depend on the numbers of ranks and workers. Reading is cheap compared with making noise
    (mrt5cli/training/README.md gives the number of ranks up to which this is true).

    Any of them can resume from the state of any other, at the position of a batch just before. Notes on an
    unreachable Hub, and counts of what is left out, come from the first worker of the first rank.
    """

    may_fail = True

    def __init__(self, task: SpanCorruption, seed: int, batch_size: int, rank: int, world_size: int) -> None:
        super().__init__()
        self._task, self._seed = task, seed
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._streamed = [isinstance(part.text, StreamedText) for part in task.parts]
        # A row is a position in the text: the number of examples before it, lines and files left out before
        # it, and pass, file, row, bytes taken and `found` of every stream. The first row is the beginning,
        # the second that of a loaded state. The rows of batches that workers have handed over are complete;
        # the others have number -1, so that no process reads one while a worker writes it.
        self._marks = torch.zeros(2 + REMEMBERED_BATCHES, 3 + 5 * sum(self._streamed), dtype=torch.int64)
        self._marks[1:, 0] = -1
        self._marks.share_memory_()  # type: ignore[no-untyped-call]
        # Lines and files that are left out, counted by the first worker.
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
        """The streams, at the beginning, and the readers of all parts."""
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
        """Skip the text of these examples, which other ranks and workers make."""
        counts = np.bincount(examples.parts(indices)[0], minlength=len(self._streamed))
        for stream, count in zip(streams, counts[self._streamed].tolist(), strict=True):
            stream.skip(count * self._task.lengths.raw)

    def _mark(self, batch: int) -> list[int]:
        """The last recorded position before a batch of this rank."""
        numbers = self._marks[:, 0].clone()  # read once, because workers keep writing
        before = numbers.where(numbers <= self._first_example(batch), -1)
        mark: list[int] = self._marks[before.argmax()].tolist()
        return mark

    def _restore(self, streams: Sequence[DocumentStream], counts: torch.Tensor) -> int:
        """Set the streams to the last position before `start_batch`; returns how many examples precede it."""
        at, lines, files, *places = self._mark(self.start_batch)
        counts.copy_(torch.tensor([lines, files]))
        for number, stream in enumerate(streams):
            *place, found = places[5 * number : 5 * number + 5]
            stream.load_state_dict({"at": place, "found": bool(found)})
        return at

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """The batch from which to resume, and the position of the text just before it."""
        state = super().state_dict(consumed)
        return {**state, "mark": self._mark(state["start_batch"])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        mark = state["mark"]
        # Without a position, or with one of an earlier version, the text is read again from the beginning.
        if mark is not None and len(mark) == self._marks.shape[1]:
            self._marks[1] = torch.tensor(mark)

    def remarks(self) -> list[str]:
        return LeftOut(self._left_out).sentences()


def _next_rows(stream: DocumentStream, size: int, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    return stream.take(len(numbers) * size).reshape(-1, size)


# --- task ---------------------------------------------------------------------------------------------------


@register("span_corruption")
class SpanCorruption(Task):
    """Span corruption: sentinels replace spans of bytes, and the target spells the spans out.

    Raises:
        UserError: the text cannot be read, or there are more spans than sentinels.
    """

    name = "span_corruption"

    def __init__(self, section: SpanCorruptionTask) -> None:
        self.shuffle = section.shuffle
        self.lengths = plan_lengths(section.input_length, section.noise_density, section.mean_span_length)
        if self.lengths.spans > MOST_SPANS:
            raise UserError(
                f"task.input_length {section.input_length} needs {self.lengths.spans} corrupted spans per "
                f"example, but there are only {MOST_SPANS} sentinels",
                "lower task.input_length or task.noise_density, or raise task.mean_span_length",
            )
        self.sentinels = self.lengths.spans
        self.parts = _parts(section)
        self.texts = {part.source: part.text for part in self.parts}

    def subsets(self, split: str) -> list[str]:
        return [part.subset for part in self.parts]

    def chunks(self, number: int, text: MemoryText, seed: int) -> Chunks:
        """The training rows of a part whose text is in memory, by the part's number."""
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
                    f"{len(taken)} bytes, and one example needs {size}",
                    "add text, or lower task.input_length",
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
        """A line about a source, prefixed with its name if there are several."""
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

    Their names in evaluations are languages if there is one source, sources if there is one language, and
    otherwise both.
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
