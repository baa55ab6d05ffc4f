"""`mrt5 inspect-deletions`: the text with deleted bytes or pooled segments marked, and what goes counted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mrt5cli import bounds
from mrt5cli.bars import bars
from mrt5cli.commands import options
from mrt5cli.commands.options import amount, argument, named, option, path, written
from mrt5cli.commands.tables import print_table
from mrt5cli.errors import UserError, not_written
from mrt5cli.output import print_json
from mrt5cli.places import shown
from mrt5cli.text import counted, listed, number, percent, say, say_on_stderr, visible
from mrt5cli.writing import write_text

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from mrt5cli.analysis.deletions import InspectedRow
    from mrt5cli.analysis.inspection import Inspection
    from mrt5cli.analysis.marked_text import Run
    from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
    from mrt5cli.subject import Subject

    Progress = Callable[[int, int], None]
    Look = Callable[[Subject, MrT5ForConditionalGeneration, Progress], list[InspectedRow]]

EXAMPLES = 5
PIECES = 20
LENGTH_WITHOUT_RECIPE = 1024
FEW_CHECKPOINTS = 3
MANY_POSITIONS = 100_000
FINISHED = "finished"


Runs = Annotated[list[str], argument(f"{options.ANY_MODEL[:-1]}; several are set side by side.", "RUN")]
Text = Annotated[str | None, option("Inspect this text.", metavar="TEXT")]
File = Annotated[Path | None, path("Inspect this file; any bytes will do.", metavar="FILE")]
Task = Annotated[
    str | None, named("Inspect test examples of this kind of task, or of this recipe's.", metavar="TASK")
]
Limit = Annotated[
    int | None, amount(f"Examples ({EXAMPLES}), or pieces of a long text ({PIECES}).", bounds.EXAMPLES)
]
Html = Annotated[
    Path | None,
    written(
        "Write a page for a browser: every byte's gate value, and a threshold that can be moved.", "--html"
    ),
]
Heatmap = Annotated[
    bool, option("Show every checkpoint of one run, to see how its deletion develops.", "--heatmap")
]


def inspect_deletions(
    runs: Runs,
    revision: options.Revision = None,
    text: Text = None,
    file: File = None,
    task: Task = None,
    limit: Limit = None,
    threshold: options.Threshold = None,
    html: Html = None,
    heatmap: Heatmap = False,
    device: options.Device = "auto",
    no_pickle: options.NoPickle = False,
    code: options.Code = None,
    as_json: options.AsJson = False,
) -> None:
    """Show which bytes models delete, and count them by kind; where bytes are pooled, the segments.

    Without --text, --file or --task: test examples of the (first) run's own task.

    Examples:

      mrt5 inspect-deletions runs/quickstart-mrt5-seed42

      mrt5 inspect-deletions runs/mrt5-seed1 --text "Was bleibt, und was geht?"

      mrt5 inspect-deletions runs/mrt5-seed1 --file book.txt --limit 3 --json

      mrt5 inspect-deletions runs/mrt5-seed1 runs/bp-seed1 --html gates.html

      mrt5 inspect-deletions runs/mrt5-seed1 --heatmap --limit 1
    """
    if sum(given is not None for given in (text, file, task)) > 1:
        raise UserError("give one of --text, --file and --task")
    if heatmap and len(runs) > 1:
        raise UserError(
            f"--heatmap shows the checkpoints of one run, and {len(runs)} are named",
            "name one; without --heatmap several models are set side by side",
        )
    if html is not None and file is not None and html.resolve() == file.resolve():
        raise UserError(f"--file and --html are both {file}", "choose another name for the page")
    content = None if text is None else text.encode("utf-8", "surrogateescape")
    if file is not None:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}", "give a file to read") from error
    if content == b"":
        raise UserError(f"{file or '--text'} is empty: there is nothing to delete")
    # After what needs no torch, which takes seconds to import.
    from mrt5cli import runtime
    from mrt5cli.models import read_config
    from mrt5cli.subject import find_subjects

    subjects = find_subjects(runs, revision, allow_pickle=not no_pickle)
    if heatmap:
        subjects = _history(subjects[0])
    configs = [read_config(subject.source) for subject in subjects]
    for subject, config in zip(subjects, configs, strict=True):
        _check_shortens(config, subject, threshold)
    if content is None:
        look = _at_task(subjects, task, limit or EXAMPLES, threshold)
    else:
        look = _at_text(subjects, configs, content, limit or PIECES, threshold)
    found = _inspected(subjects, look, threshold, runtime.device(device))
    labels = [_label(subject, heatmap) for subject in subjects]
    if html is not None:
        _write_page(html, found, labels, subjects[0].run.path.name if heatmap and subjects[0].run else None)
    if as_json:
        documents = [one.document() for one in found]
        if heatmap:
            steps = [
                {"step": one.step, **document} for one, document in zip(subjects, documents, strict=True)
            ]
            print_json({"name": runs[0], "checkpoints": steps})
        else:
            print_json(documents[0] if len(documents) == 1 else {"models": documents})
    elif html is not None:
        for one in found:
            say(_summary(one))
        say(f"{html} is written: open it in a browser")
    elif len(found) == 1:
        _present(found[0])
    else:
        _present_beside(found, labels, heatmap)


def _history(subject: Subject) -> list[Subject]:
    """Its run's `history`; refused where there is little or nothing to see."""
    from mrt5cli.subject import history

    if subject.run is None:
        raise UserError(
            f"{subject.name} is no run directory, and --heatmap shows the checkpoints of one",
            "name the directory that pretrain or finetune has written",
        )
    if subject.step is not None:
        raise UserError(
            f"{subject.name} is one checkpoint, and --heatmap shows all of a run",
            f"name the run: {shown(subject.run.path)}",
        )
    steps = subject.run.saved_steps()
    if not steps:
        raise UserError(
            f"{subject.run.path} has no checkpoints left to show", "leave out --heatmap to see its model"
        )
    training = None if subject.recipe is None else subject.recipe.training
    if len(steps) < FEW_CHECKPOINTS and training is not None:
        say_on_stderr(
            f"{subject.name} has {counted(len(steps), 'checkpoint')}: it was trained with "
            f"training.keep_checkpoints={training.keep_checkpoints} and training.save_steps="
            f"{training.save_steps}; to see more, train with a larger first or a smaller second"
        )
    return history(subject)


