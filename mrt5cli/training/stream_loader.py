"""The data loader that passes a stream's batches to the trainer."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from mrt5cli import stopping
from mrt5cli.errors import RunFailed, UserError
from mrt5cli.tasks.base import Batch, BatchStream

END_SECONDS = 0.2
"""How long to wait for a worker whose connection broke, until its exit code is known."""


class _Handed(IterableDataset[Batch | UserError]):
    """A stream that yields a `UserError` as its last batch instead of raising it.

    A loader would turn an error raised in a worker into text, traceback included.
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
    """Raises the errors that `_Handed` yields, and explains the death of a worker."""

    def __iter__(self) -> Any:
        with stopping.kept_from_children(), _ends_heeded_between_batches():
            batches = super().__iter__()
        while True:
            try:
                batch = next(batches, None)
            except (RuntimeError, OSError, EOFError) as error:  # a worker may die while it sends a batch
                workers = getattr(batches, "_workers", ())
                for worker in workers:
                    worker.join(END_SECONDS)
                ended = [worker.exitcode for worker in workers if worker.exitcode is not None]
                if not ended:
                    raise
                raise RunFailed(
                    f"a process that prepares batches {stopping.how_it_ended(ended[0])}",
                    "resume with --resume, with more memory or a lower training.data_workers",
                ) from error
            if batch is None:
                return
            if isinstance(batch, UserError):
                raise batch
            yield batch


@contextmanager
def _ends_heeded_between_batches() -> Iterator[None]:
    """Keep torch from raising in the middle of a step or a checkpoint when a worker dies.

    torch raises from its SIGCHLD handler. Without the handler it notices within seconds, while waiting for
    the next batch, where the run can still be saved.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def stream_loader(stream: BatchStream, workers: int, *, pin: bool = False) -> DataLoader[Batch]:
    """A loader that yields a stream's batches unchanged.

    Do not pass it through accelerate, which would divide the batches among processes a second time.

    Args:
        workers: number of other processes that prepare batches.
        pin: put batches into pinned memory, for asynchronous copies to a GPU.
    """
    return _Loader(
        _Handed(stream) if workers else stream,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_work_for_the_trainer if workers else None,
        persistent_workers=workers > 0,
        # A separate generator: a loader draws a number when it starts, and resuming starts it once more.
        generator=torch.Generator().manual_seed(0),
    )


def _work_for_the_trainer(_: int) -> None:
    # Signals often reach all processes of a training, and the trainer needs its workers until it has saved.
    stopping.work_for_parent()
