"""The output of `mrt5 evaluate`, in sections, for the terminal and, with figures, for an HTML page."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mrt5cli.commands.tables import print_table
from mrt5cli.metrics.catalog import METRICS, WHOLE_TARGETS, generates, metric_of
from mrt5cli.report.html import Section, page
from mrt5cli.report.tables import Table
from mrt5cli.text import MISSING, counted, duration, percent, say

if TYPE_CHECKING:
    from mrt5cli.evaluation.compare import Comparison, Result
    from mrt5cli.evaluation.published import PublishedRow
    from mrt5cli.metrics.results import Row
    from mrt5cli.report.figures.style import Drawing

    Line = tuple[str, Row, Result | None]
    Column = tuple[str, Callable[[Line], str]]

HARDLY_READ = 0.1
"""Fraction of the loss; a model hardly reads its source if removing it costs less. See `_result_note`."""


def present(comparison: Comparison) -> None:
    """Print the results, one line per run or, for a single run, per language, and the other sections."""
    blocks: list[str | Table] = []
    for section in _sections(comparison):
        about = [section.about, *(f"  {command}" for command in section.commands)]
        blocks.append("\n".join(about))
        for table in section.tables:
            blocks += [table.title, table]
        blocks.append("\n".join(section.notes))
    for place, block in enumerate(block for block in blocks if block):
        say() if place else None
        if isinstance(block, Table):
            print_table(block.headers, block.rows)
        else:
            say(block)


def to_page(comparison: Comparison) -> str:
    """The same as a self-contained HTML page, with figures, and a table per run of its languages."""
    from mrt5cli.extras import how_to_install
    from mrt5cli.report.page import NO_FIGURES, can_draw

    results, unfinished = comparison.results, comparison.unfinished
    names = list(dict.fromkeys(result.subject.name for result in results))
    lead = "" if unfinished is None else f"Unfinished: {unfinished}. "
    if not can_draw():
        lead += NO_FIGURES.format(how_to_install("plots"))
    if unfinished is not None:  # runs may have different languages, so each gets a section
        sections = [
            replace(section, title=f"{section.title}: {result.label}")
            for result in results
            for section in _sections(replace(comparison, results=[result]))
        ]
    else:
        first, *others = _sections(comparison)
        by_language = [
            replace(_results(alone), title=f"{alone.results[0].label}, by language", folded=True)
            for alone in (replace(comparison, results=[result]) for result in results)
            if len(results) > 1 and len(alone.rows) > 1
        ]
        drawings = _drawings(comparison) if can_draw() else ()
        sections = [replace(first, drawings=drawings, tables=[*first.tables, *by_language]), *others]
    title = f"{', '.join(names)} on {comparison.task['kind']}"
    return page(title, lead.strip(), [*sections, _made(comparison)])


def _drawings(comparison: Comparison) -> list[Drawing]:
    from mrt5cli.report.figures.evaluation import dial, per_subset

    return [*dial(comparison), *per_subset(comparison)]


def _sections(comparison: Comparison) -> list[Section]:
    """Sections on results, export commands for calibrated thresholds, differences, and published results.

    Text and string tasks also get a line for the removed source; tasks with their own metrics, the published
    numbers; two compared runs, a table of differences per metric.
    """
    options, under = comparison.options, comparison.results[0].conditions
    examples = f"{comparison.summary.examples:,} examples"
    heading = [
        f"{comparison.task['kind']}, {options.split} split, "
        + ("unfinished" if comparison.unfinished else examples),
        f"{options.deletion} deletion",
        f"batches of {options.batch_size}, {under['device_name']}, {under['dtype']}",
    ]
    if comparison.normalization not in (None, "none"):
        heading.append(f"answers compared by the {comparison.normalization} rule")
    if options.data is not None:
        heading.append(f"data of {options.data}")
    table, notes = _results(comparison), _notes(comparison)
    found = [Section("Results", ", ".join(heading), tables=[table], notes=notes)]
    if commands := _commands(comparison.results):
        about = "To export a model with one of these deletion rates:"
        found.append(Section("Export", about, commands=commands))
    if comparison.differences:
        found.append(_differences(comparison))
    if comparison.published:
        found.append(_published(comparison))
    return found


def _results(comparison: Comparison) -> Table:
    """One line per run or, for a single run, per language, without empty columns."""
    results, alone = comparison.results, len(comparison.results) == 1
    first = results[0]
    by_subset = alone and (len(first.rows) > 1 or bool(comparison.measures or comparison.unfinished))
    lines: list[Line]
    totals = 0
    if by_subset:
        lines = [(row.subset, row, first) for row in first.rows]
        totals = int(len(lines) > 1 and not comparison.unfinished)
    else:
        lines = [(_label(result), result.summary, result) for result in results]
        if not comparison.measures:
            lines.append(("source removed", first.summary.without_source(), None))
            totals = 1
    columns = [
        (header, cells)
        for header, cell in _columns(comparison, by_subset)
        if not {*(cells := [cell(line) for line in lines])} <= {"", MISSING}
    ]
    headers, filled = zip(*columns, strict=True)
    return Table(headers, list(zip(*filled, strict=True)), totals=totals)


def _columns(comparison: Comparison, by_subset: bool) -> list[Column]:
    """Headers, each with a function from a line to a cell; `_results` leaves out empty columns."""
    several, kind = len(comparison.results) > 1, comparison.task["kind"]
    first: Column = "", lambda line: line[0]
    target: Column = "target\n%", lambda line: percent(line[2].target_deletion_rate if line[2] else None, 1)
    trained: Column = "trained", lambda line: duration(line[2].train_seconds if line[2] else None)
    moved: list[Column] = []
    if any(result.calibration for result in comparison.results):
        moved = [
            ("threshold", lambda line: _threshold(line[2])),
            target,
            ("validation\n%", lambda line: percent(_reached(line[2]), 1)),
        ]
    if comparison.measures:  # the task's metrics, each with its interval, then shortening and time
        cut: Column = "cut", lambda line: f"{line[1].truncated:,}" if line[1].truncated else MISSING
        own = [
            column
            for name in comparison.numbers
            for column in (_metric(name, kind), ("95 %\ninterval", partial(_interval, name)))
        ]
        others = map(_metric, ("deletion_rate", "kept_length", "loss", "ms_per_example"))
        more = moved or ([target, trained] if several else [])
        return [first, _metric("examples"), *own, *others, cut, *more]
    text = kind == "span_corruption"
    shown = {
        "examples": False,
        "deletion_rate": False,
        "source_removed_loss": text and (by_subset or several),
        "bits_per_byte": text or not several,
        "kept_length": not several,
        "new_length": not several,
    }
    rest = (_metric(name) for name in METRICS if shown.get(name, True))
    if moved:  # lines of one run, with the same training time
        return [first, *moved, _metric("deletion_rate"), *rest]
    return [first, _metric("deletion_rate"), target, *rest, *([trained] if several else [])]


def _label(result: Result) -> str:
    """The name in a table; for a calibrated model, whose name is in the line above, the rate alone."""
    return result.label if result.calibration is None else f"at {100 * result.calibration.rate:g} %"


def _threshold(result: Result | None) -> str:
    return MISSING if result is None or result.threshold is None else f"{result.threshold:.4g}"


def _reached(result: Result | None) -> float | None:
    """The deletion rate, 0 to 1, of a calibrated threshold on its validation data."""
    return None if result is None or result.calibration is None else result.calibration.reached


def _metric(name: str, task: str = "") -> Column:
    metric = metric_of(name).on(task)
    return metric.column, lambda line: metric.text(line[1].number(name))


def _interval(name: str, line: Line) -> str:
    ends, metric = line[1].interval(name), metric_of(name)
    digits = 1 if metric.unit == "share" else metric.digits
    return MISSING if ends is None else " - ".join(metric.text(end, digits) for end in ends)


def _differences(comparison: Comparison) -> Section:
    """A table per metric: both runs, the first minus the second with its interval, and a p-value."""
    first, second = (result.subject.name for result in comparison.results)
    tables = []
    for measure in dict.fromkeys(one.measure for one in comparison.differences):
        rows = [one for one in comparison.differences if one.measure == measure]
        metric = METRICS[measure].on(comparison.task["kind"])
        shown = metric.text
        title = metric.heading + (" per token" if metric.unit == "nats" else "")
        test = "McNemar's exact test" if rows[0].test == "mcnemar" else "paired bootstrap"
        lines = [
            (
                one.subset,
                shown(one.first),
                shown(one.second),
                f"{'+' if one.difference > 0 else ''}{shown(one.difference)}",
                f"{shown(one.low)} to {shown(one.high)}",
                "< 0.0001" if one.p_value < 1e-4 else f"{one.p_value:.4f}",
            )
            for one in rows
        ]
        headers = ("", first, second, "difference", "95 %\ninterval", "p")
        tables.append(Table(headers, lines, f"{title} ({test})"))
    note = (
        f"difference: {first} minus {second} on the same examples; p: probability of a difference at least "
        "as large if the models were equal"
    )
    return Section("Differences", tables=tables, notes=[note])


def _published(comparison: Comparison) -> Section:
    """The paper's results for the same experiment: one line per language of a single model, or per model."""
    rows = comparison.published
    models = list(dict.fromkeys(map(_model_of, rows)))
    alone = len(models) == 1
    totals = [row for row in rows if row.subset == "total"]
    if totals and not alone:
        rows = totals
    names = [name for name in comparison.measures if any(name in row.numbers for row in rows)]
    task = comparison.task["kind"]
    shown = [METRICS[name].on(task) for name in (*names, "deletion_rate", "ms_per_example")]
    lines = []
    for row in rows:
        label = row.subset if alone else _model_of(row) + ("" if totals else f", {row.subset}")
        lines.append((label, *(metric.text(row.numbers.get(metric.name), 2) for metric in shown)))
    note = (
        "published: arXiv 2410.20771, from the authors' notebooks; one run each on the full test set; "
        "v3 is the camera-ready version, v1 the first"
    )
    table = Table(("", *(metric.column for metric in shown)), lines)
    about = f"published for this task{f': {models[0]}' if alone else ''}"
    return Section("Published", about, tables=[table], notes=[note])


