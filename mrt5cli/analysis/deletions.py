"""Which bytes a model deletes or pools, per row and by kind of byte.

A position is deleted if hard deletion removes it: `keep_mask` is False and the position is not padding. EOS
counts as a position. This rate equals the deletion rate of evaluation (share of gates below the threshold)
except for gates exactly at the threshold and for a row that would lose everything, which keeps its best byte.

For pooling models, `keep_mask` marks the first byte of each segment; the others count as deleted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, islice, pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mrt5cli.analysis.marked_text import Run, runs
from mrt5cli.byte_tokens import PAD, encode
from mrt5cli.data.characters import (
    KINDS,
    SCRIPT_NAMES,
    Character,
    byte_kinds,
    characters,
    script_name,
)
from mrt5cli.errors import UserError
from mrt5cli.metrics.counts import Ratio, gate_precision, gate_recall
from mrt5cli.metrics.results import Json
from mrt5cli.recipe.shorteners import of_config

if TYPE_CHECKING:
    from mrt5cli.models import MrT5ForConditionalGeneration
    from mrt5cli.tasks.base import Batch, Task


@dataclass(frozen=True)
class InspectedRow:
    """One input row without its padding.

    Attributes:
        ids: (n,) int64, including EOS.
        deleted: (n,) bool.
        gate: (n,) float32, from `scale` (delete) to 0 (keep); None for a pooling model.
        spare: index of the position that stays at a threshold that would delete everything.
        deletable: (n,) bool, bytes that the task's target does not need; None if the task cannot know.
        target: ids of the task's target; None for free text.
        label: name of the row, e.g. "piece 2".
        window: largest number of positions of a pooled segment; None without a limit.
        sentinels: number of ids, counted down from the last byte's, that mark a missing span.
    """

    ids: NDArray[np.int64]
    deleted: NDArray[np.bool_]
    gate: NDArray[np.float32] | None
    spare: int = 0
    deletable: NDArray[np.bool_] | None = None
    target: NDArray[np.int64] | None = None
    label: str = ""
    window: int | None = None
    sentinels: int = 0

    @property
    def rate(self) -> Ratio:
        """The ratio of deleted positions to all positions."""
        return Ratio(float(self.deleted.sum()), len(self.ids))

    def deleted_at(self, threshold: float) -> NDArray[np.bool_]:
        """(n,) bool, the positions deleted at a threshold, which is rounded to float32."""
        assert self.gate is not None
        gone = self.gate <= np.float32(threshold)
        gone[self.spare] &= not gone.all()
        return gone

    @property
    def segments(self) -> list[tuple[int, int]] | None:
        """Start and length of each pooled segment; None for a model that deletes.

        Together they cover the row, except for a tail that the authors' formula drops (see `dropped`).
        """
        if self.gate is not None:
            return None
        bounds = [*np.flatnonzero(~self.deleted).tolist(), len(self.ids)]
        longest = self.window or len(self.ids)
        return [(start, min(stop - start, longest)) for start, stop in pairwise(bounds)]

    @property
    def dropped(self) -> int:
        """Number of positions at the end of the row that belong to no segment."""
        return 0 if self.segments is None else len(self.ids) - sum(length for _, length in self.segments)

    @property
    def starts(self) -> NDArray[np.bool_]:
        """(n,) bool, the first positions of pooled segments and of the dropped tail."""
        starts = ~self.deleted
        if self.dropped:
            starts[-self.dropped] = True
        return starts

    @property
    def characters(self) -> list[Character]:
        """The row's ids as characters."""
        return characters(self.ids.tolist(), sentinels=self.sentinels)

    @property
    def kinds(self) -> list[str]:
        """(n,) the kind of each byte, of `KINDS`."""
        return [kind for character in self.characters for kind in byte_kinds(character)]

    @property
    def scripts(self) -> list[str]:
        """(n,) the script of each byte's character, of `SCRIPT_NAMES`."""
        return [name for one in self.characters for name in [script_name(one)] * len(one.ids)]

    @property
    def marked(self) -> list[Run]:
        """The row's text with deleted bytes, or pooled segments, marked."""
        pooled = self.gate is None
        flags = self.starts if pooled else self.deleted
        return runs(self.characters, flags.tolist(), pooled=pooled)


def inspect_batch(
    model: MrT5ForConditionalGeneration,
    batch: Batch,
    threshold: float | None = None,
    task: Task | None = None,
) -> list[InspectedRow]:
    """The bytes that the model deletes from each row of a batch; runs the encoder only.

    Args:
        model: an MrT5 with a shortener, in eval mode.
        batch: input_ids (B, L), attention_mask (B, L) and, if there are targets, labels (B, T).
        threshold: gate value that replaces the configured threshold.
        task: the batch's task.
    """
    import torch

    from mrt5cli.models.deletion import survivors

    device = next(model.parameters()).device
    with torch.inference_mode():
        encoded = model.encoder(
            input_ids=batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
            hard_delete=True,
            deletion_threshold=threshold,
        )
    keep, gate = encoded.keep_mask.cpu().numpy(), encoded.delete_gate_output
    spare = None
    if gate is not None:
        gate, real = gate.float().cpu(), batch["input_ids"].cpu() != PAD
        nothing = torch.zeros_like(real)
        spare = survivors(nothing, gate, real, model.config.row_without_survivors).numpy()
        gate = gate.numpy()
    ids = batch["input_ids"].cpu().numpy()
    labels = batch["labels"].cpu().numpy() if "labels" in batch else None
    deletable = None if task is None else task.deletable(ids, gate)
    # Only the authors' per-batch formula leaves a tail out of all windows.
    window = of_config(model.config).window
    return [
        InspectedRow(
            ids=ids[row][real],
            deleted=~keep[row][real],
            gate=None if gate is None else gate[row][real],
            spare=0 if spare is None else int(spare[row][real].argmax()),
            deletable=None if deletable is None else deletable[row][real],
            target=None if labels is None else labels[row][labels[row] > PAD],
            window=window,
            sentinels=0 if task is None else task.sentinels,
        )
        for row, real in enumerate(ids != PAD)
    ]