def _label(subject: Subject, heatmap: bool) -> str:
    """What to call a model beside others."""
    if not heatmap:
        return subject.name
    return FINISHED if subject.step is None else f"step {subject.step:,}"


def _check_shortens(config: MrT5Config, subject: Subject, threshold: float | None) -> None:
    """Refuse a model that deletes nothing, and a threshold that is not between deleting and keeping."""
    from mrt5cli.generation.calibration import check_threshold
    from mrt5cli.recipe.shorteners import of_type

    kind = of_type(config.deletion_type)
    if kind.refuses_inspection:
        raise UserError(
            f"{subject.name} {kind.refuses_inspection}",
            "inspect-deletions needs a run with a shortener; `mrt5 pretrain local_text` trains one",
        )
    if threshold is not None:
        check_threshold(config, subject.name, threshold)


def _inspected(
    subjects: Sequence[Subject], look: Look, threshold: float | None, device: torch.device
) -> list[Inspection]:
    """What each model deletes; one is in memory at a time."""
    import torch

    from mrt5cli.analysis.inspection import Inspection
    from mrt5cli.recipe.shorteners import of_config
    from mrt5cli.subject import load_model

    found = []
    alone = len(subjects) == 1
    with bars("inspecting") as bar:
        for number, subject in enumerate(subjects):
            bar(*((subject.name, 0, 0) if alone else ("models", number, len(subjects))))
            model = load_model(subject, device)
            torch.manual_seed(0)  # the reference's formulas draw in evaluation too
            rows = look(subject, model, partial(bar, subject.name) if alone else lambda done, total: None)
            config = model.config
            shortener = of_config(config)
            found.append(
                Inspection(
                    subject.name,
                    config.deletion_type,
                    config.threshold if threshold is None else threshold,
                    rows,
                    lowest=shortener.lowest_gate_value,
                    fixed=shortener.refuses_threshold
                    and shortener.refuses_threshold.format_map(dict(shortener)),
                )
            )
    return found