def _commands(results: Sequence[Result]) -> list[str]:
    """The commands that export the model with each deletion rate."""
    found = []
    for result in results:
        moved, subject = result.calibration, result.subject
        if moved is not None and moved.rate and subject.model is None:
            place = subject.source if subject.commit is None else subject.name
            if subject.run is not None and subject.step is None:
                place = str(subject.run.path)
            source = shlex.quote(place)
            revision = "" if subject.commit is None else f" --revision {subject.commit}"
            found.append(f"mrt5 convert {source} DEST --to hub{revision} {moved.option}  # {moved.rate:.4g}")
    return found


def _made(comparison: Comparison) -> Section:
    """The conditions of the results, one per row."""
    document, under = comparison.document(), comparison.results[0].conditions
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    facts = {
        "task": f"{comparison.task['kind']}, version {comparison.task['version']}",
        "split": comparison.options.split,
        "examples": f"{comparison.summary.examples:,}",
        "deletion": comparison.options.deletion,
        "batch size": str(comparison.options.batch_size),
        "device": f"{under['device_name']}, {counted(int(under['threads']), 'thread')}",
        "dtype": str(under["dtype"]),
        "versions": versions,
        "code": str(document["code"]),
    }
    return Section("How it was measured", tables=[Table(("", ""), list(facts.items()), words=2, prose=True)])


