"""Runs as commands in processes of their own leave them: waited for, and compared without the clock."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

from mrt5cli.rundir import RunDir

CLOCK = ("seconds", "bytes_per_second")


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
