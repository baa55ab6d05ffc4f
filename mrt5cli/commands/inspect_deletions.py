"""`mrt5 inspect-deletions`: the text with deleted bytes or pooled segments marked, and what goes counted."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrt5cli import bounds, places
from mrt5cli.commands.model_options import Code, NoPickle, Revision
from mrt5cli.commands.tables import print_table
from mrt5cli.errors import UserError
from mrt5cli.output import print_json
from mrt5cli.text import columns, number, percent, say

if TYPE_CHECKING:
    from mrt5cli.analysis.deletions import InspectedRow
    from mrt5cli.subject import Subject

EXAMPLES = 5
PIECES = 20
LENGTH_WITHOUT_RECIPE = 1024


def inspect_deletions(
    run: Annotated[
        str,
        typer.Argument(
            parser=places.place,
            metavar="RUN",
            help="A run directory, checkpoint directory or Hub id.",
        ),
    ],
    revision: Revision = None,
    text: Annotated[str | None, typer.Option(help="Inspect this text.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            parser=places.path,
            help="Inspect this file; any bytes will do.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            parser=places.place,
            metavar="TASK",
            help="Inspect test examples of this kind of task, or of this recipe's.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, max=bounds.EXAMPLES, help=f"Examples ({EXAMPLES}), or pieces of a long text ({PIECES})."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=-bounds.COEFFICIENT,
            max=bounds.COEFFICIENT,
            help="Delete gate values up to this one. Default: the model's own threshold.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ... Default: a GPU if there is one.")
    ] = None,
    no_pickle: NoPickle = False,
    code: Code = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
) -> None:
    """Show which bytes a model deletes, and count them by kind; where bytes are pooled, the segments.

    Without --text, --file or --task: test examples of the run's own task.

    Examples:

      mrt5 inspect-deletions runs/quickstart-mrt5-seed42

      mrt5 inspect-deletions runs/mrt5-seed1 --text "Was bleibt, und was geht?"

      mrt5 inspect-deletions runs/mrt5-seed1 --file book.txt --limit 3 --json
    """
    import torch

    from mrt5cli import runtime
    from mrt5cli.subject import find_subjects, load_model

    if sum(given is not None for given in (text, file, task)) > 1:
        raise UserError("give one of --text, --file and --task")
    content = _content(text, file)
    (subject,) = find_subjects([run], revision, allow_pickle=not no_pickle)
    model = load_model(subject, runtime.device(device))
    _check_shortens(model, subject)
    if threshold is not None:
        _check_threshold(model, subject, threshold)
    torch.manual_seed(0)  # the reference's laws draw in evaluation too
    if content is None:
        rows, sentinels = _task_rows(model, subject, task, limit or EXAMPLES, threshold)
    else:
        rows, sentinels = _text_rows(model, subject, content, limit or PIECES, threshold), 0
    in_force = model.config.deletion_threshold if threshold is None else threshold
    kind = model.config.deletion_type
    if as_json:
        print_json(document(rows, subject.name, kind, in_force, sentinels))
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


def _check_shortens(model: Any, subject: Subject) -> None:
    from mrt5cli.recipe.shorteners import of_type

    kind = of_type(model.config.deletion_type)
    if not (kind.gates or kind.pools):
        plain = "has no delete gate: a plain ByT5 deletes nothing"
        gone = "reads no source: its encoder sees a lone EOS, whatever the text is"
        raise UserError(
            f"{subject.name} {plain if kind.reads_source else gone}",
            "inspect a run whose recipe has a model.shortener that reads",
        )


def _check_threshold(model: Any, subject: Subject, threshold: float) -> None:
    from mrt5cli.recipe.shorteners import of_config

    shortener = of_config(model.config)
    if shortener.refuses_threshold:
        why = shortener.refuses_threshold.format_map(dict(shortener))
        raise UserError(
            f"{subject.name} {why}, so --threshold {threshold:g} has no meaning",
            "leave --threshold out",
        )
    lowest = shortener.lowest_gate_value
    if not lowest < threshold < 0:
        raise UserError(
            f"--threshold {threshold:g} is not a gate value that parts deleted from kept bytes",
            f"gate values run from {lowest:g} (delete) to 0 (keep); this model parts at "
            f"{model.config.deletion_threshold:g}",
        )


def _text_rows(
    model: Any, subject: Subject, content: bytes, limit: int, threshold: float | None
) -> list[InspectedRow]:
    from mrt5cli.analysis.deletions import inspect_text
    from mrt5cli.subject import DIAGNOSTIC_KINDS

    task = None if subject.recipe is None else subject.recipe.task
    length = LENGTH_WITHOUT_RECIPE if task is None else task.longest_source
    if task is not None and task.kind in DIAGNOSTIC_KINDS and not content.startswith(b"#"):
        say("this model was trained on strings that begin with '#'; this text does not", sys.stderr)
    if model.config.has_absolute_position_embeddings:
        length = min(length, model.config.max_position_embeddings)
    rows = inspect_text(model, content, length, limit=limit, threshold=threshold)
    shown = sum(len(row.ids) - 1 for row in rows)  # each piece ends with an EOS that the text does not have
    if shown < len(content):
        say(
            f"only the first {shown:,} of {len(content):,} bytes are inspected; --limit takes more pieces "
            f"of {length} byte tokens than {limit}",
            sys.stderr,
        )
    return rows


def _task_rows(
    model: Any, subject: Subject, option: str | None, limit: int, threshold: float | None
) -> tuple[list[InspectedRow], int]:
    """Rows of a task's test examples, and how many sentinels there are in them."""
    from mrt5cli.analysis.deletions import inspect_batch
    from mrt5cli.subject import check_fits, choose_task
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
    return rows, task.sentinels