def _model_of(row: PublishedRow) -> str:
    what = ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in row.setting.items() if key != "seed"
    )
    return f"{row.model} {row.version}{f' ({what})' if what else ''}"


def _notes(comparison: Comparison) -> list[str]:
    """Definitions of the columns, and a warning about each model that hardly reads its source."""
    results, options = comparison.results, comparison.options
    pooling = [result.subject.name for result in results if result.shortener.pools]
    notes = [
        "deleted: share of input positions (EOS counts, padding does not) whose gate is below the threshold"
        + (", or that are pooled into another" if pooling else "")
    ]
    if generates(comparison.measures):
        notes += _notes_of_answers(comparison)
    elif WHOLE_TARGETS in comparison.measures:
        header = METRICS[WHOLE_TARGETS].on(comparison.task["kind"]).header.replace("\n", " ")
        notes.append(
            f"{header}: every target token is right, given the correct previous ones; loss: nats per token"
        )
    elif not comparison.measures:
        notes.append(
            f"source removed: the same targets, while the encoder of {results[0].subject.name} reads "
            "a single EOS; losses in nats per token"
        )
    moved = [result.calibration for result in results if result.calibration is not None]
    if moved:
        text = f"validation: deleted fraction of {moved[0].positions:,} validation positions"
        conditioned = any(one.conditioned for one in moved)
        how = (
            "the gate is conditioned on the rate"
            if conditioned
            else "which the thresholds were calibrated on"
        )
        notes.append(f"{text}{'; ' if conditioned else ', '}{how}")
    if any(result.summary.gate_recall is not None for result in results):
        notes.append(
            "gate precision and recall, 0 to 1: deleted letters compared with those the target does not need"
        )
    if pooling and not options.hard_delete:
        notes.append(f"pooling has no soft mode; pooled as with --hard: {', '.join(pooling)}")
    return notes + [note for result in results if (note := _result_note(result))]


def _notes_of_answers(comparison: Comparison) -> list[str]:
    """How answers were generated and scored, and the libraries that compute external metrics."""
    generated = [metric for name in comparison.measures if (metric := metric_of(name)).answers]
    beams = comparison.options.generation.num_beams
    how = "greedy decoding" if beams == 1 else f"beam search with {beams} beams"
    headers = ", ".join(metric.header.replace(".\n", ".").replace("\n", " ") for metric in generated)
    scored = (
        f"{headers}: answers from {how}, scored against the best-matching reference; loss: of the first "
        "reference, in nats per token"
    )
    return [scored, *(f"{metric_of(name).header}: {by}" for name, by in comparison.made_by.items())]


def _result_note(result: Result) -> str | None:
    """A note on a rate that is out of reach or untrained, or on a model that hardly reads its source."""
    name, moved, row = result.subject.name, result.calibration, result.summary
    if moved is not None:
        return f"{result.label}: {moved.described()}" if moved.missed or moved.beyond else None
    if not result.shortener.reads_source:
        return f"{name} reads a single EOS instead of its source, so there is no source to remove"
    if row.loss is None or row.source_removed_loss is None:
        return None
    worth = row.source_removed_loss - row.loss
    if worth >= HARDLY_READ * row.source_removed_loss:
        return None
    raises = f"raises the loss of {name} by only {worth:.2f} nats"
    return (
        f"warning: removing the source {raises if worth > 0 else f'does not raise the loss of {name}'}: it "
        "hardly reads its input, so deleting bytes looks free and proves little"
    )
