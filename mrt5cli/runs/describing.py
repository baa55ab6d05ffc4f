"""Descriptions of a run and differences between runs, as tables of text for terminals and pages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mrt5cli.errors import UserError
from mrt5cli.metrics.catalog import METRICS, metric_of
from mrt5cli.metrics.results import SavedEvaluation
from mrt5cli.recipe import strict_yaml
from mrt5cli.recipe.differences import flat
from mrt5cli.runs.found import Entry, as_number, size_of
from mrt5cli.text import MISSING, byte_size, counted, duration, number, percent, visible

IGNORED = ("name", "description", "paper")
"""Recipe keys whose differences do not matter."""
LONGEST_LISTED = 12
"""Maximum number of checkpoints to list by step."""


@dataclass(frozen=True)
class Words:
    """A table of text.

    Attributes:
        text_columns: number of text columns, on the left; the others are numbers.
        prose: whether cells are sentences.
        differs: whether rows are differences between runs, with one column per run.
    """

    title: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    text_columns: int = 1
    prose: bool = False
    differs: bool = False


def ago(seconds: float | None) -> str:
    """An age in one unit: 12 s ago, 5 min ago, 3 h ago, 2 d ago; or a dash."""
    if seconds is None:
        return MISSING
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds / 86400:,.0f} d ago"


def deleted(run: Entry) -> str:
    """The deletion rate and its target in percent, or a dash for a run without deletion."""
    rate, target = run.logged.get("deletion_rate"), run.target
    if target is None and not rate:
        return MISSING
    return percent(rate, 1) if target is None else f"{percent(rate, 1)}/{percent(target, 1)}"


def headline(saved: SavedEvaluation) -> str:
    """The main metric of an evaluation: the first of the task's metrics that it has; for span corruption the
    loss; else exact match, sequence accuracy or the loss."""
    row = saved.rows[-1]
    first = ["loss"] if saved.task == "span_corruption" else []
    names = [*(saved.settings.get("metrics") or []), *first, "exact_match", "sequence_accuracy", "loss"]
    return next((name for name in names if isinstance(name, str) and row.number(name) is not None), "loss")


def result(run: Entry) -> str:
    """A run's main result as short text, from an evaluation on its task, else the best validation value."""
    if (one := run.own_evaluation()) is not None:
        name = headline(one)
        where = "" if one.split == "test" else f" {one.split}"
        soft = "" if one.deletion == "hard" else " soft"
        return f"{_header(name)} {metric_of(name).text(one.rows[-1].number(name))}{_unit(name)}{where}{soft}"
    best = run.meta.get("best") or {}
    chooser, value = best.get("metric"), best.get("value")
    if isinstance(chooser, str) and as_number(value) is not None:
        return f"{_header(chooser)} {metric_of(chooser).text(value)}{_unit(chooser)} best"
    return MISSING


def _header(name: str) -> str:
    return (metric_of(name).header or name).replace("/\n", "/").replace("\n", " ")


def _unit(name: str) -> str:
    return " %" if metric_of(name).unit == "share" else ""


def state(run: Entry) -> str:
    """The state as a clause, with steps and age."""
    steps = f"{run.step:,} of {run.steps:,} steps" if run.steps else f"{run.step:,} steps"
    if run.holder is not None:
        return f"running, {steps}: {run.holder}"
    since = "" if run.age is None else f", {ago(run.age)}"
    if run.state == "damaged":
        return "damaged"
    killed = "killed (meta.json states that it is running, but no process holds its lock)"
    return f"{killed if run.state == 'stale' else run.state}, {steps}{since}"


