"""`mrt5 bench`: the speed of models relative to each other and to the ideal, the ratio of arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

from mrt5cli import bounds
from mrt5cli.bars import bars
from mrt5cli.commands import options
from mrt5cli.commands.options import amount, argument, option, shares
from mrt5cli.commands.tables import print_table
from mrt5cli.errors import RunFailed, UserError
from mrt5cli.metrics.catalog import METRICS, WHOLE_TARGETS
from mrt5cli.output import print_json
from mrt5cli.text import byte_size, counted, number, percent, say, shortened

if TYPE_CHECKING:
    from mrt5cli.benchmark.models import Precision
    from mrt5cli.benchmark.precision import PrecisionRow
    from mrt5cli.benchmark.run import Report
    from mrt5cli.benchmark.suite import Case, Ratio

KINDS = ("forward", "train", "generate", "attention", "precision", "compile")
SPREADS = ("even", "wide")
PRECISIONS = ("fp32", "bf16", "tf32")

Run = Annotated[str | None, argument(options.ANY_MODEL, "RUN")]
Size = Annotated[
    str,
    option(
        "Size of a model with random weights, used without RUN: byt5-small, byt5-base, byt5-large or tiny.",
        metavar="SIZE",
    ),
]
What = Annotated[str, option(f"Benchmarks to run, among {', '.join(KINDS)}.", metavar="KIND,...")]
Rates = Annotated[str, option("Deletion rates, each from 0 to below 1.", metavar="RATE,...")]
Rows = Annotated[
    str,
    option(
        "Spread of the kept lengths within a batch: even, wide (very different lengths), or even,wide.",
        metavar="KIND,...",
    ),
]
BatchSize = Annotated[int, amount("Examples per batch.", bounds.BATCH)]
Length = Annotated[int, amount("Source positions per example.", bounds.LENGTH, 8)]
TargetLength = Annotated[int, amount("Target positions per example.", bounds.LENGTH, 2)]
Rounds = Annotated[int, amount("Measured rounds, after the warm-up.", bounds.ROUNDS)]
Precisions = Annotated[
    str | None,
    option(
        "Precisions of matrix products, among fp32, bf16 and tf32.",
        metavar="PRECISION,...",
        default="fp32; bf16 on a GPU",
    ),
]
Memory = Annotated[
    bool, option("Also measure the memory of each case, on a CPU in a separate process.", "--memory")
]
Limit = Annotated[int, amount("Maximum examples per subset, for --what precision.", bounds.EXAMPLES)]
Threads = Annotated[int | None, amount("CPU threads.", bounds.THREADS, default="all available")]


def bench(
    run: Run = None,
    revision: options.Revision = None,
    size: Size = "byt5-small",
    what: What = "forward",
    deletion_rate: Rates = "0.3,0.5,0.7",
    rows: Rows = "even",
    batch_size: BatchSize = 4,
    length: Length = 1024,
    target_length: TargetLength = 189,
    rounds: Rounds = 7,
    precision: Precisions = None,
    memory: Memory = False,
    limit: Limit = 1000,
    device: options.Device = "auto",
    threads: Threads = None,
    no_pickle: options.NoPickle = False,
    code: options.Code = None,
    as_json: options.AsJson = False,
    out: options.Document = None,
) -> None:
    """Benchmark speed, memory and precision of models, side by side in one process.

    Models run in turn, and a speedup is computed within each round; the table shows its median and range, the
    ratio of the fastest rounds, and the ideal: the ratio of multiply-accumulate operations. The same run
    compares the results of each fast path with the plain one; if they differ, the exit code is 1. --out is
    updated after every round, and an interrupted command prints what it measured.

    Examples:

      mrt5 bench --size tiny --batch-size 2 --length 128 --target-length 16

      mrt5 bench --rows even,wide --deletion-rate 0.5,0.7 --precision fp32,bf16

      mrt5 bench runs/quickstart-mrt5-seed42 --what precision
    """
    from mrt5cli import runtime as machine
    from mrt5cli.benchmark.models import Shapes
    from mrt5cli.benchmark.run import Benchmark, default_threads
    from mrt5cli.subject import find_subjects
    from mrt5cli.writing import write_json

    kinds, spreads = _words("--what", what, KINDS), _words("--rows", rows, SPREADS)
    chosen = machine.device(device)
    precisions = [] if precision is None else _words("--precision", precision, PRECISIONS)
    precisions = precisions or ["fp32" if chosen.type == "cpu" else "bf16"]
    if "tf32" in precisions and chosen.type == "cpu":
        raise UserError("--precision tf32 requires a GPU, and the device is a CPU", "leave tf32 out")
    deleted = shares("--deletion-rate", deletion_rate, or_none=True)
    shapes = Shapes(batch_size, length, target_length, deleted, spreads, cast("list[Precision]", precisions))
    subjects = find_subjects([] if run is None else [run], revision, allow_pickle=not no_pickle)
    subject, threads = subjects[0] if subjects else None, threads or default_threads()
    save = lambda report: None if out is None else write_json(out, report.to_json())
    benchmark = Benchmark(subject, size, shapes, rounds, chosen, threads, memory, limit, save=save)
    try:
        with bars("timing") as benchmark.done:
            benchmark.run(kinds)
    finally:
        report = benchmark.report()
        if report.suites:
            print_json(report.to_json()) if as_json else present(report)
    if problems := report.problems():
        raise RunFailed("some cases could not be measured: " + "; ".join(problems))
    if broken := report.broken_parity():
        raise RunFailed(
            "the results of a fast path differ from the plain one's: " + "; ".join(broken),
            "ignore its times, and please report this with the output of `mrt5 env`",
        )


def _words(name: str, text: str, known: tuple[str, ...]) -> list[str]:
    """The words that an option lists, without repeats."""
    words = list(dict.fromkeys(word.strip() for word in text.split(",")))
    if not set(words) <= set(known):
        raise UserError(f"{name} '{shortened(text)}': expected a comma-separated list of {', '.join(known)}")
    return words


# --- what is printed ----------------------------------------------------------------------------------------

T = TypeVar("T")
Columns = Mapping[str, Callable[[T], str]]

TIMED: Columns[Case] = {
    "median": lambda case: _time(case.seconds) if case.rounds else "",
    "FLOP/s": lambda case: _rate(case.operations_per_second),
    "% of\nmatmul": lambda case: percent(case.share_of_products, 0),
    "% of\nroofline": lambda case: percent(case.share_of_roofline, 0),
    "waits": lambda case: "" if case.waits is None else str(case.waits),
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
    "max logit\ndifference": lambda row: number(row.logits, 3),
}


def present(report: Report) -> None:
    """Print a table for each benchmark."""
    setting = report.setting
    size = "" if setting["parameters"] is None else f", {setting['parameters']:,} parameters"
    say(
        f"{setting['model']}{size}; batch {setting['batch']} x {setting['length']} -> {setting['target']}, "
        f"{setting['rows']} rows; {setting['device_name']}, {counted(setting['threads'], 'thread')}, torch "
        f"{setting['torch']}, transformers {setting['transformers']}; {counted(setting['rounds'], 'round')}\n"
    )
    for suite in report.suites:
        say(suite.what)
        if suite.rows:
            print_table(list(PRECISE), [_cells(PRECISE, row) for row in suite.rows])
        else:
            _print_timings(suite.cases)
        for name, found in suite.parity.items():
            what = "" if found.holds else f", MORE THAN ROUNDING EXPLAINS ({found.allowed:.1e})"
            say(f"{name}: differs by at most {found.difference:.1e}, on values up to {found.size:.1f}{what}")
        for name, why in suite.problems.items():
            say(f"{name}: could not run, {why}")
        for note in suite.notes:
            say(note)
        say()


def _time(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:,.2f} s"
    return f"{1000 * seconds:,.1f} ms" if seconds >= 0.01 else f"{1000 * seconds:.3f} ms"


def _rate(operations: float | None) -> str:
    if operations is None:
        return ""
    return f"{operations / 1e12:,.1f} T" if operations >= 1e12 else f"{operations / 1e9:,.1f} G"


def _print_timings(cases: Mapping[str, Case]) -> None:
    """Print one line per case and baseline, without the columns that are empty in every line."""
    lines = []
    for name, case in cases.items():
        own = [name, *_cells(TIMED, case)]
        compared = [_cells(COMPARED, ratio) for ratio in case.ratios] or [[""] * len(COMPARED)]
        lines += [[*own, *compared[0]], *([*[""] * len(own), *cells] for cells in compared[1:])]
    print_table(["", *TIMED, *COMPARED], lines, only_filled=True)


def _cells(columns: Columns[T], row: T) -> list[str]:
    return [cell(row) for cell in columns.values()]
