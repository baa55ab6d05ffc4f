"""Writes meta.json and summarizes a run: its environment, sessions, status and final numbers."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import mrt5cli
from mrt5cli import manifest, own_code
from mrt5cli.errors import UserError
from mrt5cli.fingerprint import code_version, commit
from mrt5cli.metrics.catalog import METRICS
from mrt5cli.metrics.scoring import OWN
from mrt5cli.recipe import dump
from mrt5cli.rundir import COUNTED_WITH, RunDir
from mrt5cli.text import duration
from mrt5cli.training.plan import Prepared, TrainingPlan
from mrt5cli.writing import write_bytes, write_json

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "numpy", "safetensors")
ROOM = 2**14
"""Bytes reserved for the final meta.json, which needs a tenth or two of them."""
ON_TARGET = 0.03
"""Largest distance between deletion rate and target that the summary of a run does not report."""


def beginning(plan: TrainingPlan, prepared: Prepared) -> dict[str, Any]:
    """The meta.json of a run that starts or resumes."""
    before, now = plan.before.meta, _now()
    commits = before.get("hub_commits", {})
    if prepared.start.commit is not None:
        commits = {**commits, plan.recipe.model.start: prepared.start.commit}
    session: dict[str, Any] = {"started": now, "from_step": plan.resume_step or 0}
    session |= {"code": code_version("train"), "own_code": own_code.record()}
    session |= {"recipe": manifest.hash_of(dump(plan.recipe).encode("utf-8", "backslashreplace"))}
    session |= {"damaged": plan.damaged} if plan.damaged else {}
    if since := plan.recipe.training.continues_from:
        session["segment"] = {"from_step": since, "to_step": plan.recipe.training.max_steps}
        session |= {"set": plan.changed} if plan.changed else {}
    session |= {"tracked": _tracked(plan)} if plan.recipe.training.report_to else {}
    libraries = (*LIBRARIES, "peft") if plan.recipe.training.lora else LIBRARIES
    own = {"mrt5cli": mrt5cli.__version__, "python": sys.version.split()[0]}
    return {
        "status": "running",
        "name": plan.recipe.name,
        "seed": plan.recipe.seed,
        "parameters": prepared.start.model.num_parameters(),
        "trained_parameters": prepared.start.model.num_parameters(only_trainable=True),
        "data": prepared.task.commits(),
        "shares": prepared.task.shares(),
        "code": own_code.record(),
        "packages": _packages(plan, prepared),
        "command": sys.argv,
        "started": before.get("started", now),
        "ended": None,
        **plan.runtime.describe(),
        "attention": str(prepared.attention),
        "versions": own | {name: metadata.version(name) for name in libraries},
        "commit": commit(Path(mrt5cli.__file__).parent),
        "hub_commits": commits,
        "sessions": [*before.get("sessions", []), session],
    }


def _tracked(plan: TrainingPlan) -> dict[str, Any]:
    """The run's id for trackers, and the last steps whose training and validation metrics they have received.

    Those steps may lie after the checkpoint that the run resumes from.
    """
    before = [each["tracked"] for each in plan.before.meta.get("sessions", []) if "tracked" in each]
    if not before:
        name = re.sub(r"[^\w.-]", "-", plan.run.path.resolve().name, flags=re.ASCII)
        return {"id": f"{name[:80]}-{secrets.token_hex(4)}", "loss": 0, "validation": 0}
    rows, last = plan.run.metrics(), before[-1]
    sent = {kind: [row["step"] for row in rows if kind in row] for kind in ("loss", "validation")}
    return {**last, **{kind: max(last[kind], *steps, 0) for kind, steps in sent.items()}}


def keep_room(run: RunDir) -> None:
    """Reserve disk space for what `end` writes, with random bytes, which no file system compresses."""
    write_bytes(run.kept_room, os.urandom(ROOM))


def end(run: RunDir, status: str, **more: object) -> None:
    """Record a run's final status in meta.json."""
    run.check_held()
    meta, rows = run.meta(), run.metrics()
    ended = {"ended": _now(), "status": status}
    meta["sessions"][-1] |= ended
    wrong = {"health": found} if (found := health(rows)) else {}
    step = rows[-1]["step"] if rows else 0
    run.kept_room.unlink(missing_ok=True)
    write_json(run.meta_path, {**meta, **ended, "step": step, **wrong, **more})


