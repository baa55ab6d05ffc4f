"""A model on held-out data: quality, shortening and what the source is worth, always together.

Everything is counted over tokens, positions or examples and divided once, so results do not depend on the
batch size. Two exceptions: `new_length` is by nature a property of batches, and so is time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from mrt5cli.errors import UserError
from mrt5cli.evaluation.rows import Batch, Row, Tally, row_of, tally, total
from mrt5cli.evaluation.timing import Stopwatch
from mrt5cli.metrics.counts import EOS

Progress = Callable[[str, int], None]


def evaluate_model(
    model: Any,
    task: Any,
    *,
    split: str = "test",
    subsets: Sequence[str] | None = None,
    batch_size: int = 16,
    limit: int | None = None,
    hard_delete: bool = True,
    source_removed: bool = True,
    runtime: bool = False,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """One row a subset and, when there are several subsets, a total weighted by examples as in the paper.

    Args:
        model: from `mrt5cli.models`; put in eval mode meanwhile.
        task: a `tasks.Task`.
        split: "validation" or "test".
        subsets: by default all the task has.
        limit: examples a subset; None takes all.
        hard_delete: delete for real, as at inference; False gates softly, as in training.
        source_removed: also score the same targets without their source.
        runtime: also time forward passes, five a batch.
        device: where to compute; by default where the model is.
        progress: called with the subset and the number of its examples done.

    Raises:
        UserError: a subset without examples.
    """
    if device is not None:
        model.to(device)
    was_training = model.training
    model.eval()
    where = next(model.parameters()).device
    rows = []
    try:
        # Random deletion over a batch draws from torch's generator: fix it, and leave the caller's alone.
        with torch.random.fork_rng([where] if where.type == "cuda" else []), torch.inference_mode():
            torch.manual_seed(0)
            for subset in task.subsets(split) if subsets is None else subsets:
                batches = task.held_out(split, subset, batch_size=batch_size, limit=limit)
                watch = Stopwatch(where) if runtime else None
                row = _evaluate_subset(
                    model, task, subset, batches, hard_delete, source_removed, watch, progress
                )
                if not row.examples:
                    raise UserError(f"there are no {split} examples for {subset!r}")
                rows.append(row)
    finally:
        model.train(was_training)
    return [*rows, total(rows)] if len(rows) > 1 else rows


def _evaluate_subset(
    model: Any,
    task: Any,
    subset: str,
    batches: Iterable[Batch],
    hard_delete: bool,
    source_removed: bool,
    watch: Stopwatch | None,
    progress: Progress | None,
) -> Row:
    device = next(model.parameters()).device
    full, removed = Tally(), Tally()
    for batch in batches:
        deletable = task.deletable(batch["input_ids"])
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        forward = _forward(model, batch, hard_delete)
        full += tally(forward(), batch, model.config.deletion_threshold, deletable)
        if watch is not None:
            watch.time(forward, len(batch["labels"]))
        if source_removed:
            bare = without_source(batch)
            removed += tally(_forward(model, bare, hard_delete)(), bare, model.config.deletion_threshold)
        if progress is not None:
            progress(subset, full.input_length.count)
    row = row_of(subset, full)
    if source_removed:
        row = replace(
            row,
            source_removed_loss=removed.nats.value,
            source_removed_token_accuracy=removed.tokens.value,
            source_removed_sequence_accuracy=removed.sequences.value,
        )
    if watch is not None:
        row = replace(
            row, ms_per_example=watch.ms_per_example, median_ms_per_example=watch.median_ms_per_example
        )
    return row


def _forward(model: Any, batch: Batch, hard_delete: bool) -> Callable[[], Any]:
    return lambda: model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
        hard_delete=hard_delete,
    )


def without_source(batch: Batch) -> Batch:
    """The same targets with nothing to read them from: every source becomes one EOS."""
    ids = batch["input_ids"].new_full((len(batch["input_ids"]), 1), EOS)
    return {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
