"""The tables of `mrt5 evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from mrt5cli.commands.tables import print_table
from mrt5cli.text import MISSING, duration, number, percent, say

if TYPE_CHECKING:
    from mrt5cli.evaluation.compare import Comparison, Result
    from mrt5cli.evaluation.published import PublishedRow
    from mrt5cli.evaluation.rows import Row

HARDLY_READ = 0.1
"""A source whose removal costs less than this share of the loss is hardly read; see `_notes`."""


def present(comparison: Comparison) -> None:
    """Print one table: a line a run, or a line a language of a single run, and what there is beside them.

    Tasks of text and of strings also get a line without the source; tasks with measures of their own get the
    published numbers. Two runs that are compared get a table of differences for each number.
    """
    results, kind = comparison.results, comparison.task["kind"]
    heading = [
        f"{kind}, {comparison.split} split, "
        + ("unfinished" if comparison.unfinished else f"{results[0].summary.examples:,} examples"),
        f"{'hard' if comparison.hard_delete else 'soft'} deletion",
        f"batches of {comparison.batch_size}",
        results[0].conditions["device_name"],
        results[0].conditions["dtype"],
    ]
    if comparison.normalization is not None:
        heading.append(f"answers compared by the {comparison.normalization} rule")
    if comparison.data is not None:
        heading.append(f"data of {comparison.data}")
    say(", ".join(heading) + "\n")
    by_subset = len(results) == 1 and (
        len(results[0].rows) > 1 or bool(comparison.measures) or comparison.unfinished is not None
    )
    lines: list[tuple[str, Row, Result | None]]
    if by_subset:
        lines = [(row.subset, row, results[0]) for row in results[0].rows]
    else:
        lines = [(result.label, result.summary, result) for result in results]
        if not comparison.measures:
            lines.append(("source removed", results[0].summary.without_source(), None))
    language_model = kind == "span_corruption"
    if comparison.measures:
        columns = _measured_columns(comparison, several=len(results) > 1)
    else:
        columns = _columns(
            several=len(results) > 1,
            language_model=language_model,
            each_without_source=language_model and (by_subset or len(results) > 1),
        )
    _print_filled(columns, lines)
    say("\n" + "\n".join(_notes(comparison)))
    if comparison.differences:
        _present_differences(comparison)
    if comparison.published:
        _present_published(comparison)


Cell = Callable[[str, "Row", "Result | None"], str]

MEASURES = {
    "sequence_accuracy": "accuracy",
    "constrained_accuracy": "constr.",
    "exact_match": "EM",
    "f1": "F1",
}
"""What the columns of a task's own numbers are called."""


def _print_filled(columns: list[tuple[str, Cell]], lines: list[tuple[str, Row, Result | None]]) -> None:
    """Print a table without the columns that have nothing in them."""
    table = [[cell(label, row, result) for _, cell in columns] for label, row, result in lines]
    filled = [place for place in range(len(columns)) if any(cells[place] != MISSING for cells in table)]
    print_table(
        [columns[place][0] for place in filled], [[cells[place] for place in filled] for cells in table]
    )


def _measured_columns(comparison: Comparison, *, several: bool) -> list[tuple[str, Cell]]:
    """Columns of a task with measures of its own: each with its interval, then shortening and time."""
    columns: list[tuple[str, Cell]] = [
        ("", lambda label, row, result: label),
        ("examples", lambda label, row, result: f"{row.examples:,}"),
    ]
    for name in comparison.measures:
        columns += [
            (f"{MEASURES[name]}\n%", partial(_share, name)),
            ("95 %\ninterval", partial(_interval, f"{name}_95")),
        ]
    columns += [
        ("deleted\n%", lambda label, row, result: percent(row.deletion_rate, 1)),
        ("kept\nmean", lambda label, row, result: number(row.kept_length, 1)),
        ("loss", lambda label, row, result: number(row.loss, 4)),
        ("ms per\nexample", lambda label, row, result: number(row.ms_per_example, 2)),
        ("cut", lambda label, row, result: f"{row.truncated:,}" if row.truncated else MISSING),
    ]
    if several:
        columns += [
            (
                "target\n%",
                lambda label, row, result: percent(result.target_deletion_rate if result else None, 1),
            ),
            ("trained", _trained),
        ]
    return columns


def _trained(label: str, row: Row, result: Result | None) -> str:
    return MISSING if result is None or result.train_seconds is None else duration(result.train_seconds)


def _share(name: str, label: str, row: Row, result: Result | None) -> str:
    return percent(getattr(row, name), 2)


def _interval(name: str, label: str, row: Row, result: Result | None) -> str:
    interval = getattr(row, name)
    return MISSING if interval is None else f"{percent(interval[0], 1)} - {percent(interval[1], 1)}"


def _present_differences(comparison: Comparison) -> None:
    """A table for each number: both runs, first minus second with its interval, and a p-value."""
    first, second = (result.subject.name for result in comparison.results)
    for measure in dict.fromkeys(one.measure for one in comparison.differences):
        rows = [one for one in comparison.differences if one.measure == measure]
        share = measure in MEASURES
        shown = partial(percent, digits=2) if share else partial(number, digits=4)
        name = "F1" if measure == "f1" else measure.replace("_", " ")
        title = f"{name}, {'%' if share else 'nats a token'}"
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
    table = []
    for row in rows:
        label = row.subset if len(models) == 1 else _model_of(row) + ("" if alike else f", {row.subset}")
        shares = [percent(row.numbers.get(name), 2) for name in (*names, "deletion_rate")]
        table.append([label, *shares, number(row.numbers.get("ms_per_example"), 2)])
    print_table(["", *(f"{MEASURES[name]}\n%" for name in names), "deleted\n%", "ms per\nexample"], table)
    say(
        "\npublished: arXiv 2410.20771, its authors' notebooks; one run each on the whole published test; "
        "v3 is the camera-ready, v1 the first version"
    )


def _model_of(row: PublishedRow) -> str:
    setting = {key: value for key, value in row.setting.items() if key != "seed"}
    what = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in setting.items())
    return f"{row.model} {row.version}{f' ({what})' if what else ''}"


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
        (several, "trained", _trained),
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
    if pooling and not comparison.hard_delete:
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
    if comparison.normalization is not None:
        notes.append(
            "EM, F1: greedily generated answers against the best of the accepted ones; loss: of the first "
            "accepted one, in nats a token"
        )
    elif "sequence_accuracy" in comparison.measures:
        notes.append(
            "accuracy: every target token is right, given the true ones before it; loss: nats a token"
        )
    if comparison.constrained:
        notes.append("constr.: the likeliest of the possible targets is the right one")
    row = comparison.results[0].summary
    if row.truncated:
        length = comparison.task["settings"].get("input_length")
        notes.append(
            f"cut: {row.truncated:,} of {row.examples:,} sources were longer than the task takes"
            + (f" ({length:,} byte tokens)" if length else "")
        )
    return notes
