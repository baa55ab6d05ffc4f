"""The tables of `mrt5 evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from mrt5cli.commands.tables import print_table
from mrt5cli.metrics.catalog import METRICS, WHOLE_TARGETS
from mrt5cli.text import MISSING, duration, percent, say

if TYPE_CHECKING:
    from mrt5cli.evaluation.compare import Comparison, Result
    from mrt5cli.evaluation.published import PublishedRow
    from mrt5cli.metrics.results import Row

    Line = tuple[str, Row, Result | None]
    Column = tuple[str, Callable[[Line], str]]

HARDLY_READ = 0.1
"""A source whose removal costs less than this share of the loss is hardly read; see `_notes`."""


def present(comparison: Comparison) -> None:
    """Print one table: a line a run, or a line a language of a single run, and what there is beside them.

    Tasks of text and of strings also get a line without the source; tasks with measures of their own get the
    published numbers. Two runs that are compared get a table of differences for each number.
    """
    results, options, kind = comparison.results, comparison.options, comparison.task["kind"]
    under = results[0].conditions
    heading = [
        f"{kind}, {options.split} split, "
        + ("unfinished" if comparison.unfinished else f"{results[0].summary.examples:,} examples"),
        f"{options.deletion} deletion",
        f"batches of {options.batch_size}, {under['device_name']}, {under['dtype']}",
    ]
    if options.normalization is not None:
        heading.append(f"answers compared by the {options.normalization} rule")
    if options.data is not None:
        heading.append(f"data of {options.data}")
    say(", ".join(heading) + "\n")
    by_subset = len(results) == 1 and (
        len(results[0].rows) > 1 or bool(comparison.measures) or comparison.unfinished is not None
    )
    lines: list[Line]
    if by_subset:
        lines = [(row.subset, row, results[0]) for row in results[0].rows]
    else:
        lines = [(result.label, result.summary, result) for result in results]
        if not comparison.measures:
            lines.append(("source removed", results[0].summary.without_source(), None))
    _print_filled(_columns(comparison, by_subset), lines)
    say("\n" + "\n".join(_notes(comparison)))
    if comparison.differences:
        _present_differences(comparison)
    if comparison.published:
        _present_published(comparison)


def _print_filled(columns: Iterable[Column], lines: list[Line]) -> None:
    """Print a table without the columns that have nothing in them."""
    filled = [
        (header, cells)
        for header, cell in columns
        if set(cells := [cell(line) for line in lines]) != {MISSING}
    ]
    print_table(
        [header for header, _ in filled], [list(row) for row in zip(*(c for _, c in filled), strict=True)]
    )


def _columns(comparison: Comparison, by_subset: bool) -> list[Column]:
    """Headers and what fills the cells under them; a column no cell of which is filled is not shown."""
    several = len(comparison.results) > 1
    first: Column = "", lambda line: line[0]
    target: Column = "target\n%", lambda line: percent(line[2].target_deletion_rate if line[2] else None, 1)
    trained: Column = "trained", lambda line: _duration(line[2].train_seconds if line[2] else None)
    if comparison.measures:  # of its own, each with its interval, then shortening and time
        cut: Column = "cut", lambda line: f"{line[1].truncated:,}" if line[1].truncated else MISSING
        own = [
            column
            for name in comparison.measures
            for column in (_metric(name), ("95 %\ninterval", partial(_interval, name)))
        ]
        others = map(_metric, ("deletion_rate", "kept_length", "loss", "ms_per_example"))
        return [first, _metric("examples"), *own, *others, cut, *([target, trained] if several else [])]
    text = comparison.task["kind"] == "span_corruption"
    shown = {
        "source_removed_loss": text and (by_subset or several),
        "bits_per_byte": text or not several,
        "kept_length": not several,
        "new_length": not several,
    }
    left_out = ("examples", "deletion_rate")
    rest = (_metric(name) for name in METRICS if name not in left_out and shown.get(name, True))
    return [first, _metric("deletion_rate"), target, *rest, *([trained] if several else [])]


def _metric(name: str) -> Column:
    metric = METRICS[name]
    return metric.column, lambda line: metric.text(line[1].number(name))


def _duration(seconds: float | None) -> str:
    return MISSING if seconds is None else duration(seconds)


def _interval(name: str, line: Line) -> str:
    ends = getattr(line[1], f"{name}_95")
    return MISSING if ends is None else f"{percent(ends[0], 1)} - {percent(ends[1], 1)}"


def _present_differences(comparison: Comparison) -> None:
    """A table for each number: both runs, first minus second with its interval, and a p-value."""
    first, second = (result.subject.name for result in comparison.results)
    for measure in dict.fromkeys(one.measure for one in comparison.differences):
        rows = [one for one in comparison.differences if one.measure == measure]
        metric = METRICS[measure]
        shown = metric.text
        title = f"{metric.title}, {'%' if metric.unit == 'share' else 'nats a token'}"
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
    rows, measures = comparison.published, comparison.measures
    models = list(dict.fromkeys(_model_of(row) for row in rows))
    totals = [row for row in rows if row.subset == "total"]
    if len(models) > 1 and totals:
        rows = totals
    alike = len(models) == 1 or bool(totals)
    say(f"\npublished for this task{f': {models[0]}' if len(models) == 1 else ''}\n")
    names = [name for name in measures if any(name in row.numbers for row in rows)]
    shown = [METRICS[name] for name in (*names, "deletion_rate", "ms_per_example")]
    table = []
    for row in rows:
        label = row.subset if len(models) == 1 else _model_of(row) + ("" if alike else f", {row.subset}")
        table.append([label, *(metric.text(row.numbers.get(metric.name), 2) for metric in shown)])
    print_table(["", *(metric.column for metric in shown)], table)
    say(
        "\npublished: arXiv 2410.20771, its authors' notebooks; one run each on the whole published test; "
        "v3 is the camera-ready, v1 the first version"
    )


def _model_of(row: PublishedRow) -> str:
    setting = {key: value for key, value in row.setting.items() if key != "seed"}
    what = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in setting.items())
    return f"{row.model} {row.version}{f' ({what})' if what else ''}"


def _notes(comparison: Comparison) -> list[str]:
    """What the numbers are of, and a warning about every model that hardly reads its source."""
    first = comparison.results[0].subject.name
    pooling = [result.subject.name for result in comparison.results if result.pools]
    pooled = ", or that are pooled into another" if pooling else ""
    notes = [
        "deleted: share of input positions (EOS counts, padding does not) whose gate is below the threshold"
        + pooled,
    ]
    if comparison.measures:
        notes += _measured_notes(comparison)
    else:
        notes.append(
            f"source removed: the same targets while the encoder of {first} sees a lone EOS; losses in nats"
        )
    if any(result.summary.gate_recall is not None for result in comparison.results):
        notes.append("gate precision, recall: deleted letters against those the target does not need, 0 to 1")
    for result in comparison.results:
        moved = result.calibration
        if moved is not None:
            notes.append(
                f"{result.label}: threshold {moved.threshold:.4g}, which deletes {100 * moved.reached:.1f} % "
                f"of {moved.positions:,} validation positions"
                + (": the gate has no value in between" if moved.missed else "")
            )
    if pooling and not comparison.options.hard_delete:
        notes.append(f"pooling has no soft mode; pooled as with --hard: {', '.join(pooling)}")
    for result in comparison.results:
        row = result.summary
        if not result.reads_source:
            notes.append(f"{result.subject.name} reads a lone EOS whatever its source is: nothing to remove")
            continue
        if row.loss is None or row.source_removed_loss is None:
            continue
        worth = row.source_removed_loss - row.loss
        if worth < HARDLY_READ * row.source_removed_loss and result.calibration is None:
            notes.append(
                f"warning: removing its source raises the loss of {result.subject.name} by "
                f"{max(worth, 0.0):.2f} nats: it hardly reads its input, so deleting bytes looks free and "
                "says little"
            )
    return notes


def _measured_notes(comparison: Comparison) -> list[str]:
    """What a task's own numbers are of."""
    notes = []
    if comparison.options.normalization is not None:
        notes.append(
            "EM, F1: greedily generated answers against the best of the accepted ones; loss: of the first "
            "accepted one, in nats a token"
        )
    elif WHOLE_TARGETS in comparison.measures:
        notes.append(
            "seq. acc.: every target token is right, given the true ones before it; loss: nats a token"
        )
    if comparison.options.constrained:
        notes.append("constr.: the likeliest of the possible targets is the right one")
    row = comparison.results[0].summary
    if row.truncated:
        length = comparison.task["settings"].get("input_length")
        notes.append(
            f"cut: {row.truncated:,} of {row.examples:,} sources were longer than the task takes"
            + (f" ({length:,} byte tokens)" if length else "")
        )
    return notes