def document(
    rows: Sequence[InspectedRow], name: str, deletion_type: str, threshold: float, sentinels: int
) -> dict[str, Any]:
    """What is shown, exactly, for JSON; `threshold` and `gate` are null where bytes are pooled."""
    from mrt5cli.analysis.deletions import kind_table, total_rate
    from mrt5cli.analysis.marked_text import plain

    rate, pools = total_rate(rows), _pools(rows)
    return {
        "name": name,
        "deletion_type": deletion_type,
        "threshold": None if pools else threshold,
        "positions": rate.count,
        "deleted": int(rate.total),
        "deletion_rate": rate.value,
        **_agreement(rows),
        **_segments(rows),
        "kinds": [
            {"kind": kind.kind, "count": kind.count, "deleted": kind.deleted, "rate": kind.rate}
            for kind in kind_table(rows, sentinels=sentinels)
        ],
        "rows": [
            {
                "label": row.label,
                "marked": plain(_marked(row, sentinels)),
                "ids": row.ids.tolist(),
                "deleted": row.deleted.astype(int).tolist(),
                "gate": None if row.gate is None else [round(value, 4) for value in row.gate.tolist()],
                "segments": row.segments,
                "deletable": None if row.deletable is None else row.deletable.astype(int).tolist(),
                "target": None if row.target is None else row.target.tolist(),
                "deletion_rate": row.rate.value,
            }
            for row in rows
        ],
    }


def _pools(rows: Sequence[InspectedRow]) -> bool:
    return rows[0].gate is None


def _marked(row: InspectedRow, sentinels: int) -> list[Any]:
    from mrt5cli.analysis.marked_text import runs, segment_runs

    characters = row.characters(sentinels=sentinels)
    if row.gate is None:
        return segment_runs(characters, row.starts.tolist())
    return runs(characters, row.deleted.tolist())


def _segments(rows: Sequence[InspectedRow]) -> dict[str, Any]:
    """How long pooled segments are; nothing where bytes are deleted."""
    from mrt5cli.analysis.deletions import length_table, starts_inside_characters

    if not _pools(rows):
        return {}
    table = length_table(rows)
    count = sum(line.count for line in table)
    return {
        "segments": {
            "count": count,
            "mean_length": sum(line.length * line.count for line in table) / count,
            "inside_characters": starts_inside_characters(rows),
            "dropped_positions": sum(row.dropped for row in rows),
            "lengths": [{"length": line.length, "count": line.count} for line in table],
        }
    }


