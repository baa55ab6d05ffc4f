"""The tables of `mrt5 evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from mrt5cli.commands.tables import print_table
from mrt5cli.metrics.catalog import METRICS, WHOLE_TARGETS, generates, metric_of
from mrt5cli.text import MISSING, duration, percent, say

if TYPE_CHECKING:
    from mrt5cli.evaluation.compare import Comparison, Result
    from mrt5cli.evaluation.published import PublishedRow
    from mrt5cli.metrics.results import Row

    Line = tuple[str, Row, Result | None]
    Column = tuple[str, Callable[[Line], str]]

HARDLY_READ = 0.1
"""A source whose removal costs less than this share of the loss is hardly read; see `_result_note`."""


def present(comparison: Comparison) -> None:
    """Print one table: a line a run, or a line a language of a single run, and what there is beside them.

    Tasks of text and of strings also get a line without the source; tasks with measures of their own get the
    published numbers. Two runs that are compared get a table of differences for each number.
    """
    results, options, kind = comparison.results, comparison.options, comparison.task["kind"]
    first, under = results[0], results[0].conditions
    heading = [
        f"{kind}, {options.split} split, "
        + ("unfinished" if comparison.unfinished else f"{first.summary.examples:,} examples"),
        f"{options.deletion} deletion",
        f"batches of {options.batch_size}, {under['device_name']}, {under['dtype']}",
    ]
    if comparison.normalization not in (None, "none"):
        heading.append(f"answers compared by the {comparison.normalization} rule")
    if options.data is not None:
        heading.append(f"data of {options.data}")
    say(", ".join(heading) + "\n")
    alone = len(results) == 1
    by_subset = alone and (len(first.rows) > 1 or bool(comparison.measures or comparison.unfinished))
    lines: list[Line]
    if by_subset:
        lines = [(row.subset, row, first) for row in first.rows]
    else:
        lines = [(result.label, result.summary, result) for result in results]
        if not comparison.measures:
            lines.append(("source removed", first.summary.without_source(), None))
    headers, cells = zip(*_columns(comparison, by_subset), strict=True)
    print_table(headers, [[cell(line) for cell in cells] for line in lines], only_filled=True)
    say("\n" + "\n".join(_notes(comparison)))
    if comparison.differences:
        _present_differences(comparison)
    if comparison.published:
        _present_published(comparison)


def _columns(comparison: Comparison, by_subset: bool) -> list[Column]:
    """Headers and what fills the cells under them; a column no cell of which is filled is not shown."""
    several, kind = len(comparison.results) > 1, comparison.task["kind"]
    first: Column = "", lambda line: line[0]
    target: Column = "target\n%", lambda line: percent(line[2].target_deletion_rate if line[2] else None, 1)
    trained: Column = "trained", lambda line: duration(line[2].train_seconds if line[2] else None)
    if comparison.measures:  # of its own, each with its interval, then shortening and time
        cut: Column = "cut", lambda line: f"{line[1].truncated:,}" if line[1].truncated else MISSING
        own = [
            column
            for name in comparison.numbers
            for column in (_metric(name, kind), ("95 %\ninterval", partial(_interval, name)))
        ]
        others = map(_metric, ("deletion_rate", "kept_length", "loss", "ms_per_example"))
        return [first, _metric("examples"), *own, *others, cut, *([target, trained] if several else [])]
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
    return [first, _metric("deletion_rate"), target, *rest, *([trained] if several else [])]


def _metric(name: str, task: str = "") -> Column:
    metric = metric_of(name).on(task)
    return metric.column, lambda line: metric.text(line[1].number(name))


def _interval(name: str, line: Line) -> str:
    ends, metric = line[1].interval(name), metric_of(name)
    digits = 1 if metric.unit == "share" else metric.digits
    return MISSING if ends is None else " - ".join(metric.text(end, digits) for end in ends)


def _present_differences(comparison: Comparison) -> None:
    """A table for each number: both runs, first minus second with its interval, and a p-value."""
    first, second = (result.subject.name for result in comparison.results)
    for measure in dict.fromkeys(one.measure for one in comparison.differences):
        rows = [one for one in comparison.differences if one.measure == measure]
        metric = METRICS[measure].on(comparison.task["kind"])
        shown = metric.text
        title = metric.heading + (" a token" if metric.unit == "nats" else "")
        test = "McNemar's exact test" if rows[0].test == "mcnemar" else "paired bootstrap"
        say(f"\n{title} ({test})\n")
        print_table(
            ["", first, second, "difference", "95 %\ninterval", "p"],
            [
                [
                    one.subset,
                    shown(one.first),
                    shown(one.second),
                    f"{'+' if one.difference > 0 else ''}{shown(one.difference)}",
                    f"{shown(one.low)} to {shown(one.high)}",
                    "< 0.0001" if one.p_value < 1e-4 else f"{one.p_value:.4f}",
                ]
                for one in rows
            ],
        )
    say(
        f"\ndifference: {first} minus {second} on the same examples; p: of a difference at least as large if "
        "there were none"
    )


def _present_published(comparison: Comparison) -> None:
    """The paper's numbers of the same experiment: a line a language of one model, or a line a model."""
    rows = comparison.published
    models = list(dict.fromkeys(map(_model_of, rows)))
    alone = len(models) == 1
    totals = [row for row in rows if row.subset == "total"]
    if totals and not alone:
        rows = totals
    say(f"\npublished for this task{f': {models[0]}' if alone else ''}\n")
    names = [name for name in comparison.measures if any(name in row.numbers for row in rows)]
    task = comparison.task["kind"]
    shown = [METRICS[name].on(task) for name in (*names, "deletion_rate", "ms_per_example")]
    table = []
    for row in rows:
        label = row.subset if alone else _model_of(row) + ("" if totals else f", {row.subset}")
        table.append([label, *(metric.text(row.numbers.get(metric.name), 2) for metric in shown)])
    print_table(["", *(metric.column for metric in shown)], table)
    say(
        "\npublished: arXiv 2410.20771, its authors' notebooks; one run each on the whole published test; "
        "v3 is the camera-ready, v1 the first version"
    )


