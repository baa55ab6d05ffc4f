"""What a training came to: in words for people, and for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mrt5cli import own_code
from mrt5cli.metrics.catalog import METRICS
from mrt5cli.rundir import RunDir
from mrt5cli.text import duration

DECIDES_NUMBERS = False  # words

ON_TARGET = 0.03
"""How far from its target a deletion rate may be at the end of a run without a word about it."""


def outcome(run: RunDir) -> dict[str, Any]:
    """For scripts."""
    meta, rows = run.meta(), logged_rows(run)
    return {
        "run": str(run.path),
        "status": meta["status"],
        "model": str(run.model),
        "metrics": rows[-1],
        "deletion_rate_at_end": rate_at_end(rows)[0],
        "best": meta.get("best"),
        **{
            key: meta[key]
            for key in ("name", "seed", "parameters", "device", "precision", "started", "ended")
        },
    }


def summary(run: RunDir) -> str:
    """A line each; the last says so if the run ended off its target."""
    rows = logged_rows(run)
    last, (rate, steps) = rows[-1], rate_at_end(rows)
    target = last["target"]
    parts = [f"loss {last['loss']:.4f}", f"cross-entropy {last['cross_entropy']:.4f}"]
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
        f"model: {run.model}",
        " ".join(["next: mrt5 evaluate", str(run.path), *own_code.as_options()]),
    ]
    if target is not None and round(abs(rate - target), 6) > ON_TARGET:
        side = "above" if rate > target else "below"
        lines.append(
            f"off target: {100 * rate:.1f} % deleted at the end, {100 * abs(rate - target):.1f} points "
            f"{side} the {100 * target:g} % that the controller aims at"
        )
    return "\n".join(lines)


def rate_at_end(rows: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """The deletion rate at the end of a run, and over how many steps it was taken.

    One line of metrics may cover a single step, and so few bytes that their rate says little; so as many
    lines count as it takes to cover the last tenth of the run.

    Args:
        rows: of a run's metrics, as `logged_rows`.
    """
    spans = [after - before for before, after in pairwise([0, *(row["step"] for row in rows)])]
    deleted, steps = 0.0, 0
    for row, span in zip(reversed(rows), reversed(spans), strict=True):
        deleted, steps = deleted + row["deletion_rate"] * span, steps + span
        if 10 * steps >= rows[-1]["step"]:
            break
    return deleted / steps, steps


def logged_rows(run: RunDir) -> list[dict[str, Any]]:
    """The metrics of logging steps, without those of validation."""
    return [row for row in run.metrics() if "loss" in row]


def _best(best: Mapping[str, Any]) -> str:
    name = METRICS[best["metric"]].title
    if best["step"] is None:
        return f"no {name} could be measured on validation data: the model is that of the last step"
    early = "; stopped early, nothing better came" if best["stopped_early"] else ""
    return f"best: {name} {best['value']:.4f} on validation data at step {best['step']:,}{early}"
