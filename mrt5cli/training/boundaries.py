"""Supervises a boundary predictor: adds labels of segment ends to every training batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from mrt5cli.byte_tokens import PAD
from mrt5cli.data.boundary_labels import LABELLERS, BoundaryLabeller, load
from mrt5cli.errors import UserError
from mrt5cli.tasks.base import Batch, BatchStream, Task
from mrt5cli.text import Tell, duration

if TYPE_CHECKING:
    from mrt5cli.recipe.shorteners import BoundaryPredictor

FITTING_SEED = 20230704
"""Seed of the pass over the training examples that the labels are fitted to. It does not depend on the run's
seed, because segment ends are a property of the data."""
READ_AT_ONCE = 50


class LabelledStream(BatchStream):
    """Adds `segment_ends` to a stream's batches: (B, L) bool, True at the last byte of each segment."""

    def __init__(self, stream: BatchStream, labeller: BoundaryLabeller) -> None:
        super().__init__()
        self.stream, self.labeller = stream, labeller
        self.may_fail = stream.may_fail

    def batches(self, worker: int, workers: int) -> Iterator[Batch]:
        for batch in self.stream.batches(worker, workers):
            labels = self.labeller.label(batch["input_ids"].numpy())
            yield {**batch, "segment_ends": torch.from_numpy(labels)}

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        return self.stream.state_dict(self._consumed(consumed))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state)
        self.start_batch = self.stream.start_batch

    def remarks(self) -> list[str]:
        return self.stream.remarks()


def with_labels(
    stream: BatchStream, task: Task, shortener: BoundaryPredictor, path: Path, may_fit: bool, say: Tell
) -> BatchStream:
    """Add the labels that a shortener learns from to a stream.

    The leading process fits the labeler to training examples once per run and saves it in the run directory,
    from where all processes and every resumed session read it.

    Args:
        path: file of the fitted labeler.
        may_fit: fit the labeler if the file is missing: this process leads, and the run starts at step 0.

    Raises:
        UserError: a resumed run has lost the file.
    """
    if may_fit and not path.is_file():
        _fit(task, shortener, say).save(path)
    if dist.is_initialized():
        dist.barrier()
    return LabelledStream(stream, load(path))


def _fit(task: Task, shortener: BoundaryPredictor, say: Tell) -> BoundaryLabeller:
    kind = shortener.labels
    assert kind is not None, "only supervised predictors need labels"
    say(f"fitting {kind} boundaries to {shortener.label_examples:,} training examples ...")
    started = time.monotonic()
    rows = source_rows(task, shortener.label_examples)
    try:
        labeller = LABELLERS[kind].fit(rows, vocabulary=shortener.vocabulary)
    except ValueError as error:
        raise UserError(f"cannot fit {kind} boundaries: {error}", "see model.shortener") from error
    some = rows[:READ_AT_ONCE]
    segment = (some != PAD).sum() / labeller.label(some).sum()
    say(f"fitted in {duration(time.monotonic() - started)}; a segment has {segment:.1f} bytes on average")
    return labeller


def source_rows(task: Task, number: int) -> NDArray[np.int64]:
    """Source ids of training examples, (number, L), padded with 0, read in a separate pass."""
    stream = iter(task.train_stream(batch_size=min(number, READ_AT_ONCE), seed=FITTING_SEED))
    rows: list[torch.Tensor] = []
    while len(rows) < number:
        rows += next(stream)["input_ids"]
    found: NDArray[np.int64] = pad_sequence(rows, batch_first=True, padding_value=PAD)[:number].numpy()
    return found
