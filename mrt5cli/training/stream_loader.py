"""How batches get from a stream to the trainer."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from mrt5cli import stopping
from mrt5cli.errors import RunFailed, UserError
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
    """Raises the errors that `_Handed` hands on, and says what became of a worker that was killed."""

    def __iter__(self) -> Any:
        with stopping.kept_from_children(), _ends_heeded_between_batches():
            batches = super().__iter__()
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError as error:
                codes = [worker.exitcode for worker in getattr(batches, "_workers", ())]
                ended = [code for code in codes if code is not None]
                if not ended:
                    raise
                raise RunFailed(
                    f"a process that prepares batches {stopping.how_it_ended(ended[0])}",
                    "--resume goes on: with more memory, or with a lower training.data_workers",
                ) from error
            if batch is None:
                return
            if isinstance(batch, UserError):
                raise batch
            yield batch


@contextmanager
def _ends_heeded_between_batches() -> Iterator[None]:
    """Keep torch from raising the end of a worker in the middle of a step, or of writing a checkpoint.

    It does so from a handler of SIGCHLD. Without, it finds the end when it waits for the next batch, within
    seconds; there the run can be saved as it stands.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


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
        worker_init_fn=_work_for_the_trainer if workers else None,
        persistent_workers=workers > 0,
        # Its own generator: a loader draws a number when it starts, and a resumed run starts it once more.
        generator=torch.Generator().manual_seed(0),
    )


def _work_for_the_trainer(_: int) -> None:
    # Who stops a training sends signals to all its processes; without workers the trainer could not save.
    stopping.work_for_parent()
