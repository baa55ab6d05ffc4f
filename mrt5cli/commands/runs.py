"""`mrt5 runs`: list, show, compare, rank, tag, move and remove runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mrt5cli import places
from mrt5cli.commands.options import AsJson, argument, option, written
from mrt5cli.errors import UserError
from mrt5cli.output import print_json
from mrt5cli.text import byte_size, counted, listed, say, say_on_stderr, visible

if TYPE_CHECKING:
    from mrt5cli.runs.found import Entry

FILTERS = (
    "Condition that runs must meet: part of a name, a pattern, KEY=WORD,... or KEY!=WORD,... (name, state, "
    "tag, task, shortener, start), or a comparison such as KEY<NUMBER (step, target, size, or any metric). "
    "May be repeated."
)
Run = Annotated[str, argument("Run directory, or its name below runs/.", "RUN")]
Runs = Annotated[list[str], argument("Run directories, or their names below runs/.", "RUN")]
Folder = Annotated[Path | None, argument("Folder to search.", "DIR", places.path, default="runs")]
Filters = Annotated[list[str] | None, option(FILTERS, "--filter", metavar="CONDITION")]
Sort = Annotated[
    str,
    option("Sort key: name, state, tag, task, step, size, age, or any metric.", "--sort", metavar="COLUMN"),
]
Metrics = Annotated[
    list[str] | None,
    option(
        "Metric of metrics.jsonl to plot. May be repeated.",
        "--metric",
        metavar="NAME",
        default="cross_entropy, deletion_rate, alpha",
    ),
]
Html = Annotated[Path | None, written("Also write a self-contained HTML page to this file.", "--html")]
Png = Annotated[Path | None, written("Also write the curves to this file, a PNG image.", "--png")]
Along = Annotated[Literal["step", "seconds", "bytes"], option("Horizontal axis of the curves.", "--by")]
Yes = Annotated[bool, option("Do not ask for confirmation.", "--yes", "-y")]

app = typer.Typer(rich_markup_mode=None, invoke_without_command=True)


@app.callback()
def _runs(context: typer.Context) -> None:
    """List, show, compare, rank, tag, move and remove runs. Without a command, list the runs below runs/.

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
    reverse: Annotated[bool, option("Reverse the order.", "--reverse", "-r")] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs below a folder, with state, steps, cross-entropy, deletion rate, result and age.

    A run is "running" while a process holds its lock, and "stale" if it was killed: meta.json states that it
    is running, but no process holds the lock. The meta.json or recipe.yaml of a "damaged" run is unreadable.

    Examples:

      mrt5 runs list

      mrt5 runs list --filter mrt5 --filter state=finished --sort loss

      mrt5 runs list runs/miniature --filter 'deletion_rate>0.4' --json
    """
    from mrt5cli.commands.runs_display import print_list
    from mrt5cli.runs.choosing import chosen, ordered

    everything = _entries(folder)
    runs = ordered(chosen(everything, filters or []), sort, reverse)
    if as_json:
        print_json([run.document() for run in runs])
    elif runs:
        print_list(runs)
    elif everything:
        say(_none_meets(everything, filters))
    else:
        say(f"no runs below {_folder(folder)}/; train one with `mrt5 pretrain quickstart_byt5`")


@app.command("show", short_help="Show a run's state, results and curves.")
def show(
    run: Run,
    metric: Metrics = None,
    by: Along = "step",
    html: Html = None,
    png: Png = None,
    as_json: AsJson = False,
) -> None:
    """Show a run: its model, state, sessions, checkpoints, evaluations and curves.

    Examples:

      mrt5 runs show quickstart-mrt5-seed42

      mrt5 runs show runs/mrt5-seed1 --metric grad_norm --metric learning_rate

      mrt5 runs show quickstart-mrt5-seed42 --html run.html --png run.png
    """
    from mrt5cli.commands.runs_display import curve_rows, print_curves, print_words, write_pages
    from mrt5cli.runs import describing
    from mrt5cli.runs.curves import panels

    one = _entry(run)
    drawn = panels([(one.name, one)], metric or [], by) if one.state != "damaged" else []
    facts, tables = describing.facts(one), [describing.sessions(one), describing.evaluations(one)]
    if as_json:
        more = {"recipe": describing.tree_of(one), "meta": one.meta, "curves": curve_rows(drawn)}
        print_json(one.document() | more)
    else:
        say(visible(one.name, lines=False))
        width = max(len(label) for label, _ in facts)
        for label, text in facts:
            say(f"  {label:<{width}}  {text}")
        for table in tables:
            print_words(table)
        print_curves(drawn)
        for note in one.all_notes:
            say_on_stderr(f"note: {note}")
    write_pages(
        one.name, drawn, [describing.Words("Summary", ("", ""), facts, 2, prose=True), *tables], html, png
    )


@app.command("compare", short_help="Compare curves, results, recipes and versions.")
def compare(
    runs: Runs,
    metric: Metrics = None,
    by: Along = "step",
    html: Html = None,
    png: Png = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs: plot their curves together, and list their final numbers and all their differences.

    Examples:

      mrt5 runs compare quickstart-mrt5-seed42 quickstart-random-seed42

      mrt5 runs compare byt5-seed1 mrt5-seed1 --by seconds --html both.html

      mrt5 runs compare mrt5-seed1 mrt5-seed2 --metric alpha --png seeds.png
    """
    from mrt5cli.commands.runs_display import as_rows, curve_rows, print_curves, print_words, write_pages
    from mrt5cli.runs import describing
    from mrt5cli.runs.curves import panels

    if len(runs) < 2:
        raise UserError("one run has nothing to be compared with", "name at least two runs")
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
                "recipe_differences": as_rows(tables[1]),
                "origin_differences": as_rows(tables[2]),
                "curves": curve_rows(drawn),
            }
        )
    else:
        say("\n".join(visible(line, lines=False) for line in named))
        print_curves(drawn)
        for table in tables:
            print_words(table)
    legend = describing.Words("Runs", ("", "run"), [(line[0], line[3:]) for line in named], 2)
    write_pages(f"{counted(len(found), 'run')} compared", drawn, [legend, *tables], html, png)


