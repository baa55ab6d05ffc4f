"""`mrt5 inspect-deletions`: the text with its deleted bytes marked, and what kind of byte goes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrt5cli.commands.tables import percent, print_table
from mrt5cli.errors import UserError

if TYPE_CHECKING:
    from mrt5cli.analysis.deletions import InspectedRow
    from mrt5cli.evaluation.subject import Subject

EXAMPLES = 5
PIECES = 20
LENGTH_WITHOUT_RECIPE = 1024


def inspect_deletions(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory, checkpoint directory or Hub id.")
    ],
    text: Annotated[str | None, typer.Option(help="Inspect this text.")] = None,
    file: Annotated[Path | None, typer.Option(help="Inspect this file; any bytes will do.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Inspect test examples of this kind of task, or of this recipe's.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help=f"Examples ({EXAMPLES}), or pieces of a long text ({PIECES})."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Delete gate values up to this one. Default: the model's own threshold."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ... Default: a GPU if there is one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
) -> None:
    """Show which bytes a model deletes, and count them by kind.

    Without --text, --file or --task: test examples of the run's own task.

    Examples:

      mrt5 inspect-deletions runs/quickstart-mrt5-seed42

      mrt5 inspect-deletions runs/mrt5-seed1 --text "Was bleibt, und was geht?"

      mrt5 inspect-deletions runs/mrt5-seed1 --file book.txt --limit 3 --json
    """
    from mrt5cli import runtime
    from mrt5cli.evaluation.subject import find_subject, load_model

    if sum(given is not None for given in (text, file, task)) > 1:
        raise UserError("give one of --text, --file and --task")
    content = _content(text, file)
    subject = find_subject(run)
    model = load_model(subject, runtime.device(device))
    _check_gate(model, subject, threshold)
    if content is None:
        rows, sentinels = _task_rows(model, subject, task, limit or EXAMPLES, threshold)
    else:
        rows, sentinels = _text_rows(model, subject, content, limit or PIECES, threshold), False
    in_force = model.config.deletion_threshold if threshold is None else threshold
    if as_json:
        print(json.dumps(document(rows, subject.name, in_force, sentinels), indent=2, ensure_ascii=False))
    else:
        present(rows, subject.name, in_force, sentinels)


def _content(text: str | None, file: Path | None) -> bytes | None:
    """The bytes to inspect, or None when examples of a task are meant."""
    if text is not None:
        content = text.encode("utf-8", "surrogateescape")
        where = "--text"
    elif file is not None:
        try:
            content = file.read_bytes()
        except OSError as error:
            reason = (
                "does not exist" if isinstance(error, FileNotFoundError) else (error.strerror or "unreadable")
            )
            raise UserError(f"{file}: {reason[0].lower()}{reason[1:]}", "give a file to read") from error
        where = str(file)
    else:
        return None
    if not content:
        raise UserError(f"{where} is empty: there is nothing to delete")
    return content


def _check_gate(model: Any, subject: Subject, threshold: float | None) -> None:
    if model.config.deletion_type == "none":
        raise UserError(
            f"{subject.name} has no delete gate: a plain ByT5 deletes nothing",
            "inspect a run whose recipe has a model.shortener",
        )
    scale = model.config.sigmoid_mask_scale
    if threshold is not None and not scale < threshold < 0:
        raise UserError(
            f"--threshold {threshold:g} is not a gate value that parts deleted from kept bytes",
            f"gate values run from {scale:g} (delete) to 0 (keep); this model parts at "
            f"{model.config.deletion_threshold:g}",
        )


def _text_rows(
    model: Any, subject: Subject, content: bytes, limit: int, threshold: float | None
) -> list[InspectedRow]:
    from mrt5cli.analysis.deletions import inspect_text
    from mrt5cli.evaluation.subject import DIAGNOSTICS, task_length

    task = None if subject.recipe is None else subject.recipe.task
    length = LENGTH_WITHOUT_RECIPE if task is None else task_length(task)
    if task is not None and task.kind in DIAGNOSTICS and not content.startswith(b"#"):
        print("this model was trained on strings that begin with '#'; this text does not", file=sys.stderr)
    if model.config.has_absolute_position_embeddings:
        length = min(length, model.config.max_position_embeddings)
    rows = inspect_text(model, content, length, limit=limit, threshold=threshold)
    shown = sum(len(row.ids) - 1 for row in rows)  # each piece ends with an EOS that the text does not have
    if shown < len(content):
        print(
            f"only the first {shown:,} of {len(content):,} bytes are inspected; --limit takes more pieces "
            f"of {length} byte tokens than {limit}",
            file=sys.stderr,
        )
    return rows


def _task_rows(
    model: Any, subject: Subject, option: str | None, limit: int, threshold: float | None
) -> tuple[list[InspectedRow], bool]:
    from mrt5cli.analysis.deletions import inspect_batch
    from mrt5cli.evaluation.subject import check_fits, choose_task
    from mrt5cli.tasks.base import build_task

    section = choose_task(option, subject)
    check_fits(model, section, subject.name)
    task = build_task(section)
    subsets = task.subsets("test")
    rows: list[InspectedRow] = []
    for place, subset in enumerate(subsets):
        share = limit // len(subsets) + (place < limit % len(subsets))
        if share:
            for batch in task.held_out("test", subset, batch_size=min(share, 8), limit=share):
                found = inspect_batch(model, batch, threshold, task.deletable(batch["input_ids"]))
                of = f" ({subset})" if len(subsets) > 1 else ""
                rows += [replace(row, label=f"example {len(rows) + n}{of}") for n, row in enumerate(found, 1)]
    if not rows:
        raise UserError("the task has no test examples")
    return rows, section.kind == "span_corruption"


def document(rows: Sequence[InspectedRow], name: str, threshold: float, sentinels: bool) -> dict[str, Any]:
    """What is shown, exactly, for JSON."""
    from mrt5cli.analysis.deletions import kind_table, total_rate
    from mrt5cli.analysis.marked_text import plain, runs

    rate = total_rate(rows)
    return {
        "name": name,
        "threshold": threshold,
        "positions": rate.count,
        "deleted": int(rate.total),
        "deletion_rate": rate.value,
        **_agreement(rows),
        "kinds": [
            {"kind": kind.kind, "count": kind.count, "deleted": kind.deleted, "rate": kind.rate}
            for kind in kind_table(rows, sentinels=sentinels)
        ],
        "rows": [
            {
                "label": row.label,
                "marked": plain(runs(row.characters(sentinels=sentinels), row.deleted.tolist())),
                "ids": row.ids.tolist(),
                "deleted": row.deleted.astype(int).tolist(),
                "gate": [round(value, 4) for value in row.gate.tolist()],
                "deletable": None if row.deletable is None else row.deletable.astype(int).tolist(),
                "target": None if row.target is None else row.target.tolist(),
                "deletion_rate": row.rate.value,
            }
            for row in rows
        ],
    }


def _agreement(rows: Sequence[InspectedRow]) -> dict[str, float | None]:
    """Precision and recall against what the task does not need; nothing where no task says so."""
    from mrt5cli.metrics.counts import Ratio, gate_precision, gate_recall

    known = [(row.deleted, row.deletable, row.ids) for row in rows if row.deletable is not None]
    if not known:
        return {}
    return {
        "gate_precision": sum((gate_precision(*row) for row in known), Ratio()).value,
        "gate_recall": sum((gate_recall(*row) for row in known), Ratio()).value,
    }


def present(rows: Sequence[InspectedRow], name: str, threshold: float, sentinels: bool) -> None:
    """Print the rows with their deletions marked, the rate, and the table of kinds."""
    from rich.console import Console

    from mrt5cli.analysis.deletions import kind_table, total_rate
    from mrt5cli.analysis.marked_text import coloured, legend, plain, runs

    if hasattr(sys.stdout, "reconfigure"):  # a terminal that cannot show a character gets its code
        sys.stdout.reconfigure(errors="backslashreplace")
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    marked = [runs(row.characters(sentinels=sentinels), row.deleted.tolist()) for row in rows]
    for row, shown in zip(rows, marked, strict=True):
        if len(rows) > 1:
            print(f"{row.label}, {percent(row.rate.value, 1)} % deleted")
        if colour:
            console.print(coloured(shown), soft_wrap=True)
        else:
            print(plain(shown))
        if row.target is not None and not sentinels:
            target = "".join(character.visible for character in _characters(row.target))
            print(f"target: {target}")
    explained = legend(marked, colour=colour)
    rate = total_rate(rows)
    print(f"\n{explained}\n" if explained else "")
    print(
        f"{name} deletes {int(rate.total):,} of {rate.count:,} positions ({percent(rate.value, 1)} %), "
        f"gate threshold {threshold:g}"
    )
    agreement = _agreement(rows)
    if agreement:
        print(
            f"of the letters it deletes {percent(agreement['gate_precision'], 1)} % are not needed for the "
            f"target; of those not needed it deletes {percent(agreement['gate_recall'], 1)} %"
        )
    print()
    table = kind_table(rows, sentinels=sentinels)
    print_table(
        ["kind of byte", "count", "deleted", "%"],
        [[kind.kind, f"{kind.count:,}", f"{kind.deleted:,}", percent(kind.rate, 1)] for kind in table],
    )


def _characters(ids: Any) -> list[Any]:
    from mrt5cli.analysis.characters import characters

    return characters(ids.tolist())
