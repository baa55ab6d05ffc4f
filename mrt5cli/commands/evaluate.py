"""`mrt5 evaluate`: runs on held-out data, in one table."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mrt5cli import bounds, places
from mrt5cli.commands.evaluation_tables import present
from mrt5cli.commands.options import Code, Device, NoPickle, Revision
from mrt5cli.commands.progress import examples_done
from mrt5cli.errors import UserError
from mrt5cli.output import print_json
from mrt5cli.text import say, shortened

if TYPE_CHECKING:
    from mrt5cli.evaluation.compare import Comparison
    from mrt5cli.subject import Subject


def evaluate(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            parser=places.place,
            metavar="RUN",
            help="Run directories, checkpoint directories or Hub ids. Default: the newest finished run.",
        ),
    ] = None,
    revision: Revision = None,
    task: Annotated[
        str | None,
        typer.Option(
            parser=places.place,
            metavar="TASK",
            help="A kind of task, or a recipe whose task to use. Default: the first run's own.",
        ),
    ] = None,
    split: Annotated[Literal["validation", "test"], typer.Option(help="Which held-out split.")] = "test",
    languages: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only these languages, or parts of the test. Default: all."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(parser=places.path, help="Examples in local files, in place of the task's own source."),
    ] = None,
    hard: Annotated[
        bool | None,
        typer.Option(
            "--hard/--soft", help="Delete for real, or gate softly as in training. Default: the recipe's."
        ),
    ] = None,
    constrained: Annotated[
        bool, typer.Option("--constrained", help="Also choose the likeliest of the possible targets (xnli).")
    ] = False,
    normalization: Annotated[
        Literal["squad", "multilingual"] | None,
        typer.Option(help="How answers are compared. Default: squad, as published."),
    ] = None,
    compare_with: Annotated[
        str | None,
        typer.Option(
            "--compare",
            parser=places.place,
            metavar="RUN",
            help="Set this one beside the run, and test whether they differ.",
        ),
    ] = None,
    deletion_rate: Annotated[
        str | None,
        typer.Option(
            metavar="RATE,...",
            help="Also run it at these deletion rates, by a threshold found on validation data, untrained.",
        ),
    ] = None,
    runtime: Annotated[bool, typer.Option("--runtime", help="Also time forward passes.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=bounds.EXAMPLES, help="Examples a language. Default: the recipe's."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=bounds.BATCH, help="Examples a batch. Default: the recipe's.")
    ] = None,
    device: Device = "auto",
    no_pickle: NoPickle = False,
    code: Code = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of a table.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(parser=places.path, help="Also write the JSON document to this file.")
    ] = None,
) -> None:
    """Measure runs on held-out data: quality and deletion together, and what the source is worth.

    Results of a run are also saved in its eval/ folder. Where a later language or run fails, what was
    measured before is printed, and saved in eval/unfinished/.

    Examples:

      mrt5 evaluate runs/quickstart-mrt5-seed42

      mrt5 evaluate runs/byt5-seed1 runs/mrt5-seed1 --limit 1000

      mrt5 evaluate runs/mrt5-seed1 --task vowel_removal --soft --json

      mrt5 evaluate runs/mrt5-seed1 --deletion-rate 0.3,0.5,0.7

      mrt5 evaluate --task xnli --languages en,sw --constrained

      mrt5 evaluate runs/mrt5-seed1 --compare runs/byt5-seed1 --task tydiqa --data tydi/
    """
    from mrt5cli import runtime as machine
    from mrt5cli.evaluation.compare import compare
    from mrt5cli.evaluation.options import EvaluationOptions
    from mrt5cli.recipe import EvaluationSection
    from mrt5cli.subject import choose_task, find_subjects, newest_subject

    if out is not None:
        _check_writable(out)
    rates = [] if deletion_rate is None else _rates(deletion_rate)
    subjects = find_subjects(_named(runs or [], compare_with), revision, allow_pickle=not no_pickle)
    if not runs:
        subjects.insert(0, newest_subject(task))
        say(f"newest finished run: {subjects[0].name}", sys.stderr if as_json else sys.stdout)
    if rates and len(subjects) > 1:
        raise UserError("--deletion-rate moves one run's threshold", "give one RUN, without --compare")
    section = choose_task(task, subjects[0], None if data is None else str(data))
    if task is None:
        _check_one_task(subjects, apart_from={"train_examples"} | ({"source"} if data else set()))
    recipe = subjects[0].recipe
    settings = EvaluationSection() if recipe is None else recipe.evaluation
    options = EvaluationOptions(
        split=split,
        subsets=None if languages is None else [name.strip() for name in languages.split(",")],
        batch_size=batch_size or settings.batch_size,
        limit=limit or settings.examples,
        hard_delete=settings.hard_delete if hard is None else hard,
        constrained=constrained,
        normalization=normalization,
        runtime=runtime,
        deletion_rates=rates,
        test_difference=compare_with is not None,
        data=None if data is None else str(data),
    )
    if rates and not options.hard_delete:
        raise UserError("--deletion-rate is of hard deletion; soft gates have none", "add --hard")
    with ExitStack() as last, examples_done(limit or settings.examples) as progress:
        comparison = compare(
            subjects,
            section,
            options,
            device=machine.device(device),
            progress=progress,
            unfinished=lambda part: last.callback(_show, part, out, as_json),
        )
    _show(comparison, out, as_json)


def _show(comparison: Comparison, out: Path | None, as_json: bool) -> None:
    """Save and print what was measured; what cannot be written is an error when all else is done."""
    from mrt5cli.writing import write_json

    for line in [*(f"note: {remark}" for remark in comparison.remarks), *comparison.save()]:
        say(line, sys.stderr)
    if as_json:
        print_json(comparison.document())
    elif comparison.unfinished is None:
        present(comparison)
    else:
        for result in comparison.results:
            present(replace(comparison, results=[result]))
        say(f"unfinished: {comparison.unfinished}")
    if out is not None:
        write_json(out, comparison.document())


def _named(runs: list[str], compare_with: str | None) -> list[str]:
    """The runs that the command line names, the one to compare with last."""
    if compare_with is None:
        return runs
    if len(runs) > 1:
        raise UserError("--compare sets one run beside one other", f"give one RUN, not {len(runs)}")
    return [*runs, compare_with]


def _check_writable(out: Path) -> None:
    """Say before measuring, not after, that there is nowhere to write."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written: {error.strerror}", "choose another file for --out"
        ) from error
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"{out} cannot be written", "choose another file for --out")


def _rates(listed: str) -> list[float]:
    """Shares of positions, 0 to 1, in the order given."""
    try:
        rates = [float(part) for part in listed.split(",")]
    except ValueError:
        rates = [-1.0]
    if not all(0 < rate < 1 for rate in rates):
        raise UserError(
            f"--deletion-rate '{shortened(listed)}': a rate is a share of positions, above 0 and below 1",
            "for example --deletion-rate 0.3,0.5,0.7",
        )
    return rates


def _check_one_task(subjects: Sequence[Subject], apart_from: Collection[str]) -> None:
    """Without --task, all runs must have been trained on what the first one was."""
    from mrt5cli.recipe.differences import unlike

    first = subjects[0]
    for other in subjects[1:]:
        if other.recipe is None or first.recipe is None:
            continue
        for key, (one, two) in unlike(first.recipe.task, other.recipe.task).items():
            if key.partition(".")[0] not in apart_from:
                raise UserError(
                    f"{first.name} and {other.name} were trained on different tasks ({key}: {one} and {two})",
                    "name the one to measure them on with --task",
                )