@app.command("best", short_help="Print the best run by a metric.")
def best(
    metric: Annotated[
        str,
        option("Metric of evaluations, or of training, such as cross_entropy.", "--metric", metavar="NAME"),
    ] = "loss",
    folder: Folder = None,
    filters: Filters = None,
    split: Annotated[Literal["validation", "test"], option("Split of the evaluations to compare.")] = "test",
    soft: Annotated[bool, option("Deletion mode of the evaluations to compare.", "--soft/--hard")] = False,
    quiet: Annotated[bool, option("Print nothing but the run.", "--quiet", "-q")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the name of the best run by a metric, among runs evaluated under the same conditions.

    stdout receives the name alone; the value goes to stderr. The metric determines whether lower or higher is
    better. Ties keep the run that ended first.

    Examples:

      mrt5 runs best --metric sequence_accuracy

      mrt5 runs best --metric exact_match --filter task=tydiqa

      mrt5 evaluate $(mrt5 runs best --metric cross_entropy --quiet)
    """
    from mrt5cli.runs.choosing import chosen, rank

    everything = _entries(folder)
    if not everything:
        raise UserError(f"no runs below {_folder(folder)}/", "train one with `mrt5 pretrain quickstart_byt5`")
    if not (runs := chosen(everything, filters or [])):
        raise UserError(_none_meets(everything, filters), "drop a condition; `mrt5 runs` lists all runs")
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
        bool, option("Remove checkpoints only; keep model, metrics and results.", "--checkpoints")
    ] = False,
    yes: Yes = False,
) -> None:
    """Remove runs, after confirmation. Runs in use by another process are refused; links are not followed.

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
        if not checkpoints:
            removed = {other.path for other in found}
            others = [other.path for other in moving.starting_from(run) if other.path not in removed]
            if others:
                start = "starts" if len(others) == 1 else "start"
                lines.append(f"  {listed(others)} {start} from it, and cannot be trained again without it")
            if links := moving.outside(run):
                lines.append(f"  the targets of links are kept: {listed(links)}")
    say_on_stderr("\n".join(lines))
    if not yes:
        _ask(f"remove {'the checkpoints of ' * checkpoints}{counted(len(found), 'run')}, {byte_size(total)}?")
    for run in found:
        moving.remove_checkpoints(run) if checkpoints else moving.remove(run)
        say(f"removed {run.path}{'/checkpoints' * checkpoints}")


@app.command("mv", short_help="Move a run, and update references to it.")
def move(
    run: Run, new: Annotated[str, argument("New name in the same folder, or a path (with a /).", "DEST")]
) -> None:
    """Move a run directory, and update its own files and the recipes of runs that start from it.

    The name in its recipe and its recorded command line do not change.

    Examples:

      mrt5 runs mv quickstart-mrt5-seed42 first

      mrt5 runs mv runs/mrt5-seed1 /data/kept/mrt5-seed1
    """
    from mrt5cli.runs import moving
    from mrt5cli.runs.found import resolve

    found = resolve(run)
    if new in ("", ".", ".."):
        raise UserError(f"{new!r} is not a name for a run", "for example first, or kept/first")
    target = Path(new) if "/" in new else found.path.with_name(new)
    referring = moving.move(found, target)
    say(f"moved {found.path} to {target}")
    if referring:
        say(f"updated the starting model of {listed(referring)}")


@app.command("tag", short_help="Tag a run, or print its tags.")
def tag(
    run: Run,
    tags: Annotated[list[str] | None, argument("Tags to add.", "TAG", str)] = None,
    remove: Annotated[
        list[str] | None, option("Tag to remove. May be repeated.", "--remove", metavar="TAG")
    ] = None,
) -> None:
    """Add tags to a run, or remove them, and print its tags. `mrt5 runs list` shows and filters by tags.

    Examples:

      mrt5 runs tag quickstart-mrt5-seed42 baseline paper/table-2

      mrt5 runs tag quickstart-mrt5-seed42 --remove baseline

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
        raise UserError(f"{where} is not a folder", "name a folder that contains runs; the default is runs/")
    return [read(path) for path in find(where)] if where.is_dir() else []


def _none_meets(everything: Sequence[Entry], filters: Sequence[str] | None) -> str:
    return f"none of {counted(len(everything), 'run')} meets {' and '.join(filters or [])}"


def _entry(text: str) -> Entry:
    from mrt5cli.runs.found import read, resolve

    return read(resolve(text).path)


def _ask(question: str) -> None:
    """Ask for confirmation; UserError if the answer is no, or if there is no terminal."""
    if not sys.stdin.isatty():
        raise UserError(
            "nothing was removed: confirmation needs a terminal", "add --yes to remove without confirmation"
        )
    if not typer.confirm(question, err=True):
        raise UserError("nothing was removed")