def inspect_task(
    model: MrT5ForConditionalGeneration,
    task: Task,
    shares: Mapping[str, int],
    *,
    batch_size: int,
    threshold: float | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, list[InspectedRow]]:
    """The bytes that the model deletes from the first test examples of each subset of a task.

    Args:
        shares: number of examples by subset.
        batch_size: examples per batch.
        threshold: gate value that replaces the configured threshold.
        progress: called with a subset and the number of its examples processed so far.

    Raises:
        UserError: a subset has no examples.
    """
    found: dict[str, list[InspectedRow]] = {}
    for subset, share in shares.items():
        found[subset] = rows = []
        for batch in task.held_out("test", subset, batch_size=min(share, batch_size), limit=share):
            rows += inspect_batch(model, batch, threshold, task)
            if progress is not None:
                progress(subset, len(rows))
        if not rows:
            raise UserError(f"there are no test examples for {subset!r}")
    return found


def inspect_text(
    model: MrT5ForConditionalGeneration,
    text: bytes,
    length: int,
    *,
    limit: int | None = None,
    threshold: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[InspectedRow]:
    """The bytes that the model deletes from a text, one row per piece of at most `length` positions with EOS.

    Args:
        limit: largest number of pieces.
        threshold: gate value that replaces the configured threshold.
        progress: called with the number of pieces processed so far.
    """
    import torch

    rows = []
    for number, piece in enumerate(islice(pieces(text, length), limit), 1):
        # One row at a time, so that nothing is padded and memory does not grow with the text.
        ids = torch.from_numpy(piece)[None]
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        rows += [replace(row, label=f"piece {number}") for row in inspect_batch(model, batch, threshold)]
        if progress is not None:
            progress(number)
    return rows


def pieces(text: bytes, length: int) -> Iterator[NDArray[np.int64]]:
    """Split a text into rows of at most `length` ids, each ending in EOS, without splitting UTF-8 characters.

    Raises:
        ValueError: `length` has no room for a character and EOS.
    """
    if length < 5:
        raise ValueError(f"pieces of {length} positions cannot hold a character of 4 bytes and EOS")
    start = 0
    while start < len(text):
        stop = min(start + length - 1, len(text))
        if stop < len(text):  # back up to the start of the character that would be split, if this is UTF-8
            stop -= next((back for back in range(4) if text[stop - back] & 0xC0 != 0x80), 0)
        yield encode(text[start:stop], add_eos=True)
        start = stop


def kind_table(rows: Iterable[InspectedRow]) -> dict[str, Ratio]:
    """The ratio of deleted bytes to all bytes, by kind; every position has exactly one kind."""
    return _table(((row.kinds, row.deleted) for row in rows), KINDS)


def script_table(rows: Iterable[InspectedRow]) -> dict[str, Ratio]:
    """The ratio of deleted bytes to all bytes, by Unicode script; every position has exactly one."""
    return _table(((row.scripts, row.deleted) for row in rows), SCRIPT_NAMES)


def _table(rows: Iterable[tuple[list[str], NDArray[np.bool_]]], order: Sequence[str]) -> dict[str, Ratio]:
    count: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    for names, deleted in rows:
        count.update(names)
        gone.update(compress(names, deleted))
    return {name: Ratio(gone[name], count[name]) for name in order if count[name]}


def kind_lines(table: Mapping[str, Ratio], name: str = "kind") -> list[Json]:
    """The kinds of a table that occur, as lines of a document."""
    return [
        {name: kind, "count": of.count, "deleted": int(of.total), "rate": of.value}
        for kind, of in table.items()
        if of.count
    ]


def total_rate(rows: Sequence[InspectedRow]) -> Ratio:
    """The ratio of deleted positions to all positions over all rows."""
    return sum((row.rate for row in rows), Ratio())


def agreement(rows: Iterable[InspectedRow]) -> tuple[float | None, float | None]:
    """Gate precision (share of deleted letters that can be deleted) and recall (the converse).

    Rows of pooling models, which lose nothing, and rows whose task does not know what can be deleted are
    skipped.
    """
    precision, recall = Ratio(), Ratio()
    for row in rows:
        if row.deletable is not None and row.gate is not None:
            precision += gate_precision(row.deleted, row.deletable, row.ids)
            recall += gate_recall(row.deleted, row.deletable, row.ids)
    return precision.value, recall.value
