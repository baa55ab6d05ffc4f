"""Run one model on several devices: one process each, to which windows of texts go in turn.

Outputs do not depend on the number of devices: every window is processed as by one device.
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
    """A `Pen` on several devices; a context manager.

    Args:
        make: builds the pen for a device name, in a spawned process, which must be able to import it.
        devices: names of the devices; a name may be repeated.
    """

    def __init__(self, make: Callable[[str], Pen], devices: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._devices, self._ends, self._processes = devices, list[Connection](), list[Any]()
        for device in devices:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, make, device, len(devices)), daemon=True)
            with kept_from_children(spawned=True):
                process.start()
            theirs.close()  # so that the pipe closes when the process ends
            self._ends.append(ours)  # type: ignore[arg-type, unused-ignore]  # Windows has a class of its own
            self._processes.append(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for end, process in zip(self._ends, self._processes, strict=True):
            end.close()
            process.kill()  # it may still be importing, and not read the pipe
            process.join()

    def threshold_for(self, rate: float, texts: Sequence[Text]) -> Calibration:
        """See `Pen.threshold_for`; runs on the first device."""
        self._send(0, "threshold_for", rate, texts)
        found: Calibration = self._receive(0)
        return found

    def move_threshold(self, threshold: float) -> None:
        """See `Pen.move_threshold`; applies to every device."""
        for worker in range(len(self._ends)):
            self._send(worker, "move_threshold", threshold)
            self._receive(worker)

    def write_all(
        self, windows: Iterable[Sequence[Text]], progress: Progress = lambda done: None
    ) -> Iterator[list[list[Written]]]:
        """See `Pen.write_all`; `progress` is called once per window."""

        def send(number: int, window: Sequence[Text]) -> int:
            worker = number % len(self._ends)
            self._send(worker, "write", window)
            return worker

        # One window per device at a time: with two in the pipe, both sides could block on writing.
        return in_turn(windows, send, self._receive, len(self._ends), progress)

    def _send(self, worker: int, what: str, *arguments: object) -> None:
        try:
            self._ends[worker].send((what, arguments))
        except OSError:
            self._receive(worker)  # raises the reason

    def _receive(self, worker: int) -> Any:
        try:
            found = self._ends[worker].recv()
        except (EOFError, OSError) as error:
            self._processes[worker].join(5)
            how = how_it_ended(self._processes[worker].exitcode)
            raise RunFailed(
                f"the process on {self._devices[worker]} {how}", "it may have run out of memory"
            ) from error
        if isinstance(found, Exception):
            raise found
        return found


def in_turn(
    windows: Iterable[Sequence[Text]],
    send: Callable[[int, Sequence[Text]], Any],
    receive: Callable[[Any], list[list[Written]]],
    room: int,
    progress: Progress,
) -> Iterator[list[list[Written]]]:
    """Outputs of windows in order, with at most `room` of them sent and not yet received.

    Args:
        send: starts window `number`; returns a ticket for `receive`.

    Raises:
        UserError: from reading `windows`, after the outputs of earlier ones.
    """
    waiting: deque[Any] = deque()
    numbered, failure, more, done = enumerate(windows), None, True, 0
    while more or waiting:
        if more and len(waiting) < room:
            try:
                number, window = next(numbered)
            except StopIteration:
                more = False
            except UserError as error:
                more, failure = False, error
            else:
                waiting.append(send(number, window))
            continue
        written = receive(waiting.popleft())
        done += len(written)
        progress(done)
        yield written
    if failure is not None:
        raise failure


def _work(end: Connection, make: Callable[[str], Pen], device: str, processes: int) -> None:
    """The loop of a process: build a pen, and call its methods until the pipe closes."""
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
    """An error of another process as one of our own, which can be unpickled here."""
    return error if type(error).__module__.startswith("mrt5cli.") else RunFailed(first_line(error))
