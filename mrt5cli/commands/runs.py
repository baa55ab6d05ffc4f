"""`mrt5 runs`: what runs there are, how they went, and which is the best."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mrt5cli import places
from mrt5cli.commands.options import AsJson, argument, option, written
from mrt5cli.commands.tables import GAP, print_table
from mrt5cli.errors import UserError
from mrt5cli.output import print_json
from mrt5cli.text import MISSING, byte_size, columns, counted, listed, number, say, say_on_stderr, visible

if TYPE_CHECKING:
    from mrt5cli.runs.curves import Panel
    from mrt5cli.runs.describing import Words
    from mrt5cli.runs.found import Entry

FILTERS = (
    "Only runs of which this holds: a part or pattern of their names, KEY=WORD,... or KEY!=WORD,... (name, "
    "state, tag, task, shortener, start), or KEY<NUMBER and the like (step, target, size, or any metric). "
    "May be repeated."
)
LEAST_COLUMNS = 5
"""Of a list, up to the deletion rate: where fewer fit beside the names, these stand in lines of their own."""
Run = Annotated[str, argument("A run directory, or its name below runs/.", "RUN")]
Runs = Annotated[list[str], argument("Run directories, or their names below runs/.", "RUN")]
Folder = Annotated[Path | None, argument("Where to look. Default: runs/.", "DIR", places.path)]
Filters = Annotated[list[str] | None, option(FILTERS, "--filter", metavar="CONDITION")]
Sort = Annotated[
    str, option("Sort by name, state, tag, task, step, size, age, or any metric.", "--sort", metavar="COLUMN")
]
Metrics = Annotated[
    list[str] | None,
    option(
        "Draw this number of metrics.jsonl. Default: cross_entropy, deletion_rate, alpha. May be repeated.",
        "--metric",
        metavar="NAME",
    ),
]
Html = Annotated[
    Path | None,
    written("Also write a page, which needs nothing else.", "--html"),
]
Png = Annotated[
    Path | None,
    written("Also write the curves as a picture.", "--png"),
]
Along = Annotated[Literal["step", "seconds", "bytes"], option("What curves are drawn by.", "--by")]
Yes = Annotated[bool, option("Do not ask.", "--yes", "-y")]

app = typer.Typer(rich_markup_mode=None, invoke_without_command=True)


@app.callback()
def _runs(context: typer.Context) -> None:
    """List, show, compare, find, tag, move and remove runs; alone, list those below runs/.

    Examples:

      mrt5 runs

      mrt5 runs list --filter state=running

      mrt5 runs show quickstart-mrt5-seed42

      mrt5 runs compare byt5-seed1 mrt5-seed1 --html both.html

      mrt5 evaluate $(mrt5 runs best --metric sequence_accuracy --quiet)
    """
    if context.invoked_subcommand is None:
        list_runs()


@app.command("list", short_help="List runs, the newest first.")
def list_runs(
    folder: Folder = None,
    filters: Filters = None,
    sort: Sort = "age",
    reverse: Annotated[bool, option("The other way round.", "--reverse", "-r")] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs below a folder, a line each: state, steps, cross-entropy, deletion, result, age.

    A run is running while a process holds its lock; stale where meta.json says so and nobody does; damaged
    where its meta.json or recipe.yaml cannot be read.

    Examples:

      mrt5 runs list

      mrt5 runs list --filter mrt5 --filter state=finished --sort loss

      mrt5 runs list runs/miniature --filter 'deletion_rate>0.4' --json
    """
    from mrt5cli.runs.choosing import chosen, ordered

    everything = _entries(folder)
    runs = ordered(chosen(everything, filters or []), sort, reverse)
    if as_json:
        print_json([run.document() for run in runs])
    elif runs:
        _print_list(runs)
    elif everything:
        say(_none_meets(everything, filters))
    else:
        say(f"there are no runs below {_folder(folder)}/; train one: mrt5 pretrain quickstart_byt5")


