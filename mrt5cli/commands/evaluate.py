"""`mrt5 evaluate`: measure runs on held-out data, in one table."""

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
    argument("Runs, checkpoint directories or Hub ids.", "RUN", default="the newest finished run"),
]
Task = Annotated[
    str | None,
    named("Task to evaluate on: the name of a task, or a recipe.", metavar="TASK", default="the first run's"),
]
Split = Annotated[Literal["validation", "test"], option("Held-out split.")]
Languages = Annotated[
    str | None, option("Languages or test subsets to evaluate.", metavar="NAME,...", default="all")
]
Data = Annotated[
    Path | None, path("Local file or folder of examples that replaces the task's data.", default="the task's")
]
Constrained = Annotated[
    bool, option("Also score the likeliest of the possible targets (xnli).", "--constrained")
]
Rule = Annotated[
    Literal["squad", "multilingual", "none"] | None,
    option(
        "Normalization of answers for exact match and F1; squad is the published one.",
        default="the task's: squad or none",
    ),
]
Other = Annotated[
    str | None, named("Run to compare with, including a significance test.", "--compare", metavar="RUN")
]
Rates = Annotated[
    str | None,
    option(
        "Deletion rates to evaluate as well, without training; 0 deletes nothing. The gate's threshold is "
        "calibrated on validation data; a quantile gate is conditioned on the rate instead.",
        metavar="RATE,...",
    ),
]
Runtime = Annotated[bool, option("Also time forward passes.", "--runtime")]
Predictions = Annotated[
    Path | None, written("Also write each generated answer and its scores to this .jsonl, .csv or .tsv file.")
]
Limit = Annotated[
    int | None, amount("Maximum examples per language.", bounds.EXAMPLES, default="the recipe's")
]
BatchSize = Annotated[int | None, amount("Examples per batch.", bounds.BATCH, default="the recipe's")]
Html = Annotated[
    Path | None, written("Also write tables and figures to this file, a self-contained HTML page.", "--html")
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
    """Measure loss, accuracy and deletion rate on held-out data.

    The table also shows how much the loss rises when the source is removed: a model that hardly reads its
    source can delete it for free. The results of a run are saved in its eval/ folder. If a language or run
    fails, the results before it are printed, and saved in eval/unfinished/.

    Examples:

      mrt5 evaluate runs/quickstart-mrt5-seed42

      mrt5 evaluate runs/quickstart-byt5-seed42 runs/quickstart-mrt5-seed42 --limit 1000

      mrt5 evaluate runs/quickstart-mrt5-seed42 --soft --json

      mrt5 evaluate runs/quickstart-mrt5-seed42 --deletion-rate 0,0.1,0.2 --html dial.html

      mrt5 evaluate --task xnli --languages en,sw --constrained

      mrt5 evaluate runs/mrt5-seed1 --compare runs/byt5-seed1 --task tydiqa --data tydi/

      mrt5 evaluate runs/mrt5-seed1 --predictions answers.jsonl
    """
    written = {"--predictions": predictions, "--out": out, "--html": html}
    for (one, file), (other, same) in combinations(written.items(), 2):
        if file is not None and same is not None and file.resolve() == same.resolve():
            raise UserError(f"{one} and {other} both name {file}", "choose another name for one of them")
    rates = [] if deletion_rate is None else shares("--deletion-rate", deletion_rate, or_none=True)
    # After the checks above, because torch takes seconds to import.
    from mrt5cli.evaluation.request import evaluate as measure
    from mrt5cli.subject import newest_subject

    if not runs:
        newest = newest_subject(task)
        (say_on_stderr if as_json else say)(f"newest finished run: {newest.name}")
        assert newest.run is not None
        runs = [str(newest.run.path)]
    if compare_with is not None and len(runs) > 1:
        raise UserError("--compare compares one run with one other", f"give one RUN, not {len(runs)}")
    with ExitStack() as last:
        comparison = measure(
            [*runs, *filter(None, [compare_with])],
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
    """Save and print the results; a file that cannot be written is an error only after everything else."""
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
