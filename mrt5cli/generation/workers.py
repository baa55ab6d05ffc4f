"""One model on several devices: a process each, to which windows of texts go in turn.

Every window is written as one device alone would write it: outputs do not depend on how many there are.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from mrt5cli.errors import RunFailed, UserError
from mrt5cli.generation.calibration import Calibration
from mrt5cli.generation.writing import Pen, Progress, Text, Written
from mrt5cli.stopping import how_it_ended, kept_from_children, work_for_parent
from mrt5cli.text import first_line


class Workers:
    """Does what a `Pen` does, on several devices; a context manager.

    Args:
        make: builds the pen on a device, in a process of its own, where it must be importable.
        devices: by their names; one may be named several times.
    """

    def __init__(self, make: Callable[[str], Pen], devices: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._devices, self._ends, self._processes = devices, list[Connection](), list[Any]()
        for device in devices:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, make, device, len(devices)), daemon=True)
            with kept_from_children(spawned=True):
                process.start()
            theirs.close()  # so that an end of the process is one of the pipe
            self._ends.append(ours)  # type: ignore[arg-type, unused-ignore]  # Windows has a class of its own
            self._processes.append(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for end, process in zip(self._ends, self._processes, strict=True):
            end.close()
            process.kill()  # it may still import, deaf to everything else
            process.join()

    def threshold_for(self, rate: float, texts: Sequence[Text]) -> Calibration:
        """As a pen's; the first device finds it."""
        self._send(0, "threshold_for", rate, texts)
        found: Calibration = self._receive(0)
        return found

    def move_threshold(self, threshold: float) -> None:
        """As a pen's, on every device."""
        for worker in range(len(self._ends)):
            self._send(worker, "move_threshold", threshold)
            self._receive(worker)

    def write_all(
        self, windows: Iterable[Sequence[Text]], progress: Progress = lambda done: None
    ) -> Iterator[list[list[Written]]]:
        """As a pen's; `progress` is called once a window."""
        waiting: deque[tuple[int, int]] = deque()
        done = 0

        def next_in_order() -> list[list[Written]]:
            nonlocal done
            worker, texts = waiting.popleft()
            written: list[list[Written]] = self._receive(worker)
            done += texts
            progress(done)
            return written

        failure = None
        numbered = enumerate(windows)
        while True:
            # A device has one window at a time: with two on their way, each side could wait for the other.
            if len(waiting) == len(self._ends):
                yield next_in_order()
            try:
                number, window = next(numbered)
            except StopIteration:
                break
            except UserError as error:  # what came before it is written all the same
                failure = error
                break
            worker = number % len(self._ends)
            self._send(worker, "write", window)
            waiting.append((worker, len(window)))
        while waiting:
            yield next_in_order()
        if failure is not None:
            raise failure

    def _send(self, worker: int, what: str, *arguments: object) -> None:
        try:
            self._ends[worker].send((what, arguments))
        except OSError:
            self._receive(worker)  # says why

    def _receive(self, worker: int) -> Any:
        try:
            found = self._ends[worker].recv()
        except (EOFError, OSError) as error:
            self._processes[worker].join(5)
            how = how_it_ended(self._processes[worker].exitcode)
            raise RunFailed(
                f"the process on {self._devices[worker]} {how}", "memory may have been too small for it"
            ) from error
        if isinstance(found, Exception):
            raise found
        return found


def _work(end: Connection, make: Callable[[str], Pen], device: str, processes: int) -> None:
    """What a process does: build a pen, and use it as it is told until nobody tells any more."""
    import torch

    from mrt5cli.runtime import usable_cpus

    work_for_parent()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, usable_cpus() // processes))
    pen = None
    with suppress(EOFError, OSError):
        while True:
            what, arguments = end.recv()
            try:
                pen = pen or make(device)
                found = getattr(pen, what)(*arguments)
            except Exception as error:
                found = as_ours(error)
            end.send(found)


def as_ours(error: Exception) -> Exception:
    """What another process went wrong by, as one of our errors, which this one can take in."""
    return error if type(error).__module__.startswith("mrt5cli.") else RunFailed(first_line(error))
