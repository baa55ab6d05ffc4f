"""`mrt5 evaluate`: runs on held-out data, in one table."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mrt5cli.commands.progress import examples_done
from mrt5cli.commands.tables import MISSING, duration, number, percent, print_table
from mrt5cli.errors import UserError

if TYPE_CHECKING:
    from mrt5cli.evaluation.compare import Comparison, Result
    from mrt5cli.evaluation.rows import Row
    from mrt5cli.evaluation.subject import Subject

HARDLY_READ = 0.1
"""A source whose removal costs less than this share of the loss is hardly read; see `_notes`."""


def evaluate(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run directories, checkpoint directories or Hub ids."),
    ],
    task: Annotated[
        str | None,
        typer.Option(help="A kind of task, or a recipe whose task to use. Default: the first run's own."),
    ] = None,
    split: Annotated[Literal["validation", "test"], typer.Option(help="Which held-out split.")] = "test",
    hard: Annotated[
        bool | None,
        typer.Option(
            "--hard/--soft", help="Delete for real, or gate softly as in training. Default: the recipe's."
        ),
    ] = None,
    runtime: Annotated[bool, typer.Option("--runtime", help="Also time forward passes.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Examples a language. Default: the recipe's.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples a batch. Default: the recipe's.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ... Default: a GPU if there is one.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of a table.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON document to this file.")] = None,
) -> None:
    """Measure runs on held-out data: quality and deletion together, and what the source is worth.

    Results of a run are also saved in its eval/ folder.

    Examples:

      mrt5 evaluate runs/quickstart-mrt5-seed42

      mrt5 evaluate runs/byt5-seed1 runs/mrt5-seed1 --limit 1000

      mrt5 evaluate runs/mrt5-seed1 --task vowel_removal --soft --json
    """
    from mrt5cli import runtime as machine
    from mrt5cli.evaluation.compare import compare
    from mrt5cli.evaluation.subject import choose_task, find_subject
    from mrt5cli.recipe import EvaluationSection
    from mrt5cli.rundir import write_json

    if out is not None:
        _check_writable(out)
    subjects = [find_subject(run) for run in runs]
    section = choose_task(task, subjects[0])
    if task is None:
        _check_one_task(subjects)
    recipe = subjects[0].recipe
    settings = EvaluationSection() if recipe is None else recipe.evaluation
    with examples_done(limit or settings.examples) as progress:
        comparison = compare(
            subjects,
            section,
            split=split,
            hard_delete=settings.hard_delete if hard is None else hard,
            batch_size=batch_size or settings.batch_size,
            limit=limit or settings.examples,
            runtime=runtime,
            device=machine.device(device),
            progress=progress,
        )
    if out is not None:
        write_json(out, comparison.document())
    for line in comparison.save():
        print(line, file=sys.stderr)
    if as_json:
        print(json.dumps(comparison.document(), indent=2, ensure_ascii=False))
    else:
        present(comparison)


def _check_writable(out: Path) -> None:
    """Say before measuring, not after, that there is nowhere to write."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        reason = "it is a directory" if out.is_dir() else None
        if not os.access(out.parent, os.W_OK):
            reason = "no permission"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise UserError(f"{out} cannot be written: {reason}", "choose another file for --out")


def _check_one_task(subjects: Sequence[Subject]) -> None:
    """Without --task, all runs must have been trained on what the first one was."""
    first = subjects[0]
    for other in subjects[1:]:
        if other.recipe is None or first.recipe is None:
            continue
        unlike = _what_differs(first.recipe.task, other.recipe.task)
        if unlike:
            raise UserError(
                f"{first.name} and {other.name} were trained on different tasks ({unlike})",
                "name the one to measure them on with --task",
            )


def _what_differs(first: object, other: object) -> str:
    a, b = (task.model_dump() for task in (first, other))  # type: ignore[attr-defined]
    keys = [key for key in {**a, **b} if key != "train_examples" and a.get(key) != b.get(key)]
    return ", ".join(f"{key}: {a.get(key)} and {b.get(key)}" for key in keys[:1])


