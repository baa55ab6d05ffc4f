"""`mrt5 evaluate`: runs on held-out data, in one table."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mrt5cli import bounds
from mrt5cli.commands import options
from mrt5cli.commands.options import amount, argument, named, option, path, shares, written
from mrt5cli.errors import UserError
from mrt5cli.output import print_json
from mrt5cli.text import announced, say, say_on_stderr

if TYPE_CHECKING:
    from mrt5cli.evaluation.compare import Comparison


Runs = Annotated[
    list[str] | None,
    argument("Runs, checkpoint directories or Hub ids. Default: the newest finished run.", "RUN"),
]
Task = Annotated[
    str | None,
    named("A kind of task, or a recipe whose task to use. Default: the first run's own.", metavar="TASK"),
]
Split = Annotated[Literal["validation", "test"], option("Which held-out split.")]
Languages = Annotated[
    str | None, option("Only these languages, or parts of the test. Default: all.", metavar="NAME,...")
]
Data = Annotated[Path | None, path("Examples in local files, in place of the task's own.")]
Constrained = Annotated[
    bool, option("Also choose the likeliest of the possible targets (xnli).", "--constrained")
]
Rule = Annotated[
    Literal["squad", "multilingual", "none"] | None,
    option("How exact match and F1 compare answers. Default: the task's; squad, as published, or none."),
]
Other = Annotated[
    str | None,
    named("Set this one beside the run, and test whether they differ.", "--compare", metavar="RUN"),
]
Rates = Annotated[
    str | None,
    option(
        "Also run it at these deletion rates, by a threshold found on validation data, untrained; 0 deletes "
        "nothing. A model with a quantile gate is told the rate.",
        metavar="RATE,...",
    ),
]
Runtime = Annotated[bool, option("Also time forward passes.", "--runtime")]
Predictions = Annotated[
    Path | None,
    written("Also write generated answers to this .jsonl, .csv or .tsv, a row an example, with its scores."),
]
Limit = Annotated[int | None, amount("Examples a language. Default: the recipe's.", bounds.EXAMPLES)]
BatchSize = Annotated[int | None, amount("Examples a batch. Default: the recipe's.", bounds.BATCH)]
Html = Annotated[
    Path | None,
    written("Also write tables and figures as one HTML page that needs nothing else.", "--html"),
]


def evaluate(
    runs: Runs = None,
    revision: options.Revision = None,
    task: Task = None,
    split: Split = "test",
    languages: Languages = None,
    data: Data = None,
    hard: options.Hard = None,
    constrained: Constrained = False,
    normalization: Rule = None,
    compare_with: Other = None,
    deletion_rate: Rates = None,
    runtime: Runtime = False,
    limit: Limit = None,
    batch_size: BatchSize = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    predictions: Predictions = None,
    no_pickle: options.NoPickle = False,
    code: options.Code = None,
    as_json: options.AsJson = False,
    out: options.Document = None,
    html: Html = None,
) -> None:
    """Measure runs on held-out data: quality and deletion together, and what the source is worth.

    Results of a run are also saved in its eval/ folder. Where a later language or run fails, what was
    measured before is printed, and saved in eval/unfinished/.

    Examples:

      mrt5 evaluate runs/quickstart-mrt5-seed42

      mrt5 evaluate runs/byt5-seed1 runs/mrt5-seed1 --limit 1000

      mrt5 evaluate runs/mrt5-seed1 --task vowel_removal --soft --json

      mrt5 evaluate runs/mrt5-seed1 --deletion-rate 0,0.3,0.5,0.7 --html dial.html

      mrt5 evaluate --task xnli --languages en,sw --constrained

      mrt5 evaluate runs/mrt5-seed1 --compare runs/byt5-seed1 --task tydiqa --data tydi/

      mrt5 evaluate runs/mrt5-seed1 --predictions answers.jsonl
    """
    written = {"--predictions": predictions, "--out": out, "--html": html}
    for (one, file), (other, same) in combinations(written.items(), 2):
        if file is not None and same is not None and file.resolve() == same.resolve():
            raise UserError(f"{one} and {other} are both {file}", "choose another name for one of them")
    rates = [] if deletion_rate is None else shares("--deletion-rate", deletion_rate, or_none=True)
    # After what needs no torch, which takes seconds to import.
    from mrt5cli.evaluation.request import evaluate as measure
    from mrt5cli.subject import newest_subject

    if not runs:
        newest = newest_subject(task)
        (say_on_stderr if as_json else say)(f"newest finished run: {newest.name}")
        assert newest.run is not None
        runs = [str(newest.run.path)]
    with ExitStack() as last:
        comparison = measure(
            _named(runs, compare_with),
            task,
            data=data,
            split=split,
            languages=None if languages is None else [name.strip() for name in languages.split(",")],
            hard_delete=hard,
            deletion_rates=rates,
            test_difference=compare_with is not None,
            constrained=constrained,
            normalization=normalization,
            runtime=runtime,
            limit=limit,
            batch_size=batch_size,
            predictions=predictions,
            device=device,
            precision=precision,
            revision=revision,
            allow_pickle=not no_pickle,
            unfinished=lambda part: last.callback(_show, part, out, html, as_json),
        )
    _show(comparison, out, html, as_json)


def _show(comparison: Comparison, out: Path | None, html: Path | None, as_json: bool) -> None:
    """Save and print what was measured; what cannot be written is an error when all else is done."""
    from mrt5cli.commands.evaluation_tables import present, to_page
    from mrt5cli.writing import write_json, write_text

    for line in [*(f"note: {remark}" for remark in comparison.remarks), *comparison.save()]:
        say_on_stderr(line)
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
    if html is not None:
        with announced("drawing figures ...", say_on_stderr):
            page = to_page(comparison)
        write_text(html, page)
        say_on_stderr(f"saved {html}")


def _named(runs: list[str], compare_with: str | None) -> list[str]:
    """The runs that the command line names, the one to compare with last."""
    if compare_with is None:
        return runs
    if len(runs) > 1:
        raise UserError("--compare sets one run beside one other", f"give one RUN, not {len(runs)}")
    return [*runs, compare_with]
