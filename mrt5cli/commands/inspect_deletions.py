"""`mrt5 inspect-deletions`: the text with deleted bytes or pooled segments marked, and what goes counted."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mrt5cli import bounds
from mrt5cli.commands import options
from mrt5cli.commands.options import amount, argument, named, option, path
from mrt5cli.commands.tables import print_table
from mrt5cli.errors import UserError
from mrt5cli.output import print_json
from mrt5cli.text import number, percent, say, say_on_stderr

if TYPE_CHECKING:
    from mrt5cli.analysis.deletions import InspectedRow
    from mrt5cli.analysis.inspection import Inspection
    from mrt5cli.models import MrT5ForConditionalGeneration
    from mrt5cli.subject import Subject

EXAMPLES = 5
PIECES = 20
LENGTH_WITHOUT_RECIPE = 1024


Run = Annotated[str, argument(options.ANY_MODEL, "RUN")]
Text = Annotated[str | None, option("Inspect this text.", metavar="TEXT")]
File = Annotated[Path | None, path("Inspect this file; any bytes will do.", metavar="FILE")]
Task = Annotated[
    str | None, named("Inspect test examples of this kind of task, or of this recipe's.", metavar="TASK")
]
Limit = Annotated[
    int | None, amount(f"Examples ({EXAMPLES}), or pieces of a long text ({PIECES}).", bounds.EXAMPLES)
]


def inspect_deletions(
    run: Run,
    revision: options.Revision = None,
    text: Text = None,
    file: File = None,
    task: Task = None,
    limit: Limit = None,
    threshold: options.Threshold = None,
    device: options.Device = "auto",
    no_pickle: options.NoPickle = False,
    code: options.Code = None,
    as_json: options.AsJson = False,
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
    from mrt5cli.analysis.inspection import Inspection
    from mrt5cli.subject import find_subjects, load_model

    if sum(given is not None for given in (text, file, task)) > 1:
        raise UserError("give one of --text, --file and --task")
    content = None if text is None else text.encode("utf-8", "surrogateescape")
    if file is not None:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}", "give a file to read") from error
    if content == b"":
        raise UserError(f"{file or '--text'} is empty: there is nothing to delete")
    (subject,) = find_subjects([run], revision, allow_pickle=not no_pickle)
    model = load_model(subject, runtime.device(device))
    _check_shortens(model, subject, threshold)
    torch.manual_seed(0)  # the reference's formulas draw in evaluation too
    if content is None:
        rows = _task_rows(model, subject, task, limit or EXAMPLES, threshold)
    else:
        rows = _text_rows(model, subject, content, limit or PIECES, threshold)
    config = model.config
    in_force = config.threshold if threshold is None else threshold
    inspection = Inspection(subject.name, config.deletion_type, in_force, rows)
    if as_json:
        print_json(inspection.document())
    else:
        _present(inspection)


def _check_shortens(model: MrT5ForConditionalGeneration, subject: Subject, threshold: float | None) -> None:
    """Refuse a model that deletes nothing, and a threshold that is not between deleting and keeping."""
    from mrt5cli.generation.calibration import check_threshold
    from mrt5cli.recipe.shorteners import of_type

    kind = of_type(model.config.deletion_type)
    if kind.refuses_inspection:
        raise UserError(
            f"{subject.name} {kind.refuses_inspection}",
            "inspect-deletions needs a run with a shortener; `mrt5 pretrain local_text` trains one",
        )
    if threshold is not None:
        check_threshold(model.config, subject.name, threshold)


def _text_rows(
    model: MrT5ForConditionalGeneration, subject: Subject, content: bytes, limit: int, threshold: float | None
) -> list[InspectedRow]:
    from mrt5cli.analysis.deletions import inspect_text
    from mrt5cli.recipe import DiagnosticTask

    task = None if subject.recipe is None else subject.recipe.task
    length = LENGTH_WITHOUT_RECIPE if task is None else task.longest_source
    if isinstance(task, DiagnosticTask) and not content.startswith(b"#"):
        say_on_stderr("this model was trained on strings that begin with '#'; this text does not")
    if model.config.has_absolute_position_embeddings:
        length = min(length, model.config.max_position_embeddings)
    rows = inspect_text(model, content, length, limit=limit, threshold=threshold)
    shown = sum(len(row.ids) - 1 for row in rows)  # each piece ends with an EOS that the text does not have
    if shown < len(content):
        say_on_stderr(
            f"only the first {shown:,} of {len(content):,} bytes are inspected; --limit takes more pieces "
            f"of {length} byte tokens than {limit}"
        )
    return rows


def _task_rows(
    model: MrT5ForConditionalGeneration,
    subject: Subject,
    option: str | None,
    limit: int,
    threshold: float | None,
) -> list[InspectedRow]:
    """Rows of a task's test examples."""
    from mrt5cli.analysis.deletions import inspect_task
    from mrt5cli.subject import check_fits, choose_task
    from mrt5cli.tasks.base import build_task

    section = choose_task(option, subject)
    check_fits(model, section, subject.name)
    task = build_task(section)
    subsets = task.subsets("test")
    shares = {
        subset: limit // len(subsets) + (place < limit % len(subsets))
        for place, subset in enumerate(subsets[:limit])
    }
    found = inspect_task(model, task, shares, batch_size=8, threshold=threshold)
    rows: list[InspectedRow] = []
    for subset, part in found.items():
        of = f" ({subset})" if len(subsets) > 1 else ""
        rows += [replace(row, label=f"example {n}{of}") for n, row in enumerate(part, len(rows) + 1)]
    return rows