def present(comparison: Comparison) -> None:
    """Print one table: a line a run, or a line a language of a single run, and one without the source."""
    results, kind = comparison.results, comparison.task["kind"]
    print(
        f"{kind}, {comparison.split} split, {results[0].summary.examples:,} examples, "
        f"{'hard' if comparison.hard_delete else 'soft'} deletion, batches of {comparison.batch_size}, "
        f"{results[0].conditions['device_name']}, {results[0].conditions['dtype']}\n"
    )
    by_subset = len(results) == 1 and len(results[0].rows) > 1
    lines: list[tuple[str, Row, Result | None]]
    if by_subset:
        lines = [(row.subset, row, results[0]) for row in results[0].rows]
    else:
        lines = [(result.subject.name, result.summary, result) for result in results]
        lines.append(("source removed", results[0].summary.without_source(), None))
    language_model = kind == "span_corruption"
    columns = _columns(
        several=len(results) > 1,
        language_model=language_model,
        each_without_source=language_model and (by_subset or len(results) > 1),
    )
    table = [[cell(label, row, result) for _, cell in columns] for label, row, result in lines]
    filled = [place for place in range(len(columns)) if any(cells[place] != MISSING for cells in table)]
    print_table(
        [columns[place][0] for place in filled], [[cells[place] for place in filled] for cells in table]
    )
    print("\n" + "\n".join(_notes(comparison)))


Cell = Callable[[str, "Row", "Result | None"], str]


def _columns(*, several: bool, language_model: bool, each_without_source: bool) -> list[tuple[str, Cell]]:
    """Headers and what fills the cells under them; a column no cell of which is filled is not shown."""
    columns: list[tuple[bool, str, Cell]] = [
        (True, "", lambda label, row, result: label),
        (True, "deleted\n%", lambda label, row, result: percent(row.deletion_rate, 1)),
        (
            True,
            "target\n%",
            lambda label, row, result: percent(result.target_deletion_rate if result else None, 1),
        ),
        (True, "loss", lambda label, row, result: number(row.loss, 4)),
        (
            each_without_source,
            "source\nremoved",
            lambda label, row, result: number(row.source_removed_loss, 4),
        ),
        (
            language_model or not several,
            "bits/\nbyte",
            lambda label, row, result: number(row.bits_per_byte, 3),
        ),
        (not several, "kept\nmean", lambda label, row, result: number(row.kept_length, 1)),
        (not several, "kept\nlongest", lambda label, row, result: number(row.new_length, 1)),
        (True, "token\nacc. %", lambda label, row, result: percent(row.token_accuracy, 2)),
        (True, "seq.\nacc. %", lambda label, row, result: percent(row.sequence_accuracy, 2)),
        (True, "gate\nprec.", lambda label, row, result: number(row.gate_precision, 3)),
        (True, "gate\nrecall", lambda label, row, result: number(row.gate_recall, 3)),
        (True, "ms per\nexample", lambda label, row, result: number(row.ms_per_example, 2)),
        (several, "trained", lambda label, row, result: duration(result.train_seconds if result else None)),
    ]
    return [(header, cell) for wanted, header, cell in columns if wanted]


def _notes(comparison: Comparison) -> list[str]:
    """What the numbers are of, and a warning about every model that hardly reads its source."""
    first = comparison.results[0].subject.name
    pooling = [result.subject.name for result in comparison.results if result.pools]
    pooled = ", or that are pooled into another" if pooling else ""
    notes = [
        "deleted: share of input positions (EOS counts, padding does not) whose gate is below the threshold"
        + pooled,
        f"source removed: the same targets while the encoder of {first} sees a lone EOS; losses in nats",
    ]
    if any(result.summary.gate_recall is not None for result in comparison.results):
        notes.append("gate precision, recall: deleted letters against those the target does not need, 0 to 1")
    if pooling and not comparison.hard_delete:
        notes.append(f"pooling has no soft mode; pooled as with --hard: {', '.join(pooling)}")
    for result in comparison.results:
        row = result.summary
        if result.deletion_type == "source_removed":
            notes.append(f"{result.subject.name} reads a lone EOS whatever its source is: nothing to remove")
            continue
        if row.loss is None or row.source_removed_loss is None:
            continue
        worth = row.source_removed_loss - row.loss
        if worth < HARDLY_READ * row.source_removed_loss:
            notes.append(
                f"warning: removing its source costs {result.subject.name} {worth:.2f} nats: it hardly reads "
                "its input, so deleting bytes looks free and says little"
            )
    return notes
