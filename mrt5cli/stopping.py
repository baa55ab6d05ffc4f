"""Signals that ask a program to stop: which these are, who takes them, which exit code tells of them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
if sys.platform != "win32":
    SIGNALS += (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C; a time limit, `kill` or a service manager; a terminal that is gone; what schedulers warn with."""
SAME_SECONDS = 5.0
"""Within these another signal is the first once more: `timeout` sends its to the process and to its group."""
AGAIN_SECONDS = 0.05
"""After which a signal comes once more whose exception was lost."""
LOOK_SECONDS = 0.5
"""Between two looks at whether a parent is still there."""
Handler = Callable[[int, FrameType | None], None]


class Stopped(KeyboardInterrupt):
    """A signal has asked to stop, which need not have been Ctrl-C.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        """ "interrupted" for Ctrl-C, "stopped by SIGTERM"."""
        name = signal.Signals(self.number).name
        return "interrupted" if self.number == signal.SIGINT else f"stopped by {name}"


def number_of(error: KeyboardInterrupt) -> int:
    """The signal that an interruption came from: SIGINT, where nothing else is known of it."""
    return error.number if isinstance(error, Stopped) else signal.SIGINT


def exit_code(error: KeyboardInterrupt) -> int:
    """What a process ends with that was interrupted: 128 + the signal's number, as shells count."""
    return 128 + number_of(error)


def how_it_ended(code: int | None) -> str:
    """How a process ended that should not have, for the end of a sentence, by Python's exit code of it."""
    if code is None or code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}{', by hand or because memory ran out' if name == 'SIGKILL' else ''}"


@contextmanager
def taken_by(handler: Handler) -> Iterator[None]:
    """Let a function take the signals meanwhile; outside the main thread, which gets them, nothing changes.

    What is ignored stays ignored, as nohup wants SIGHUP to be; but for SIGINT, which shells let all jobs in
    the background ignore: who sends it to one means it.
    """
    mine = threading.current_thread() is threading.main_thread()
    known = {number: signal.getsignal(number) for number in SIGNALS} if mine else {}
    before = {
        number: handler
        for number, handler in known.items()
        if handler is not None and (handler is not signal.SIG_IGN or number == signal.SIGINT)
    }
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def raised() -> Iterator[None]:
    """Raise `Stopped` for signals that come meanwhile; not twice for one that comes twice, but for Ctrl-C."""
    last, shown = -SAME_SECONDS, sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if number == signal.SIGINT or last - before >= SAME_SECONDS:
            raise Stopped(number)

    def again(lost: sys.UnraisableHookArgs) -> None:
        nonlocal last
        if not isinstance(lost.exc_value, Stopped):
            shown(lost)
            return
        # Python drops what is raised in a finalizer, or while C calls back: so the signal comes once more.
        last = -SAME_SECONDS
        threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), lost.exc_value.number)).start()

    sys.unraisablehook = again
    try:
        with taken_by(stop):
            yield
    finally:
        sys.unraisablehook = shown


def end_at_once(number: int, frame: FrameType | None) -> None:
    """A handler for when nothing has begun, or all is done: no code of anybody's sees an exception."""
    os._exit(128 + number)


@contextmanager
def kept_from_children(*, spawned: bool = False) -> Iterator[None]:
    """Processes that are started meanwhile do not get the signals, not even while they import.

    A terminal, Slurm and `timeout` send them to all processes of a group, and the first one says when the
    others are to end. What comes for that one comes after.

    Args:
        spawned: they are no mere forks. Python then has a process of its own beside them, and starting that
            lets some signals through again.
    """
    if sys.platform == "win32":  # a new process gets Ctrl-C while it imports, and ends
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        if spawned:
            from multiprocessing import resource_tracker

            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work_for_parent() -> None:
    """End with the process that has started this one through multiprocessing, or when it terminates it.

    No other signal does anything any more.
    """
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None
    if sys.platform == "win32":  # SIGTERM cannot be caught there
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_with_parent()
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if sys.platform == "darwin" or not hasattr(signal, "sigtimedwait"):
        # SIGTERM from any process ends this one, not only from its parent.
        signal.signal(signal.SIGTERM, end_at_once)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        end_with_parent()
        return

    def terminated() -> bool:
        got = signal.sigtimedwait(SIGNALS, LOOK_SECONDS)
        return got is not None and got.si_signo == signal.SIGTERM and got.si_pid == parent.pid

    end_with_parent(terminated)


def end_with_parent(or_when: Callable[[], bool] | None = None) -> None:
    """End when the process has ended that has started this one through multiprocessing, be it by a kill.

    Args:
        or_when: waits a while, and says whether to end now.
    """
    from multiprocessing import parent_process

    parent, started_by = parent_process(), os.getppid()
    assert parent is not None

    def wait() -> None:
        # The pipe that tells of the parent is open in processes that were forked later, too.
        while parent.is_alive() and os.getppid() == started_by:
            if or_when is None:
                time.sleep(LOOK_SECONDS)
            elif or_when():
                break
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
