"""Who works in a folder of runs: one `mrt5 reproduce`, and the jobs that it has started."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mrt5cli.errors import UserError

LOGS = "logs"
LOCK = "reproduce.lock"
JOBS_LOCK = "jobs.lock"
PATIENCE = 120.0
"""Seconds to wait for the jobs of one that was killed: they save, and end."""


def open_lock(root: Path, name: str) -> BinaryIO:
    """A file to lock; the system lets go of the lock when the process ends, however it ends."""
    folder = root / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / name).open("ab+")


@contextmanager
def at_work(root: Path) -> Iterator[None]:
    """Show, by a shared lock, that a job is being done: nobody else may begin in this folder meanwhile."""
    with open_lock(root, JOBS_LOCK) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def only_one(root: Path, say: Callable[[str], None], patience: float = PATIENCE) -> Iterator[None]:
    """Hold a folder of runs, once the jobs of one that was killed have ended.

    Raises:
        UserError: another process holds it, or those jobs do not end.
    """
    try:
        file = open_lock(root, LOCK)
    except OSError as error:
        raise UserError(
            f"cannot write to {root}: {error.strerror}",
            "choose another folder with --runs, or --report-only for a report of what is there",
        ) from error
    with file:
        if not _locked(file):
            file.seek(0)
            holder = file.read().decode("ascii", "replace").strip() or "of unknown number"
            raise UserError(
                f"another `mrt5 reproduce` (process {holder}) works in {root}",
                "wait for it or stop it, or give this one another folder with --runs",
            )
        file.truncate(0)
        file.write(str(os.getpid()).encode("ascii"))
        file.flush()
        _wait_for_jobs(root, say, patience)
        yield


def _locked(file: BinaryIO) -> bool:
    """Take the lock for oneself, if it is free."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_jobs(root: Path, say: Callable[[str], None], patience: float) -> None:
    """Let jobs end whose `mrt5 reproduce` is gone."""
    give_up = time.monotonic() + patience
    with open_lock(root, JOBS_LOCK) as file:
        if _locked(file):
            return
        say("waiting for the jobs of an earlier `mrt5 reproduce`, which is gone, to end")
        while not _locked(file):
            if time.monotonic() > give_up:
                raise UserError(
                    f"jobs of an earlier `mrt5 reproduce` are still being done in {root}",
                    "wait for them: they save, and end by themselves",
                )
            time.sleep(0.2)