def _present(found: Inspection) -> None:
    """Print the rows with deletions or segments marked, the rate, and what was counted as tables."""
    from rich.console import Console

    from mrt5cli.analysis.marked_text import coloured, legend, plain
    from mrt5cli.data.characters import characters

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    colour = console.color_system is not None and not console.no_color
    marked = [row.marked for row in found.rows]
    for row, text in zip(found.rows, marked, strict=True):
        if len(found.rows) > 1:
            gone = "pooled away" if found.pools else "deleted"
            say(f"{row.label}, {percent(row.rate.value, 1)} % {gone}")
        console.print(coloured(text), soft_wrap=True) if colour else print(plain(text))
        if row.target is not None and not row.sentinels:
            say(f"target: {''.join(one.visible for one in characters(row.target.tolist()))}")
    explained = legend(marked, colour=colour)
    say(f"\n{explained}\n" if explained else "")
    _present_pooling(found) if found.pools else _present_deletion(found)


def _present_deletion(found: Inspection) -> None:
    say(
        f"{found.name} deletes {int(found.rate.total):,} of {found.rate.count:,} positions "
        f"({percent(found.rate.value, 1)} %), gate threshold {found.threshold:g}"
    )
    if found.agreement is not None:
        precision, recall = (percent(value, 1) for value in found.agreement)
        say(
            f"of the letters it deletes {precision} % are not needed for the target; of those not needed it "
            f"deletes {recall} %"
        )
    say()
    print_table(
        ["kind of byte", "count", "deleted", "%"],
        [
            [kind, f"{of.count:,}", f"{of.total:,.0f}", percent(of.value, 1)]
            for kind, of in found.kinds.items()
        ],
    )


def _present_pooling(found: Inspection) -> None:
    from mrt5cli.analysis.inspection import Segments

    segments = Segments.of(found.rows)
    say(
        f"{found.name} pools {found.rate.count:,} positions into {segments.count:,} "
        f"({percent(found.rate.value, 1)} % are gone), {number(segments.mean_length, 2)} a segment; segments "
        f"that start inside a character: {segments.inside_characters:,}"
    )
    if segments.dropped_positions:
        say(
            "positions dropped at the ends of rows, where they fill no window (the reference's formula, "
            f"per: batch): {segments.dropped_positions:,}"
        )
    say()
    print_table(
        ["positions", "segments", "%"],
        [
            [f"{length:,}", f"{count:,}", percent(count / segments.count, 1)]
            for length, count in segments.lengths.items()
        ],
    )
    say()
    print_table(
        ["kind of byte", "count", "start a segment", "%"],
        [
            [kind, f"{of.count:,}", f"{of.count - of.total:,.0f}", percent(1 - of.total / of.count, 1)]
            for kind, of in found.kinds.items()
        ],
    )
