"""The micro-batches of an optimizer step where `training.batch_tokens` divides it: rows of like length.

A process has the rows of its whole step at once, sorts them by length, and divides them by a budget of byte
tokens. Which rows a step has does not change, and its loss is a mean over all of them, so it is the step of
`training.device_batch_size`, to rounding; nothing is kept from one step to the next, so runs resume as ever.
"""

from __future__ import annotations

import torch

from mrt5cli.batching import divided
from mrt5cli.byte_tokens import IGNORED_LABEL
from mrt5cli.tasks.base import Batch, batches_of


def micro_batches(batch: Batch, budget: int) -> list[Batch]:
    """The rows of a batch in micro-batches, the longest rows first, each as wide as its longest.

    Args:
        batch: input_ids and attention_mask (B, L), labels (B, T), and what else has a row for each.
        budget: byte tokens of a micro-batch, see `batching.divided`.
    """
    sources = batch["attention_mask"].sum(dim=1)
    targets = batch["labels"].ne(IGNORED_LABEL).sum(dim=1)
    # Rows of one source length by their targets; equal rows keep their order.
    longest_target = int(targets.max())
    order = torch.argsort(sources * (longest_target + 1) + targets, descending=True, stable=True)
    divisions = divided(sources[order].tolist(), targets[order].tolist(), budget)
    return [_taken(batch, order[rows]) for rows in divisions]


def in_equal_number(batches: list[Batch], number: int) -> list[Batch]:
    """As many micro-batches as the process with the most has: those with the most rows are halved."""
    batches = list(batches)
    while len(batches) < number:
        place = max(range(len(batches)), key=lambda each: len(batches[each]["labels"]))
        rows = torch.arange(len(batches[place]["labels"]))
        batches[place : place + 1] = [_taken(batches[place], half) for half in rows.tensor_split(2)]
    return batches


def _taken(batch: Batch, rows: torch.Tensor) -> Batch:
    [taken] = batches_of({name: tensor[rows] for name, tensor in batch.items()}, len(rows))
    return taken