def tree_of(run: Entry) -> dict[str, Any]:
    """A run's recipe as stored; empty if it cannot be read, for which `Entry.why` gives the reason."""
    try:
        tree = strict_yaml.parse(run.run.recipe_path.read_text(encoding="utf-8")).tree
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def facts(run: Entry) -> list[tuple[str, str]]:
    """Pairs of a label and a text that describe a run, without unknown ones."""
    tree, meta = tree_of(run), run.meta
    model, training = _part(tree, "model"), _part(tree, "training")
    shortener, controller = _part(model, "shortener"), _part(tree, "controller")
    versions = meta.get("versions") or {}
    commit = f" (commit {meta['commit'][:12]})" if meta.get("commit") else ""
    lines = {
        "state": state(run),
        "why": run.why,
        "about": tree.get("description"),
        "task": run.task,
        "model": _joined(
            shortener.get("kind"),
            f"after layer {shortener['layer']}" if "layer" in shortener else None,
            f"from {model['start']}" if "start" in model else None,
            f"{meta['parameters']:,} parameters" if meta.get("parameters") else None,
        ),
        "controller": _joined(
            controller.get("kind"), None if run.target is None else f"target {100 * run.target:g} %"
        ),
        "training": _joined(
            f"{run.steps:,} steps of {training.get('batch_size')} examples" if run.steps else None,
            f"learning rate {strict_yaml.inline(training['learning_rate'])}"
            if "learning_rate" in training
            else None,
            training.get("precision"),
            f"seed {tree['seed']}" if "seed" in tree else None,
        ),
        "logged": _joined(
            *(
                f"{name.replace('_', '-' if name == 'cross_entropy' else ' ')} {run.logged[name]:.4g}"
                for name in ("cross_entropy", "alpha")
                if name in run.logged
            ),
            None if deleted(run) == MISSING else f"deleted {deleted(run).replace('/', ' %, target ')} %",
            None if run.logged.get("seconds") is None else f"after {duration(run.logged['seconds'])}",
        ),
        "best": _best(meta.get("best")),
        "device": _joined(
            meta.get("device_name") or meta.get("device"), meta.get("precision"), meta.get("attention")
        ),
        "versions": _joined(
            *(f"{name} {text}{commit * (name == 'mrt5cli')}" for name, text in versions.items())
        ),
        "tags": " ".join(run.tags),
        "checkpoints": _checkpoints(run),
        "weights": byte_size(size_of(run.run.model)) if run.run.model.is_dir() else None,
        "size": byte_size(run.size),
    }
    return [(label, visible(str(text), lines=False)) for label, text in lines.items() if text]


def _part(tree: dict[str, Any], key: str) -> dict[str, Any]:
    part = tree.get(key)
    return part if isinstance(part, dict) else {}


def _joined(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part not in (None, ""))


def _best(best: Any) -> str | None:
    if not isinstance(best, dict) or as_number(best.get("value")) is None:
        return None
    early = ", stopped early" if best.get("stopped_early") else ""
    return f"{best.get('metric')} {best['value']:.4g} on validation data, at step {best.get('step')}{early}"


def _checkpoints(run: Entry) -> str | None:
    try:
        steps = run.run.saved_steps()
    except OSError:
        return None
    if not steps:
        return None
    total = byte_size(sum(size_of(run.run.checkpoint(step)) for step in steps))
    shown = steps if len(steps) <= LONGEST_LISTED else [*steps[:2], *steps[-3:]]
    names = [f"{step:,}" for step in shown]
    if len(steps) > LONGEST_LISTED:
        names.insert(2, "...")
    return f"{total} in {counted(len(steps), 'checkpoint')}: step {', '.join(names)}"


