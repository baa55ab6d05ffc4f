"""How batches get from a stream to the trainer."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from mrt5cli.errors import UserError
from mrt5cli.tasks.base import Batch, BatchStream


class _Handed(IterableDataset[Batch | UserError]):
    """A stream whose errors that a user can understand come as the last batch.

    A loader would make text of them on their way from a worker, traceback included.
    """

    def __init__(self, stream: BatchStream) -> None:
        super().__init__()
        self.stream = stream

    def __iter__(self) -> Iterator[Batch | UserError]:
        try:
            yield from self.stream
        except UserError as error:
            yield error


class _Loader(DataLoader[Any]):
    """Raises the errors that `_Handed` hands on."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def stream_loader(stream: BatchStream, workers: int, *, pin: bool = False) -> DataLoader[Batch]:
    """A loader that hands on a stream's whole batches.

    It is not passed through accelerate, which would deal out batches to processes again.

    Args:
        workers: processes that prepare batches beside this one.
        pin: put batches into pinned memory, for copies to a GPU that do not wait.
    """
    return _Loader(
        _Handed(stream) if workers else stream,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_leave_interrupts_to_the_trainer if workers else None,
        persistent_workers=workers > 0,
        # Its own generator: a loader draws a number when it starts, and a resumed run starts it once more.
        generator=torch.Generator().manual_seed(0),
    )


def _leave_interrupts_to_the_trainer(_: int) -> None:
    # Ctrl-C reaches every process of the terminal; a worker that dies of it keeps the trainer from saving.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
