"""Signals that ask the program to stop: which they are, who handles them, and the exit code they lead to."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C; a time limit, `kill` or a service manager; a closed terminal; warnings of schedulers."""
SAME_SECONDS = 5.0
"""A signal this soon after another counts as the same: `timeout` signals the process and its group."""
AGAIN_SECONDS = 0.05
"""Delay before a signal whose exception was lost is sent again."""
LOOK_SECONDS = 0.5
"""Interval at which a child checks that its parent is alive."""
Handler = Callable[[int, FrameType | None], None]


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop; unlike `KeyboardInterrupt`, not only Ctrl-C.

    Attributes:
        number: the signal number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        """ "interrupted" for Ctrl-C, "stopped by SIGTERM"."""
        name = signal.Signals(self.number).name
        return "interrupted" if self.number == signal.SIGINT else f"stopped by {name}"


def number_of(error: KeyboardInterrupt) -> int:
    """The signal that caused an interruption; SIGINT if none is recorded."""
    return error.number if isinstance(error, Stopped) else signal.SIGINT


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code of an interrupted process: 128 + the signal number, as in a shell."""
    return 128 + number_of(error)


def how_it_ended(code: int | None) -> str:
    """A clause on how a process ended unexpectedly, from its exit code as Python reports it."""
    if code is None or code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}{', by hand or because memory ran out' if name == 'SIGKILL' else ''}"


@contextmanager
def taken_by(handler: Handler) -> Iterator[None]:
    """Handle the signals with a function in the meantime; a no-op outside the main thread.

    Ignored signals stay ignored, as nohup requires for SIGHUP, except SIGINT: shells make every background
    job ignore it, but a SIGINT sent to one is meant for it.
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
    """Raise `Stopped` for signals that arrive in the meantime; only Ctrl-C raises again if repeated."""
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
        # Python drops exceptions raised in a finalizer or a callback from C, so the signal is sent again.
        last = -SAME_SECONDS
        threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), lost.exc_value.number)).start()

    sys.unraisablehook = again
    try:
        with taken_by(stop):
            yield
    finally:
        sys.unraisablehook = shown


def end_at_once(number: int, frame: FrameType | None) -> None:
    """A handler for before work begins and after it ends: exit without raising in anybody's code."""
    os._exit(128 + number)


@contextmanager
def kept_from_children(*, spawned: bool = False) -> Iterator[None]:
    """Block the signals in processes started in the meantime, even while they import.

    A terminal, Slurm and `timeout` signal every process of a group, but the first process decides when the
    others end. Signals to this process are delivered afterwards.

    Args:
        spawned: the processes are spawned, not forked. Python then starts a resource tracker, which unblocks
            some signals again.
    """
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
    """End together with the parent (of multiprocessing) or when it terminates this process.

    Every other signal is ignored.
    """
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if not hasattr(signal, "sigtimedwait"):  # macOS: SIGTERM works from any sender
        signal.signal(signal.SIGTERM, end_at_once)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        end_with_parent()
        return

    def terminated() -> bool:
        got = signal.sigtimedwait(SIGNALS, LOOK_SECONDS)
        return got is not None and got.si_signo == signal.SIGTERM and got.si_pid == parent.pid

    end_with_parent(terminated)


def end_with_parent(or_when: Callable[[], bool] | None = None) -> None:
    """End when the parent (of multiprocessing) has ended, even if it was killed.

    Args:
        or_when: waits briefly and returns whether to end now.
    """
    from multiprocessing import parent_process

    parent, started_by = parent_process(), os.getppid()
    assert parent is not None

    def wait() -> None:
        # The pid as well: processes that were forked later keep the parent's pipe open, too.
        while parent.is_alive() and os.getppid() == started_by:
            if or_when is None:
                time.sleep(LOOK_SECONDS)
            elif or_when():
                break
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
