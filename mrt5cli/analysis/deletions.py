"""Which bytes a model deletes, or pools: per row, and counted by kind of byte.

Deleted means removed by hard deletion: `keep_mask` is False and the position is not padding. EOS counts as a
position. This rate is the deletion rate of evaluation (share of gates below the threshold) except
for gates exactly at the threshold, and for a row that would lose everything, which keeps its best byte.

Where bytes are pooled, `keep_mask` marks the first byte of each segment; the others count as deleted.
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
        ids: (n,) int64, EOS included.
        deleted: (n,) bool.
        gate: (n,) float32, `scale` (delete) to 0 (keep); None where bytes are pooled.
        spare: position that stays at a threshold that would leave nothing.
        deletable: (n,) bool, bytes the task's target does not need; None where the task cannot know.
        target: ids of the task's target, or None for free text.
        label: what to call the row, e.g. "piece 2".
        window: the most positions a pooled segment can have; None where there is no limit.
        sentinels: ids, from the last byte's down, that stand for a missing span.
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
        """Deleted positions of all positions."""
        return Ratio(float(self.deleted.sum()), len(self.ids))

    def deleted_at(self, threshold: float) -> NDArray[np.bool_]:
        """(n,) bool, what the gate values say is deleted at a threshold, rounded to float32 as they are."""
        assert self.gate is not None
        gone = self.gate <= np.float32(threshold)
        gone[self.spare] &= not gone.all()
        return gone

    @property
    def segments(self) -> list[tuple[int, int]] | None:
        """Start and length of each pooled segment; None where bytes are deleted.

        Together they are the row, but for a tail that the reference's formula drops (see `dropped`).
        """
        if self.gate is not None:
            return None
        bounds = [*np.flatnonzero(~self.deleted).tolist(), len(self.ids)]
        longest = self.window or len(self.ids)
        return [(start, min(stop - start, longest)) for start, stop in pairwise(bounds)]

    @property
    def dropped(self) -> int:
        """Positions at the end of the row that are in no segment."""
        return 0 if self.segments is None else len(self.ids) - sum(length for _, length in self.segments)

    @property
    def starts(self) -> NDArray[np.bool_]:
        """(n,) bool, where a pooled segment, or the dropped tail, starts."""
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
    """What the model deletes from each row of a batch; only the encoder is run.

    Args:
        model: an MrT5 that shortens its source, in eval mode.
        batch: input_ids (B, L) and attention_mask (B, L); labels (B, T) are the targets, if there are any.
        threshold: a gate value that replaces the configured threshold.
        task: that the batch is of.
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
    # Only per batch, as in the reference, a tail is left out of all windows.
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
    """What the model deletes from the first test examples of each subset of a task.

    Args:
        shares: how many examples of each subset.
        progress: called with the subset and the number of its examples done.

    Raises:
        UserError: a subset without examples.
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
    """What the model deletes from a text, one row a piece of at most `length` positions, EOS included.

    Args:
        progress: called with the number of pieces done.
    """
    import torch

    rows = []
    for number, piece in enumerate(islice(pieces(text, length), limit), 1):
        # One row at a time: nothing is padded, and memory does not grow with the text.
        ids = torch.from_numpy(piece)[None]
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        rows += [replace(row, label=f"piece {number}") for row in inspect_batch(model, batch, threshold)]
        if progress is not None:
            progress(number)
    return rows


def pieces(text: bytes, length: int) -> Iterator[NDArray[np.int64]]:
    """A text as rows of ids of at most `length`, EOS at the end of each; no UTF-8 character is split.

    Raises:
        ValueError: no room for a character and EOS.
    """
    if length < 5:
        raise ValueError(f"pieces of {length} positions cannot hold a character of 4 bytes and EOS")
    start = 0
    while start < len(text):
        stop = min(start + length - 1, len(text))
        if stop < len(text):  # back to the start of the character that would be cut, if these bytes are UTF-8
            stop -= next((back for back in range(4) if text[stop - back] & 0xC0 != 0x80), 0)
        yield encode(text[start:stop], add_eos=True)
        start = stop


def kind_table(rows: Iterable[InspectedRow]) -> dict[str, Ratio]:
    """Deleted bytes of all bytes, by kind; every position is in exactly one kind."""
    return _table(((row.kinds, row.deleted) for row in rows), KINDS)


def script_table(rows: Iterable[InspectedRow]) -> dict[str, Ratio]:
    """Deleted bytes of all bytes, by Unicode script; every position is in exactly one."""
    return _table(((row.scripts, row.deleted) for row in rows), SCRIPT_NAMES)


def _table(rows: Iterable[tuple[list[str], NDArray[np.bool_]]], order: Sequence[str]) -> dict[str, Ratio]:
    count: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    for names, deleted in rows:
        count.update(names)
        gone.update(compress(names, deleted))
    return {name: Ratio(gone[name], count[name]) for name in order if count[name]}


def kind_lines(table: Mapping[str, Ratio], name: str = "kind") -> list[Json]:
    """The kinds of a table that occur, as documents hold them."""
    return [
        {name: kind, "count": of.count, "deleted": int(of.total), "rate": of.value}
        for kind, of in table.items()
        if of.count
    ]


def total_rate(rows: Sequence[InspectedRow]) -> Ratio:
    """Deleted positions of all positions of all rows."""
    return sum((row.rate for row in rows), Ratio())


def agreement(rows: Iterable[InspectedRow]) -> tuple[float | None, float | None]:
    """Gate precision and recall: of deleted letters those that can go, of those that can go the deleted.

    What is pooled away is not lost, so it is neither right nor wrong; nor is what no task knows of.
    """
    precision, recall = Ratio(), Ratio()
    for row in rows:
        if row.deletable is not None and row.gate is not None:
            precision += gate_precision(row.deleted, row.deletable, row.ids)
            recall += gate_recall(row.deleted, row.deletable, row.ids)
    return precision.value, recall.value