def _at_text(
    subjects: Sequence[Subject],
    configs: Sequence[MrT5Config],
    content: bytes,
    limit: int,
    threshold: float | None,
) -> Look:
    """A text in pieces that every model can read."""
    from mrt5cli.analysis.deletions import inspect_text, pieces
    from mrt5cli.recipe import DiagnosticTask

    tasks = [None if subject.recipe is None else subject.recipe.task for subject in subjects]
    longest = [LENGTH_WITHOUT_RECIPE if task is None else task.longest_source for task in tasks]
    longest += [one.max_position_embeddings for one in configs if one.has_absolute_position_embeddings]
    length = min(longest)
    of_strings = [
        subject.name
        for subject, task in zip(subjects, tasks, strict=True)
        if isinstance(task, DiagnosticTask)
    ]
    if of_strings and not content.startswith(b"#"):
        was = "was" if len(of_strings) == 1 else "were"
        say_on_stderr(
            f"{listed(of_strings)} {was} trained on strings that begin with '#'; this text does not"
        )
    # Each piece ends with an EOS that the text does not have.
    lengths = [len(piece) - 1 for piece in islice(pieces(content, length), limit)]
    if sum(lengths) < len(content):
        say_on_stderr(
            f"only the first {sum(lengths):,} of {len(content):,} bytes are inspected; --limit takes more "
            f"pieces of {length} byte tokens than {limit}"
        )

    def look(_: Subject, model: MrT5ForConditionalGeneration, progress: Progress) -> list[InspectedRow]:
        return inspect_text(
            model,
            content,
            length,
            limit=limit,
            threshold=threshold,
            progress=lambda done: progress(done, len(lengths)),
        )

    return look


def _at_task(subjects: Sequence[Subject], option: str | None, limit: int, threshold: float | None) -> Look:
    """Test examples of a task, by default of the first model's."""
    from mrt5cli.analysis.deletions import inspect_task
    from mrt5cli.subject import check_fits, choose_task
    from mrt5cli.tasks.base import build_task

    section = choose_task(option, subjects[0])
    others = [one.name for one in subjects if one.recipe is not None and one.recipe.task != section]
    if option is None and others:
        say_on_stderr(f"all read the task of {subjects[0].name}, which is not that of {listed(others)}")
    task = build_task(section)
    subsets = task.subsets("test")
    shares = {
        subset: limit // len(subsets) + (place < limit % len(subsets))
        for place, subset in enumerate(subsets[:limit])
    }

    def look(subject: Subject, model: MrT5ForConditionalGeneration, progress: Progress) -> list[InspectedRow]:
        check_fits(model, section, subject.name)
        rows: list[InspectedRow] = []
        done = dict.fromkeys(shares, 0)

        def tell(subset: str, count: int) -> None:
            done[subset] = count
            progress(sum(done.values()), limit)

        found = inspect_task(model, task, shares, batch_size=8, threshold=threshold, progress=tell)
        for subset, part in found.items():
            of = f" ({subset})" if len(subsets) > 1 else ""
            rows += [replace(row, label=f"example {n}{of}") for n, row in enumerate(part, len(rows) + 1)]
        return rows

    return look


def _write_page(
    file: Path, found: Sequence[Inspection], labels: Sequence[str], history_of: str | None
) -> None:
    from mrt5cli.report.inspection_page import inspection_page

    positions = sum(one.rate.count for one in found)
    if positions > MANY_POSITIONS:
        say_on_stderr(
            f"this page shows {positions:,} bytes, which keeps a browser busy for seconds; a smaller --limit "
            "makes it quick"
        )
    try:
        write_text(file, inspection_page(found, labels, history_of=history_of))
    except OSError as error:
        raise not_written(error) from error