def outcome(run: RunDir) -> dict[str, Any]:
    """The results of a finished run, for scripts."""
    meta, rows = run.meta(), _logged(run)
    kept = ("name", "seed", "parameters", "device", "precision", "started", "ended")
    return {
        "run": str(run.path),
        "status": meta["status"],
        "model": str(run.model),
        "metrics": rows[-1],
        "deletion_rate_at_end": rate_at_end(rows)[0],
        "health": health(rows),
        "best": meta.get("best"),
        **{key: meta[key] for key in kept},
    }


def summary(run: RunDir) -> str:
    """The results of a finished run as text; the last line reports a rate that missed its target."""
    rows = _logged(run)
    last, (rate, steps) = rows[-1], rate_at_end(rows)
    target = last["target"]
    # The cross-entropy is comparable between runs; the minimized total depends on alpha.
    parts = [f"loss {last['cross_entropy']:.4f} (cross-entropy)"]
    if f"{last['loss']:.4f}" != f"{last['cross_entropy']:.4f}":
        parts.append(f"total loss {last['loss']:.4f}")
    if target is not None or rate > 0:
        aim = "" if target is None else f" (target {100 * target:g} %)"
        gates = "by soft gates " if run.recipe().model.shortener.gates else ""
        over = f"over the last {steps:,} steps" if steps > 1 else "in the last step"
        parts.append(f"deleted {100 * rate:.1f} %{aim}, {gates}on training data {over}")
    best = run.meta().get("best")
    lines = [
        f"done: {last['step']:,} steps in {duration(last['seconds'])}",
        f"last logged: {', '.join(parts)}",
        *([_best(best)] if best else []),
        *(f"{name}: from step {first:,} to {last:,}" for name, (first, last) in health(rows).items()),
        f"model: {run.model}",
        f"next: mrt5 evaluate {run.path}",
    ]
    if target is not None and round(abs(rate - target), 6) > ON_TARGET:
        side = "above" if rate > target else "below"
        lines.append(
            f"off target: {100 * rate:.1f} % deleted at the end, {100 * abs(rate - target):.1f} points "
            f"{side} the controller's target of {100 * target:g} %"
        )
    return "\n".join(lines)


def rate_at_end(rows: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """The deletion rate at the end of a run, and the number of steps that it averages.

    One line of metrics may cover too few bytes for a reliable rate, so the lines of the last tenth of the run
    are averaged.
    """
    spans = [after - before for before, after in pairwise([0, *(row["step"] for row in rows)])]
    deleted, steps = 0.0, 0
    for row, span in zip(reversed(rows), reversed(spans), strict=True):
        deleted, steps = deleted + row["deletion_rate"] * span, steps + span
        if 10 * steps >= rows[-1]["step"]:
            break
    return deleted / steps, steps


def health(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The persistent problems of a run, each with the first and last step that reported it."""
    found: dict[str, list[int]] = {}
    for row in rows:
        for name in row.get("health", ()):
            found[name] = [found.get(name, [row["step"]])[0], row["step"]]
    return found


def _logged(run: RunDir) -> list[dict[str, Any]]:
    """The metrics of logging steps, without those of validation.

    Raises:
        UserError: there are none.
    """
    rows = [row for row in run.metrics() if row.keys() >= {*COUNTED_WITH}]
    if not rows:
        raise UserError(f"{run.metrics_path} contains no training metrics", "restore it from a backup")
    return rows


def _best(best: Mapping[str, Any]) -> str:
    name = METRICS[best["metric"]].title
    if best["step"] is None:
        return f"no {name} could be measured on validation data; the model is that of the last step"
    early = "; stopped early, because nothing improved on it" if best["stopped_early"] else ""
    return f"best: {name} {best['value']:.4f} on validation data at step {best['step']:,}{early}"


def _packages(plan: TrainingPlan, prepared: Prepared) -> dict[str, str]:
    """The versions of the installed packages that define the run's task, shortener and metrics."""
    own = [OWN[name] for name in prepared.task.measures if name in OWN]
    used = (type(prepared.task), type(plan.recipe.model.shortener), *own)
    found = (own_code.package_of(each.__module__) for each in used)
    return {package.name: package.version for package in found if package is not None}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
