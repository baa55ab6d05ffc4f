"""Commands in processes of their own, and the runs they leave: waited for, and compared without the clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mrt5cli.rundir import RunDir

CLOCK = ("seconds", "bytes_per_second")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
MRT5 = ("-m", "mrt5cli")


def start(
    folder: Path,
    *words: str,
    before: tuple[str, ...] = (),
    stderr: IO[str] | int = subprocess.PIPE,
    environment: Mapping[str, str] = ENVIRONMENT,
) -> subprocess.Popen[str]:
    """Python with these words, in a process group of its own, as a terminal would start it.

    Args:
        before: words of a command that starts it, such as nohup.
    """
    return subprocess.Popen(
        [*before, sys.executable, *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


@contextmanager
def started(
    folder: Path, *words: str, stderr: IO[str] | int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """The same, whose whole group is killed in the end."""
    process = start(folder, *words, stderr=stderr)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until it is so, while the process runs, at most for a minute."""
    for _ in range(12_000):
        if what():
            return
        if process.poll() is not None:
            raise AssertionError(f"ended early: {process.communicate()[1]}")
        time.sleep(0.005)
    process.kill()
    raise AssertionError("waited a minute in vain")


def curve(run: RunDir) -> list[dict[str, Any]]:
    """Metrics without what the clock decides."""
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in run.metrics()]