def _model_of(row: PublishedRow) -> str:
    what = ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in row.setting.items() if key != "seed"
    )
    return f"{row.model} {row.version}{f' ({what})' if what else ''}"


def _notes(comparison: Comparison) -> list[str]:
    """What the numbers are of, and a warning about every model that hardly reads its source."""
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
            f"{header}: every target token is right, given the true ones before it; loss: nats a token"
        )
    elif not comparison.measures:
        notes.append(
            f"source removed: the same targets while the encoder of {results[0].subject.name} sees a lone "
            "EOS; losses in nats"
        )
    if any(result.summary.gate_recall is not None for result in results):
        notes.append("gate precision, recall: deleted letters against those the target does not need, 0 to 1")
    if pooling and not options.hard_delete:
        notes.append(f"pooling has no soft mode; pooled as with --hard: {', '.join(pooling)}")
    return notes + [note for result in results if (note := _result_note(result))]


def _notes_of_answers(comparison: Comparison) -> list[str]:
    """How answers were generated, and what counts the measures of them that the toolkit does not itself."""
    generated = [metric for name in comparison.measures if (metric := metric_of(name)).answers]
    beams = comparison.options.generation.num_beams
    how = "greedily generated answers" if beams == 1 else f"answers found by {beams} beams"
    headers = ", ".join(metric.header.replace(".\n", ".").replace("\n", " ") for metric in generated)
    told = (
        f"{headers}: {how} against the best of the accepted ones; loss: of the first accepted one, in nats a "
        "token"
    )
    made = [f"{metric_of(name).header}: {by}" for name, by in comparison.made_by.items()]
    return [told, *made]


def _result_note(result: Result) -> str | None:
    """Where a model's threshold was moved to, or that it hardly reads its source."""
    name, moved, row = result.subject.name, result.calibration, result.summary
    if moved is not None:
        return (
            f"{result.label}: threshold {moved.threshold:.4g}, which deletes {100 * moved.reached:.1f} % "
            f"of {moved.positions:,} validation positions"
            + (": the gate has no value in between" if moved.missed else "")
        )
    if not result.shortener.reads_source:
        return f"{name} reads a lone EOS whatever its source is: nothing to remove"
    if row.loss is None or row.source_removed_loss is None:
        return None
    worth = row.source_removed_loss - row.loss
    if worth >= HARDLY_READ * row.source_removed_loss:
        return None
    return (
        f"warning: removing its source raises the loss of {name} by {max(worth, 0.0):.2f} nats: it hardly "
        "reads its input, so deleting bytes looks free and says little"
    )