def sessions(run: Entry) -> Words:
    """The training sessions of a run."""
    rows = []
    for one in run.meta.get("sessions", []):
        start, end = (one.get(key) for key in ("started", "ended"))
        spent = None
        if start and end:
            spent = (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
        elif start and run.holder is not None and one is run.meta["sessions"][-1]:
            spent = time.time() - datetime.fromisoformat(start).timestamp()
        rows.append(
            (
                (start or MISSING).replace("T", " ")[:16],
                str(one.get("status") or ("running" if run.holder else "killed")),
                str(one.get("from_step", 0)),
                _segment(one.get("segment")),
                duration(spent),
                str(one.get("code", MISSING)),
            )
        )
    headers = ("started, UTC", "ended", "from step", "segment", "took", "code")
    return Words("Sessions", headers, rows, 2)


def _segment(segment: Any) -> str:
    """The range of steps of a session's segment, for a run that was continued."""
    return f"{segment.get('from_step')} to {segment.get('to_step')}" if isinstance(segment, dict) else MISSING


def evaluations(run: Entry) -> Words:
    """The evaluations of a run, without empty columns."""
    found = [(path, one, one.rows[-1]) for path, one in run.evaluations]
    names = [name for name in METRICS if any(row.number(name) is not None for *_, row in found)]
    names += list(dict.fromkeys(name for *_, row in found for name in row.others))
    wanted = [name for name in names if metric_of(name).in_cards or name in ("examples",)]
    headers = [f"{_header(name)}{_unit(name)}" for name in wanted]
    rows = [
        (
            path.stem,
            _joined(
                one.split,
                one.deletion,
                "" if one.models[0].step is None else f"step {one.models[0].step}",
                "" if (set_to := one.models[0].calibration) is None else f"at {100 * set_to['rate']:g} %",
            ),
            *(metric_of(name).text(row.number(name)) for name in wanted),
        )
        for path, one, row in found
    ]
    return Words("Evaluations", ("evaluation", "of", *headers), rows, 2)


# --- several ------------------------------------------------------------------------------------------------


def letters(runs: Sequence[Entry]) -> list[str]:
    """A short column name per run: A, B, C, or numbers for more than 26 runs."""
    return [chr(ord("A") + place) if len(runs) <= 26 else f"{place + 1}" for place in range(len(runs))]


def named(runs: Sequence[Entry]) -> list[str]:
    """The letter and name of each run."""
    return [f"{letter}  {run.name}" for letter, run in zip(letters(runs), runs, strict=True)]


def final_numbers(runs: Sequence[Entry]) -> Words:
    """The final numbers of runs, one column per run."""
    rows: dict[str, list[str]] = {
        "state": [run.state for run in runs],
        "steps": [f"{run.step:,}/{run.steps:,}" if run.steps else f"{run.step:,}" for run in runs],
        "cross-entropy": [number(run.logged.get("cross_entropy"), 4) for run in runs],
        "deleted/target %": [deleted(run) for run in runs],
        "alpha": [number(run.logged.get("alpha"), 4) for run in runs],
        "time": [duration(run.logged.get("seconds")) for run in runs],
        "bytes/s": [number(run.logged.get("bytes_per_second"), 0) for run in runs],
        "result": [result(run) for run in runs],
        "ended": [ago(run.age) for run in runs],
    }
    filled = [(name, *cells) for name, cells in rows.items() if {*cells} != {MISSING}]
    return Words("Final numbers", ("", *letters(runs)), filled, len(runs) + 1)


def recipe_differences(runs: Sequence[Entry]) -> Words:
    """The recipe keys whose values differ, one column per run."""
    keys = [flat(tree_of(run)) for run in runs]
    every = list(dict.fromkeys(key for tree in keys for key in tree))
    wanted = [key for key in every if key.split(".")[0] not in IGNORED]
    return _differing("Recipe differences", runs, {key: [tree.get(key) for tree in keys] for key in wanted})


def origin_differences(runs: Sequence[Entry]) -> Words:
    """Differences in versions, code, data and machine."""
    rows: dict[str, list[str | None]] = {}
    found = [_origin(run) for run in runs]
    for key in dict.fromkeys(key for one in found for key in one):
        rows[key] = [one.get(key) for one in found]
    return _differing("Environment differences", runs, rows)


def _origin(run: Entry) -> dict[str, str]:
    meta = run.meta
    last = (meta.get("sessions") or [{}])[-1]
    origin = {key: meta.get(key) for key in ("device_name", "precision", "processes", "attention")}
    origin["commit"] = (
        meta["commit"][:12] + "+" * meta["commit"].endswith("+") if meta.get("commit") else None
    )
    origin["code"] = last.get("code")
    origin |= {f"version of {name}": text for name, text in (meta.get("versions") or {}).items()}
    origin |= {f"data: {name}": text for name, text in (meta.get("data") or {}).items()}
    origin |= {f"Hub: {name}": text for name, text in (meta.get("hub_commits") or {}).items()}
    return {key: str(value) for key, value in origin.items() if value is not None}


def _differing(title: str, runs: Sequence[Entry], rows: dict[str, list[str | None]]) -> Words:
    shown = [
        (key, *(MISSING if value is None else visible(value, lines=False) for value in values))
        for key, values in rows.items()
        if len(set(values)) > 1
    ]
    return Words(title, ("", *letters(runs)), shown, len(runs) + 1, differs=True)


def grouped(table: Words) -> Words:
    """Differences with the runs after each value: "500 (A, C), 650 (B)"."""
    rows = []
    for key, *values in table.rows:
        of: dict[str, list[str]] = {}
        for letter, value in zip(table.headers[1:], values, strict=True):
            of.setdefault(value, []).append(letter)
        rows.append((key, ", ".join(f"{value} ({', '.join(letters)})" for value, letters in of.items())))
    return Words(table.title, ("", "values and runs"), rows, 2, prose=True)


def check_comparable(runs: Sequence[Entry]) -> None:
    """Raise UserError if a run is damaged."""
    for run in runs:
        if run.state == "damaged":
            raise UserError(f"{run.name} is damaged: {run.why}", "leave it out, or restore it from a copy")