def _agreement(rows: Sequence[InspectedRow]) -> dict[str, float | None]:
    """Precision and recall against what the task does not need; nothing where no task says so."""
    from mrt5cli.metrics.counts import Ratio, gate_precision, gate_recall

    # What is pooled away is not lost, so it is neither right nor wrong.
    known = [
        (row.deleted, row.deletable, row.ids)
        for row in rows
        if row.deletable is not None and row.gate is not None
    ]
    if not known:
        return {}
    return {
        "gate_precision": sum((gate_precision(*row) for row in known), Ratio()).value,
        "gate_recall": sum((gate_recall(*row) for row in known), Ratio()).value,
    }


def present(rows: Sequence[InspectedRow], name: str, threshold: float, sentinels: int) -> None:
    """Print the rows with deletions or segments marked, the rate, and what was counted as tables."""
    from rich.console import Console

    from mrt5cli.analysis.marked_text import coloured, fitted, legend, plain

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    pools = _pools(rows)
    marked = [_marked(row, sentinels) for row in rows]
    width = columns(sys.stdout)
    for row, found in zip(rows, marked, strict=True):
        shown = fitted(found, width, colour=colour)
        if len(rows) > 1:
            say(f"{row.label}, {percent(row.rate.value, 1)} % {'pooled away' if pools else 'deleted'}")
        if colour:
            console.print(coloured(shown), soft_wrap=True)
        else:
            print(plain(shown))
        if row.target is not None and not sentinels:
            say(f"target: {''.join(character.visible for character in _characters(row.target))}")
    explained = legend(marked, colour=colour)
    say(f"\n{explained}\n" if explained else "")
    if pools:
        _present_pooling(rows, name, sentinels)
    else:
        _present_deletion(rows, name, threshold, sentinels)


def _present_deletion(rows: Sequence[InspectedRow], name: str, threshold: float, sentinels: int) -> None:
    from mrt5cli.analysis.deletions import kind_table, total_rate

    rate = total_rate(rows)
    say(
        f"{name} deletes {int(rate.total):,} of {rate.count:,} positions ({percent(rate.value, 1)} %), "
        f"gate threshold {threshold:g}"
    )
    agreement = _agreement(rows)
    if agreement:
        say(
            f"of the letters it deletes {percent(agreement['gate_precision'], 1)} % are not needed for the "
            f"target; of those not needed it deletes {percent(agreement['gate_recall'], 1)} %"
        )
    say()
    table = kind_table(rows, sentinels=sentinels)
    print_table(
        ["kind of byte", "count", "deleted", "%"],
        [[kind.kind, f"{kind.count:,}", f"{kind.deleted:,}", percent(kind.rate, 1)] for kind in table],
    )


def _present_pooling(rows: Sequence[InspectedRow], name: str, sentinels: int) -> None:
    from mrt5cli.analysis.deletions import kind_table, total_rate

    rate, segments = total_rate(rows), _segments(rows)["segments"]
    say(
        f"{name} pools {rate.count:,} positions into {segments['count']:,} ({percent(rate.value, 1)} % are "
        f"gone), {number(segments['mean_length'], 2)} a segment; segments that start inside a character: "
        f"{segments['inside_characters']:,}"
    )
    if segments["dropped_positions"]:
        say(
            "positions dropped at the ends of rows, where they fill no window (the reference's law, per: "
            f"batch): {segments['dropped_positions']:,}"
        )
    say()
    print_table(
        ["positions", "segments", "%"],
        [
            [f"{line['length']:,}", f"{line['count']:,}", percent(line["count"] / segments["count"], 1)]
            for line in segments["lengths"]
        ],
    )
    say()
    print_table(
        ["kind of byte", "count", "start a segment", "%"],
        [
            [kind.kind, f"{kind.count:,}", f"{kind.count - kind.deleted:,}", percent(1 - kind.rate, 1)]
            for kind in kind_table(rows, sentinels=sentinels)
        ],
    )


def _characters(ids: Any) -> list[Any]:
    from mrt5cli.data.characters import characters

    return characters(ids.tolist())
