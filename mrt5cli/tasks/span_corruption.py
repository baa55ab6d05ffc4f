"""Span corruption: ByT5's pre-training task, made on the fly from text.

Documents are joined with EOS and cut into rows that do not overlap. Noise is drawn for each example from
the seed and the example's number alone, so that streams can begin anywhere, and held-out noise is the
same for every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from mrt5cli.data.characters import shown
from mrt5cli.data.corpus import Order
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.data.sources import HubFiles, MemoryText, StreamedText, open_source
from mrt5cli.data.span_noise import MOST_SPANS, plan_lengths
from mrt5cli.errors import UserError
from mrt5cli.recipe import SpanCorruptionTask
from mrt5cli.tasks.base import Batch, BatchStream, SeekableStream, Task, register, subset_of
from mrt5cli.tasks.span_streams import MemoryExamples, Noise, StreamedExamples

HELD_OUT_SEED = 20241028


@register("span_corruption")
class SpanCorruption(Task):
    """Spans of bytes are replaced by sentinels, and the target spells them out.

    Args:
        section: of the recipe.

    Raises:
        UserError: the text cannot be had, or the spans outnumber the sentinels.
    """

    name = "span_corruption"
    version = 1

    def __init__(self, section: SpanCorruptionTask) -> None:
        self.languages = list(section.languages)
        self.shuffle = section.shuffle
        self.lengths = plan_lengths(section.input_length, section.noise_density, section.mean_span_length)
        if self.lengths.spans > MOST_SPANS:
            raise UserError(
                f"task.input_length {section.input_length} takes {self.lengths.spans} corrupted spans an "
                f"example, and there are {MOST_SPANS} sentinels",
                "lower task.input_length or task.noise_density, or raise task.mean_span_length",
            )
        self.sentinels = self.lengths.spans
        self.text = open_source(section.source, self.languages)

    def subsets(self, split: str) -> list[str]:
        """The recipe's languages."""
        return list(self.languages)

    def train_stream(self, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> BatchStream:
        """Training batches; see `Task`. With text in memory any batch can be the first."""
        if isinstance(self.text, MemoryText):
            examples = MemoryExamples(
                self.text, self.languages, self.lengths, seed, scattered=self.shuffle == "examples"
            )
            return SeekableStream(examples, batch_size=batch_size, rank=rank, world_size=world_size)
        return StreamedExamples(
            self.text,
            self.languages,
            lengths=self.lengths,
            seed=seed,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
        )

    def held_out(
        self, split: str, subset: str, *, batch_size: int, limit: int | None = None
    ) -> Iterator[Batch]:
        """Batches of one language; see `Task`. Example i has the same noise in every run."""
        read = self._held_out_rows(split, subset_of(self, split, subset))
        noise = Noise(HELD_OUT_SEED)
        first = 0
        while limit is None or first < limit:
            wanted = batch_size if limit is None else min(batch_size, limit - first)
            raw = read(first, wanted)
            if len(raw):
                yield noise.batch(raw, np.arange(first, first + len(raw)), self.lengths)
            if len(raw) < wanted:
                return
            first += wanted

    def _held_out_rows(self, split: str, language: str) -> Callable[[int, int], NDArray[np.uint8]]:
        """A function from (first, count) to rows (<= count, N); calls must go on where the last ended."""
        size = self.lengths.raw
        if isinstance(self.text, MemoryText):
            corpus = self.text.corpus(language, split, at_least=size)
            order, available = Order(corpus), len(corpus.buffer) // size

            def read(first: int, count: int) -> NDArray[np.uint8]:
                last = min(first + count, available)
                if last <= first:
                    return np.empty((0, size), dtype=np.uint8)
                return order.read(first * size, last * size).reshape(-1, size)

            return read
        stream = self.text.held_out(language, split, size)

        def read_on(first: int, count: int) -> NDArray[np.uint8]:
            taken = stream.take(count * size)
            whole = len(taken) // size
            if first == whole == 0:
                raise UserError(
                    f"too little {split} text in {self.text.description} ({language}): "
                    f"{len(taken)} bytes, and one example takes {size}"
                )
            return taken[: whole * size].reshape(whole, size)

        return read_on

    def remarks(self) -> list[str]:
        """What is left out of the text and why, and what is suspicious in it."""
        return self.text.remarks()

    def splits(self) -> list[str]:
        """See `Task`."""
        return self.text.splits

    def commits(self) -> dict[str, str]:
        """See `Task`."""
        files = self.text.files if isinstance(self.text, StreamedText) else None
        return {files.dataset.name: files.dataset.commit} if isinstance(files, HubFiles) else {}

    def describe(self) -> str:
        """One line: task, text, languages, lengths."""
        first = LANGUAGES[self.languages[0]].name if self.languages[0] in LANGUAGES else self.languages[0]
        languages = first if len(self.languages) == 1 else f"{len(self.languages)} languages"
        lengths = f"{self.lengths.inputs} -> {self.lengths.targets} byte tokens"
        return f"span corruption, {self.text.description}, {languages}, {lengths}"

    def example(self, split: str) -> tuple[str, str]:
        """Source and target of the first example of the first language, sentinels named ⟨S0⟩, ⟨S1⟩, ..."""
        if split == "train":
            batch = next(iter(self.train_stream(batch_size=1, seed=HELD_OUT_SEED)))
        else:
            batch = next(self.held_out(split, self.languages[0], batch_size=1, limit=1))
        source, target = (batch[name][0].tolist() for name in ("input_ids", "labels"))
        return shown(source, sentinels=self.sentinels), shown(target, sentinels=self.sentinels)
