"""Which bytes the models of an experiment delete: by kind of letter and of byte, by language, in examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mrt5cli.analysis.across_runs.shared import Asked, described, subject_of
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.errors import UserError
from mrt5cli.metrics.counts import Ratio, gate_precision, gate_recall
from mrt5cli.report.results import PUBLISHED_DIAGNOSTICS, Ran

if TYPE_CHECKING:
    from mrt5cli.analysis.deletions import InspectedRow, KindRow

EXAMPLES = 1000
"""Of all subsets together, as in the authors' script."""
SHOWN = 3
"""Examples of each model whose text the document holds."""
SHOWN_POSITIONS = 160
BATCH_SIZE = 16


def deletion_patterns(asked: Asked) -> dict[str, Any]:
    """A line each run that shortens its source, of test examples of its own task.

    Raises:
        UserError: no such run is finished.
    """
    runs = [ran for ran in asked.trained if ran.family not in ("ByT5", "no source")]
    if not runs:
        raise UserError(f"no finished run of {asked.experiment.id} deletes anything")
    return {"models": [_patterns(asked, ran) for ran in runs], "missing": asked.missing}


def _patterns(asked: Asked, ran: Ran) -> dict[str, Any]:
    from mrt5cli.analysis.deletions import kind_table, total_rate
    from mrt5cli.analysis.letters import letter_table
    from mrt5cli.data.characters import CERTAIN_SENTINELS

    kind = ran.recipe.task.kind
    sentinels = CERTAIN_SENTINELS if kind == "span_corruption" else 0
    by_subset = _inspected(asked, ran)
    rows = [row for part in by_subset.values() for row in part]
    rate = total_rate(rows)
    first = list(by_subset.items())[:SHOWN]
    shown = [(subset, part[0]) for subset, part in first] if len(first) > 1 else [("", row) for row in rows]
    return {
        **described(ran),
        "task": kind,
        "examples": len(rows),
        "positions": rate.count,
        "deletion_rate": rate.value,
        **_agreement(rows),
        "letters": _lines(letter_table(kind, rows)) if kind in PUBLISHED_DIAGNOSTICS.values() else [],
        "kinds": _lines(kind_table(rows, sentinels=sentinels)),
        "subsets": [
            {
                "subset": subset,
                "script": LANGUAGES[subset].script if subset in LANGUAGES else None,
                "examples": len(part),
                "deletion_rate": total_rate(part).value,
            }
            for subset, part in by_subset.items()
        ],
        "shown": [{"subset": subset, **_marked(row, sentinels)} for subset, row in shown[:SHOWN]],
    }


def _inspected(asked: Asked, ran: Ran) -> dict[str, list[InspectedRow]]:
    import torch

    from mrt5cli.analysis.deletions import inspect_batch
    from mrt5cli.subject import load_model
    from mrt5cli.tasks.base import build_task

    task = build_task(ran.recipe.task)
    subsets = task.subsets("test")
    most = ran.recipe.evaluation.examples if asked.plan.smoke else EXAMPLES
    share = max(1, most // len(subsets))
    model = load_model(subject_of(ran), asked.device)
    torch.manual_seed(0)  # the reference's laws draw in evaluation too
    found: dict[str, list[InspectedRow]] = {}
    for subset in subsets:
        found[subset] = rows = []
        for batch in task.held_out("test", subset, batch_size=min(share, BATCH_SIZE), limit=share):
            rows += inspect_batch(model, batch, None, task.deletable(batch["input_ids"]))
            asked.tell(f"{ran.name} seed {ran.seed}", subset, len(rows))
        if not rows:
            raise UserError(f"there are no test examples for {subset!r}")
    return found


def _agreement(rows: Sequence[InspectedRow]) -> dict[str, float | None]:
    """Over letters, the share of the deleted that can go, and of those that can go that is deleted."""
    known = [
        (row.deleted, row.deletable, row.ids)
        for row in rows
        if row.gate is not None and row.deletable is not None
    ]
    return {
        "gate_precision": sum((gate_precision(*row) for row in known), Ratio()).value,
        "gate_recall": sum((gate_recall(*row) for row in known), Ratio()).value,
    }


def _lines(table: Sequence[KindRow]) -> list[dict[str, Any]]:
    return [{**asdict(line), "rate": line.rate} for line in table]


def _marked(row: InspectedRow, sentinels: int) -> dict[str, Any]:
    """The beginning of a row as runs of text, each with its state (see `marked_text`)."""
    from dataclasses import replace

    from mrt5cli.analysis.marked_text import runs, segment_runs

    cut = slice(SHOWN_POSITIONS)
    short = replace(row, ids=row.ids[cut], deleted=row.deleted[cut])
    characters = short.characters(sentinels=sentinels)
    found = (
        segment_runs(characters, short.starts.tolist())
        if row.gate is None
        else runs(characters, short.deleted.tolist())
    )
    return {
        "deletion_rate": row.rate.value,
        "cut": len(row.ids) > SHOWN_POSITIONS,
        "runs": [[run.text + "\n" * run.ends_line, run.state] for run in found],
    }