@app.command("show", short_help="Show a run: what it is, how it goes, its curves.")
def show(
    run: Run,
    metric: Metrics = None,
    by: Along = "step",
    html: Html = None,
    png: Png = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run is, its state, sessions, checkpoints and evaluations, and its curves.

    Examples:

      mrt5 runs show quickstart-mrt5-seed42

      mrt5 runs show runs/mrt5-seed1 --metric grad_norm --metric learning_rate

      mrt5 runs show runs/mrt5-seed1 --html run.html --png run.png
    """
    from mrt5cli.runs import describing
    from mrt5cli.runs.curves import panels

    one = _entry(run)
    drawn = panels([(one.name, one)], metric or [], by) if one.state != "damaged" else []
    facts, tables = describing.facts(one), [describing.sessions(one), describing.evaluations(one)]
    if as_json:
        more = {"recipe": describing.tree_of(one), "meta": one.meta, "curves": _as_json(drawn)}
        print_json(one.document() | more)
    else:
        say(visible(one.name, lines=False))
        width = max(len(label) for label, _ in facts)
        for label, text in facts:
            say(f"  {label:<{width}}  {text}")
        for table in tables:
            _print_words(table)
        _print_curves(drawn)
        for note in one.all_notes:
            say_on_stderr(f"note: {note}")
    _write(
        one.name, drawn, [describing.Words("What it is", ("", ""), facts, 2, prose=True), *tables], html, png
    )


@app.command("compare", short_help="Compare runs: curves, numbers, recipes, versions.")
def compare(
    runs: Runs,
    metric: Metrics = None,
    by: Along = "step",
    html: Html = None,
    png: Png = None,
    as_json: AsJson = False,
) -> None:
    """Draw the curves of runs over each other, and list their last numbers and all in which they differ.

    Examples:

      mrt5 runs compare quickstart-mrt5-seed42 quickstart-random-seed42

      mrt5 runs compare byt5-seed1 mrt5-seed1 --by seconds --html both.html

      mrt5 runs compare mrt5-seed1 mrt5-seed2 --metric alpha --png seeds.png
    """
    from mrt5cli.runs import describing
    from mrt5cli.runs.curves import panels

    if len(runs) < 2:
        raise UserError("there is one run, and nothing to compare it with", "name two or more")
    found = [_entry(text) for text in runs]
    places = [one.run.path.resolve() for one in found]
    if twice := [one.name for one, place in zip(found, places, strict=True) if places.count(place) > 1]:
        raise UserError(f"{twice[-1]} is named twice", "name each run once")
    describing.check_comparable(found)
    named = describing.named(found)
    drawn = panels([*zip(named, found, strict=True)], metric or [], by)
    tables = [
        describing.final_numbers(found),
        describing.recipe_differences(found),
        describing.origin_differences(found),
    ]
    if as_json:
        print_json(
            {
                "runs": [one.document() for one in found],
                "recipe_differences": _as_rows(tables[1]),
                "origin_differences": _as_rows(tables[2]),
                "curves": _as_json(drawn),
            }
        )
    else:
        say("\n".join(visible(line, lines=False) for line in named))
        _print_curves(drawn)
        for table in tables:
            _print_words(table)
    legend = describing.Words("Runs", ("", "run"), [(line[0], line[3:]) for line in named], 2)
    _write(f"{counted(len(found), 'run')} compared", drawn, [legend, *tables], html, png)


@app.command("best", short_help="Name the best run by a metric.")
def best(
    metric: Annotated[
        str,
        option("A metric of evaluations, or of training, such as cross_entropy.", "--metric", metavar="NAME"),
    ] = "loss",
    folder: Folder = None,
    filters: Filters = None,
    split: Annotated[Literal["validation", "test"], option("Of evaluations, on which split.")] = "test",
    soft: Annotated[bool, option("Of evaluations, with soft gates.", "--soft/--hard")] = False,
    quiet: Annotated[bool, option("Say nothing but the run.", "--quiet", "-q")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the run that is the best by a metric, of runs that were evaluated alike; nothing else on stdout.

    Which direction is better, the metric says. Of equal runs it is the one that ended first.

    Examples:

      mrt5 runs best --metric sequence_accuracy

      mrt5 runs best --metric exact_match --filter task=tydiqa

      mrt5 evaluate $(mrt5 runs best --metric cross_entropy --quiet)
    """
    from mrt5cli.runs.choosing import chosen, rank

    everything = _entries(folder)
    if not everything:
        raise UserError(
            f"there are no runs below {_folder(folder)}/", "train one: mrt5 pretrain quickstart_byt5"
        )
    if not (runs := chosen(everything, filters or [])):
        raise UserError(_none_meets(everything, filters), "leave out a condition; `mrt5 runs` lists all")
    ranked = rank(runs, metric, split=split, soft=soft)
    first, value = ranked.best
    if as_json:
        document = {"run": first.name, "metric": metric, "value": value, "of": ranked.of}
        order = [{"run": run.name, "value": number} for run, number in ranked.runs]
        print_json(document | {"better": ranked.better, "runs": order, "remarks": ranked.remarks})
        return
    if not quiet:
        share = ranked.metric.unit == "share"
        value_text = ranked.metric.text(value, None if share else 4) + " %" * share
        way = {"lower": "lowest", "higher": "highest"}[ranked.better]
        many = counted(len(ranked.runs), "run")
        say_on_stderr(f"{ranked.metric.title} {value_text}, the {way} of {many}; {ranked.of}")
        for remark in ranked.remarks:
            say_on_stderr(f"note: {remark}")
    print(first.name)


@app.command("rm", short_help="Remove runs, or their checkpoints.")
def remove(
    runs: Runs,
    checkpoints: Annotated[
        bool, option("Only their checkpoints; model, metrics and results stay.", "--checkpoints")
    ] = False,
    yes: Yes = False,
) -> None:
    """Remove runs, having asked. One that is being trained or read is refused; links are not followed.

    Examples:

      mrt5 runs rm smoke/quickstart-smoke-seed42

      mrt5 runs rm runs/mrt5-seed1 runs/mrt5-seed2 --yes

      mrt5 runs rm runs/mrt5-seed1 --checkpoints
    """
    from mrt5cli.runs import moving
    from mrt5cli.runs.found import resolve, size_of

    found = list({str(run.path): run for run in map(resolve, runs)}.values())
    for run in found:
        what = "changed" if checkpoints else "removed"
        moving.check_own_place(run, what)
        moving.check_not_trained(run, what)
        if checkpoints:
            moving.check_has_model(run)
    lines, total = [], 0
    for run in found:
        size = size_of(run.checkpoints if checkpoints else run.path)
        total += size
        lines.append(f"{run.path}{'/checkpoints' * checkpoints}: {byte_size(size)}")
        gone = {other.path for other in found}
        if not checkpoints:
            others = [other.path for other in moving.starting_from(run) if other.path not in gone]
            if others:
                start = "starts" if len(others) == 1 else "start"
                lines.append(f"  {listed(others)} {start} from it, and could not be trained anew")
            if links := moving.outside(run):
                lines.append(f"  what {listed(links)} leads to stays")
    say_on_stderr("\n".join(lines))
    if not yes:
        _ask(f"remove {counted(len(found), 'run')}{' of checkpoints' * checkpoints}, {byte_size(total)}?")
    for run in found:
        moving.remove_checkpoints(run) if checkpoints else moving.remove(run)
        say(f"removed {run.path}{'/checkpoints' * checkpoints}")


@app.command("mv", short_help="Move a run, and keep what refers to it.")
def move(
    run: Run,
    new: Annotated[str, argument("A new name beside it, or with a / in it, a path.", "DEST")],
) -> None:
    """Move a run's directory; recipes that start from it and its own files then name the new one.

    The name in its recipe stays, and so does the command line that started it.

    Examples:

      mrt5 runs mv quickstart-mrt5-seed42 first

      mrt5 runs mv runs/mrt5-seed1 /data/kept/mrt5-seed1
    """
    from mrt5cli.runs import moving
    from mrt5cli.runs.found import resolve

    found = resolve(run)
    if new in ("", ".", ".."):
        raise UserError(f"{new!r} is no name for a run", "for example first, or kept/first")
    target = Path(new) if "/" in new else found.path.with_name(new)
    referring = moving.move(found, target)
    say(f"moved {found.path} to {target}")
    if referring:
        say(f"{listed(referring)} {'starts' if len(referring) == 1 else 'start'} from there now")


@app.command("tag", short_help="Tag a run, or show its tags.")
def tag(
    run: Run,
    tags: Annotated[list[str] | None, argument("Words to add.", "TAG", str)] = None,
    remove: Annotated[
        list[str] | None, option("Take this tag away. May be repeated.", "--remove", metavar="TAG")
    ] = None,
) -> None:
    """Tag a run, which lists show and filter; without a tag, print those it has, a line each.

    Examples:

      mrt5 runs tag quickstart-mrt5-seed42 baseline paper/table-2

      mrt5 runs tag runs/mrt5-seed1 --remove baseline

      mrt5 runs list --filter tag=baseline
    """
    from mrt5cli.runs.found import resolve, tag

    after = tag(resolve(run), tags or [], remove or [])
    for one in after:
        print(one)


# --- reading ------------------------------------------------------------------------------------------------


def _folder(folder: Path | None) -> Path:
    from mrt5cli.rundir import DEFAULT_FOLDER

    return Path(DEFAULT_FOLDER) if folder is None else folder


def _entries(folder: Path | None) -> list[Entry]:
    from mrt5cli.runs.found import find, read

    where = _folder(folder)
    if folder is not None and not where.is_dir():
        raise UserError(f"{where} is not a folder", "name one with runs in it; by default it is runs/")
    return [read(path) for path in find(where)] if where.is_dir() else []


def _none_meets(everything: Sequence[Entry], filters: Sequence[str] | None) -> str:
    return f"none of {counted(len(everything), 'run')} meets {' and '.join(filters or [])}"


def _entry(text: str) -> Entry:
    from mrt5cli.runs.found import read, resolve

    return read(resolve(text).path)


def _ask(question: str) -> None:
    """Go on after a yes from a person.

    Raises:
        UserError: nobody is there to ask, or the answer is no.
    """
    if not sys.stdin.isatty():
        raise UserError(
            "nothing was removed: there is no terminal to ask on", "add --yes to remove without asking"
        )
    if not typer.confirm(question, err=True):
        raise UserError("nothing was removed")


# --- writing ------------------------------------------------------------------------------------------------


def _print_list(runs: Sequence[Entry]) -> None:
    """A line a run: as many columns as fit, the most important ones first."""
    from mrt5cli.runs import describing

    cells: list[tuple[str, list[str]]] = [
        ("run", [visible(run.name, lines=False) for run in runs]),
        ("state", [run.state for run in runs]),
        ("step", [f"{run.step}/{run.steps}" if run.steps else str(run.step) for run in runs]),
        ("cross-\nentropy", [number(run.logged.get("cross_entropy"), 4) for run in runs]),
        ("deleted/\ntarget %", [describing.deleted(run) for run in runs]),
        ("age", [describing.ago(run.age).removesuffix(" ago") for run in runs]),
        ("tags", [visible(" ".join(run.tags), lines=False) or MISSING for run in runs]),
        ("result", [describing.result(run) for run in runs]),
        ("size", [byte_size(run.size) for run in runs]),
        ("task", [visible(run.task or MISSING, lines=False) for run in runs]),
    ]
    filled = [cell for cell in cells if {*cell[1]} != {MISSING}]
    names: Sequence[str] = ()
    fitting = _fitting(filled)
    if len(fitting) < min(LEAST_COLUMNS, len(filled)):  # names are too long: each has a line of its own
        names, fitting = filled[0][1], _fitting(filled[1:], indent=GAP)
    left_words = {"run", "state", "tags", "result", "task"}
    print_table(
        [header for header, _ in fitting],
        [*zip(*(texts for _, texts in fitting), strict=True)],
        [place for place, (header, _) in enumerate(fitting) if header in left_words],
        above=names,
    )
    if left := [header.replace("\n", "") for header, _ in filled[1:] if header not in dict(fitting)]:
        say(f"\nnot shown at this width: {', '.join(left)}")
    remarks = [(run, str(run.holder)) for run in runs if run.holder]
    remarks += [(run, run.why or "") for run in runs if run.state == "damaged"]
    if remarks:
        say()
    for run, text in remarks:
        say(f"{visible(run.name, lines=False)}: {run.state}, {text}")
    for note in (note for run in runs for note in run.all_notes):
        say_on_stderr(f"note: {note}")


def _fitting(cells: Sequence[tuple[str, list[str]]], indent: int = 0) -> list[tuple[str, list[str]]]:
    from rich.cells import cell_len

    limit = columns(sys.stdout)
    kept: list[tuple[str, list[str]]] = []
    used = indent - GAP
    for header, texts in cells:
        width = GAP + max(cell_len(text) for text in (*header.split("\n"), *texts))
        if limit is not None and used + width > limit and len(kept) > 1:
            break
        kept, used = [*kept, (header, texts)], used + width
    return kept


def _print_words(table: Words) -> None:
    if not table.rows:
        return
    say(f"\n{table.title}")
    if table.differs:
        from mrt5cli.runs.describing import grouped

        width = max(len(key) for key, *_ in table.rows)
        for key, values in grouped(table).rows:
            say(f"  {key:<{width}}  {values}")
        return
    rows = [tuple(visible(cell, lines=False) for cell in row) for row in table.rows]
    print_table(table.headers, rows, range(table.text_columns), only_filled=True)


def _print_curves(drawn: Sequence[Panel]) -> None:
    from mrt5cli.runs.curves import drawn as as_text

    width = min(columns(sys.stdout) or 80, 140)
    plain = False
    try:
        "\N{BRAILLE PATTERN DOTS-135}".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        plain = True
    for panel in drawn:
        print()
        print(visible(as_text(panel, max(width, 40), plain=plain)))


def _as_rows(table: Words) -> list[dict[str, str]]:
    return [dict(zip(table.headers, row, strict=True)) for row in table.rows]


def _as_json(drawn: Sequence[Panel]) -> list[dict[str, object]]:
    return [
        {
            "metric": panel.metric,
            "by": panel.by,
            "run": curve.label,
            "target": curve.target,
            "x": curve.x,
            "y": curve.y,
        }
        for panel in drawn
        for curve in panel.curves
    ]


def _write(
    title: str, drawn: Sequence[Panel], tables: Sequence[Words], html: Path | None, png: Path | None
) -> None:
    if html is None and png is None:
        return
    from mrt5cli.report.run_pages import write_page, write_picture

    if html is not None:
        write_page(html, title, drawn, tables)
        say_on_stderr(f"saved {html}")
    if png is not None:
        write_picture(png, drawn)
        say_on_stderr(f"saved {png}")
