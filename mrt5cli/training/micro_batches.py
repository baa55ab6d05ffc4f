"""Divides an optimizer step into micro-batches of rows with similar length, for `training.batch_tokens`.

A process reads all its rows of a step, sorts them by length, and divides them by a budget of byte tokens.
The step contains the same rows, and its loss is a mean over all of them, so up to rounding it equals the step
with `training.device_batch_size`. No state is kept between steps, so resuming needs nothing more.
"""

from __future__ import annotations

import torch

from mrt5cli.batching import divided
from mrt5cli.byte_tokens import IGNORED_LABEL
from mrt5cli.tasks.base import Batch, batches_of


def micro_batches(batch: Batch, budget: int) -> list[Batch]:
    """Divide a batch into micro-batches, longest rows first, each padded to its own longest row.

    Args:
        batch: input_ids and attention_mask (B, L), labels (B, T), and other tensors with B rows.
        budget: maximum byte tokens of a micro-batch, see `batching.divided`.
    """
    sources = batch["attention_mask"].sum(dim=1)
    targets = batch["labels"].ne(IGNORED_LABEL).sum(dim=1)
    # Rows with equal sources are sorted by target length; equal rows keep their order.
    longest_target = int(targets.max())
    order = torch.argsort(sources * (longest_target + 1) + targets, descending=True, stable=True)
    divisions = divided(sources[order].tolist(), targets[order].tolist(), budget)
    return [_taken(batch, order[rows]) for rows in divisions]


def in_equal_number(batches: list[Batch], number: int) -> list[Batch]:
    """Halve the micro-batches with the most rows until there are `number`, as many as in other processes."""
    batches = list(batches)
    while len(batches) < number:
        place = max(range(len(batches)), key=lambda each: len(batches[each]["labels"]))
        rows = torch.arange(len(batches[place]["labels"]))
        batches[place : place + 1] = [_taken(batches[place], half) for half in rows.tensor_split(2)]
    return batches


def _taken(batch: Batch, rows: torch.Tensor) -> Batch:
    [taken] = batches_of({name: tensor[rows] for name, tensor in batch.items()}, len(rows))
    return taken
