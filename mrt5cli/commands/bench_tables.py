"""What `mrt5 bench` prints: a table a kind, and what was checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from mrt5cli.commands.tables import print_table
from mrt5cli.metrics.catalog import METRICS, WHOLE_TARGETS
from mrt5cli.text import byte_size, counted, number, percent, say

if TYPE_CHECKING:
    from mrt5cli.benchmark.precision import PrecisionRow
    from mrt5cli.benchmark.run import Report
    from mrt5cli.benchmark.suite import Case, Ratio

T = TypeVar("T")
Columns = Mapping[str, Callable[[T], str]]

TIMED: Columns[Case] = {
    "median": lambda case: (
        f"{1000 * case.seconds:,.1f} ms" if case.seconds < 10 else f"{case.seconds:,.2f} s"
    ),
    "GFLOP/s": lambda case: f"{case.operations_per_second / 1e9:,.1f}" if case.operations_per_second else "",
    "peak\nmemory": lambda case: byte_size(case.memory.peak if case.memory else None),
    "live\nmemory": lambda case: byte_size(case.memory.live if case.memory else None),
}
COMPARED: Columns[Ratio] = {
    "times\nfaster": lambda ratio: number(ratio.median, 2),
    "range": lambda ratio: f"{ratio.least:.2f}-{ratio.most:.2f}",
    "fastest\nrounds": lambda ratio: number(ratio.fastest, 2),
    "ideal": lambda ratio: "" if ratio.ideal is None else number(ratio.ideal, 2),
    "% of\nideal": lambda ratio: "" if ratio.ideal is None else percent(ratio.share_of_ideal, 0),
    "than": lambda ratio: ratio.baseline,
}
PRECISE: Columns[PrecisionRow] = {
    "": lambda row: row.precision,
    **{
        metric.column: lambda row, metric=metric: metric.text(getattr(row, metric.name))  # type: ignore[misc]
        for name, metric in METRICS.items()
        if name in ("loss", "token_accuracy", WHOLE_TARGETS, "deletion_rate")
    },
    "argmaxes\nflipped %": lambda row: percent(row.argmax_flipped, 3),
    "gates\nflipped %": lambda row: percent(row.gate_flipped, 3),
    "logits off\nat most": lambda row: number(row.logits, 3),
}


def present(report: Report) -> None:
    """Print a table for each kind of thing that was measured."""
    setting = report.setting
    size = "" if setting["parameters"] is None else f", {setting['parameters']:,} parameters"
    say(
        f"{setting['model']}{size}; batch {setting['batch']} x {setting['length']} -> {setting['target']}, "
        f"{setting['rows']} rows; {setting['device_name']}, {counted(setting['threads'], 'thread')}, torch "
        f"{setting['torch']}; {setting['rounds']} rounds\n"
    )
    for suite in report.suites:
        say(suite.what)
        if suite.rows:
            print_table(list(PRECISE), [_cells(PRECISE, row) for row in suite.rows])
        else:
            _print_timings(suite.cases)
        for name, found in suite.parity.items():
            what = "" if found.holds else f" MORE THAN THE {found.allowed:.1e} THAT ARE ROUNDING"
            say(f"{name}: at most {found.difference:.1e} off, on values up to {found.size:.1f}{what}")
        for note in suite.notes:
            say(note)
        say()


def _print_timings(cases: Mapping[str, Case]) -> None:
    """A line a case and baseline; columns that no case has anything for are left out."""
    lines = []
    for name, case in cases.items():
        own = [name, *_cells(TIMED, case)]
        compared = [_cells(COMPARED, ratio) for ratio in case.ratios] or [[""] * len(COMPARED)]
        lines += [[*own, *compared[0]], *([*[""] * len(own), *cells] for cells in compared[1:])]
    print_table(["", *TIMED, *COMPARED], lines, only_filled=True)


def _cells(columns: Columns[T], row: T) -> list[str]:
    return [cell(row) for cell in columns.values()]
