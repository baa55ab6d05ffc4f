"""Only one `mrt5 reproduce` works in a folder of runs at a time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mrt5cli.errors import UserError
from mrt5cli.suite.work import JOBS_LOCK, open_lock

LOCK = "reproduce.lock"
PATIENCE = 120.0
"""Seconds to wait for the jobs of one that was killed: they save, and end."""


@contextmanager
def only_one(root: Path, say: Callable[[str], None], patience: float = PATIENCE) -> Iterator[None]:
    """Hold a folder of runs. The lock of a process that has died is none: the system lets go of it.

    Raises:
        UserError: another process holds it, or jobs of one that was killed do not end.
    """
    try:
        file = open_lock(root, LOCK)
    except OSError as error:
        raise UserError(
            f"cannot write to {root}: {error.strerror}",
            "choose another folder with --runs, or --report-only for a report of what is there",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode("ascii", "replace").strip() or "of unknown number"
            raise UserError(
                f"another `mrt5 reproduce` (process {holder}) works in {root}",
                "wait for it or stop it, or give this one another folder with --runs",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()).encode("ascii"))
        file.flush()
        _wait_for_jobs(root, say, patience)
        yield


def _wait_for_jobs(root: Path, say: Callable[[str], None], patience: float) -> None:
    """Let jobs end whose `mrt5 reproduce` is gone."""
    give_up, told = time.monotonic() + patience, False
    with open_lock(root, JOBS_LOCK) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pass
            if time.monotonic() > give_up:
                raise UserError(
                    f"jobs of an earlier `mrt5 reproduce` are still being done in {root}",
                    "wait for them: they save, and end by themselves",
                )
            if not told:
                say("waiting for the jobs of an earlier `mrt5 reproduce`, which is gone, to end")
                told = True
            time.sleep(0.2)