def _present_beside(found: Sequence[Inspection], labels: Sequence[str], heatmap: bool) -> None:
    """Print each row as each model leaves it, one below the other, and what they delete as tables."""
    from mrt5cli.analysis.marked_text import legend

    console = _console()
    colour = console.color_system is not None and not console.no_color
    names = [visible(label, lines=False) for label in labels]
    width = max(map(len, names))
    every = [[row.marked for row in one.rows] for one in found]
    for place, row in enumerate(found[0].rows):
        say(row.label or "text")
        for name, one, texts in zip(names, found, every, strict=True):
            rate = percent(one.rows[place].rate.value, 1)
            _print_marked(console, f"  {name:<{width}}  {rate:>5} %  ", texts[place], colour)
        _say_target(row)
    explained = legend([text for texts in every for text in texts], colour=colour)
    say(f"\n{explained}\n" if explained else "")
    if heatmap:
        rows = []
        for name, one in zip(names, found, strict=True):
            agreed = one.agreement or (None, None)
            rows.append([name, percent(one.rate.value, 1), *(percent(share, 1) for share in agreed)])
        print_table(["", "deleted %", "precision %", "recall %"], rows, only_filled=True)
        return
    for one in found:
        say(_summary(one))
    say()
    kinds = [one.kinds for one in found]
    print_table(
        ["kind of byte", "count", *(f"{name}\ndeleted %" for name in names)],
        [
            [kind, f"{of.count:,}", *(percent(table[kind].value, 1) for table in kinds)]
            for kind, of in kinds[0].items()
        ],
    )


def _console() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def _print_marked(console: Console, lead: str, text: Sequence[Run], colour: bool) -> None:
    from mrt5cli.analysis.marked_text import coloured, plain

    if lead and any("\n" in run.text for run in text[:-1]):
        lead = lead.rstrip() + "\n"
    if colour:
        console.print(lead, coloured(text), sep="", soft_wrap=True)
    else:
        print(lead + plain(text))


def _say_target(row: InspectedRow) -> None:
    from mrt5cli.data.characters import characters

    if row.target is not None and not row.sentinels:
        say(f"target: {''.join(one.visible for one in characters(row.target.tolist()))}")


def _summary(found: Inspection) -> str:
    """What one model does to all rows, in a sentence."""
    from mrt5cli.analysis.inspection import Segments
    from mrt5cli.recipe.shorteners import of_type

    share = percent(found.rate.value, 1)
    if not found.pools:
        has_threshold = of_type(found.deletion_type).refuses_threshold is None
        return (
            f"{found.name} deletes {int(found.rate.total):,} of {found.rate.count:,} positions ({share} %)"
            + (f", gate threshold {found.threshold:g}" if has_threshold else "")
        )
    segments = Segments.of(found.rows)
    return (
        f"{found.name} pools {found.rate.count:,} positions into {segments.count:,} "
        f"({share} % are gone), {number(segments.mean_length, 2)} a segment; segments "
        f"that start inside a character: {segments.inside_characters:,}"
    )


def _present(found: Inspection) -> None:
    """Print the rows with deletions or segments marked, the rate, and what was counted as tables."""
    from mrt5cli.analysis.marked_text import legend

    console = _console()
    colour = console.color_system is not None and not console.no_color
    marked = [row.marked for row in found.rows]
    for row, text in zip(found.rows, marked, strict=True):
        if len(found.rows) > 1:
            gone = "pooled away" if found.pools else "deleted"
            say(f"{row.label}, {percent(row.rate.value, 1)} % {gone}")
        _print_marked(console, "", text, colour)
        _say_target(row)
    explained = legend(marked, colour=colour)
    say(f"\n{explained}\n" if explained else "")
    say(_summary(found))
    _present_pooling(found) if found.pools else _present_deletion(found)


def _present_deletion(found: Inspection) -> None:
    if found.agreement is not None:
        precision, recall = found.agreement
        kept = (
            "it deletes no letter"
            if precision is None
            else f"of the letters it deletes {percent(precision, 1)} % are not needed for the target"
        )
        gone = (
            "every letter is needed"
            if recall is None
            else f"of those not needed it deletes {percent(recall, 1)} %"
        )
        say(f"{kept}; {gone}")
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
