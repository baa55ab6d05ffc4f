"""What meta.json says of a run: with what it was made, when, and how it ended."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import mrt5cli
from mrt5cli.fingerprint import code_version
from mrt5cli.rundir import write_json
from mrt5cli.training.choose import Prepared, TrainingPlan

DECIDES_NUMBERS = False  # what meta.json says

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "numpy", "safetensors")


def begin(plan: TrainingPlan, prepared: Prepared) -> None:
    """Write that a run has begun, or goes on."""
    before, now = plan.run.meta(), _now()
    commits = before.get("hub_commits", {})
    if prepared.start.commit is not None:
        commits = {**commits, plan.recipe.model.start: prepared.start.commit}
    session = {"started": now, "from_step": plan.resume_step or 0, "code": code_version("train")}
    write_json(
        plan.run.meta_path,
        {
            "status": "running",
            "name": plan.recipe.name,
            "seed": plan.recipe.seed,
            "parameters": prepared.parameters,
            "data": prepared.task.commits(),
            "command": sys.argv,
            "started": before.get("started", now),
            "ended": None,
            **plan.runtime.describe(),
            "versions": versions(),
            "commit": commit(),
            "hub_commits": commits,
            "sessions": [*before.get("sessions", []), session],
        },
    )


def end(plan: TrainingPlan, status: str, **more: Any) -> None:
    """Write how the run has ended, from the leading process."""
    if not plan.runtime.leads:
        return
    meta, rows = plan.run.meta(), plan.run.metrics()
    ended = {"ended": _now(), "status": status}
    meta["sessions"][-1] |= ended
    write_json(plan.run.meta_path, {**meta, **ended, "step": rows[-1]["step"] if rows else 0, **more})


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    found = {"mrt5cli": mrt5cli.__version__, "python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of this package's own checkout, "+" added when files are changed; None if installed."""
    folder = Path(mrt5cli.__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An installed package may lie inside somebody else's repository.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head = git("rev-parse", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else "")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
