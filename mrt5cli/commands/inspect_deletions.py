"""`mrt5 inspect-deletions`: mark the bytes that models delete or pool in texts, and count them by kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mrt5cli import bounds
from mrt5cli.bars import bars
from mrt5cli.commands import options
from mrt5cli.commands.options import amount, argument, named, option, path, written
from mrt5cli.errors import UserError, not_written
from mrt5cli.output import print_json
from mrt5cli.places import shown
from mrt5cli.text import counted, listed, say, say_on_stderr
from mrt5cli.writing import write_text

if TYPE_CHECKING:
    import torch

    from mrt5cli.analysis.deletions import InspectedRow
    from mrt5cli.analysis.inspection import Inspection
    from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
    from mrt5cli.subject import Subject

    Progress = Callable[[int, int], None]
    Look = Callable[[Subject, MrT5ForConditionalGeneration, Progress], list[InspectedRow]]

EXAMPLES = 5
PIECES = 20
LENGTH_WITHOUT_RECIPE = 1024
FEW_CHECKPOINTS = 3
MANY_POSITIONS = 100_000


Runs = Annotated[list[str], argument(f"{options.ANY_MODEL[:-1]}; several are compared.", "RUN")]
Text = Annotated[str | None, option("Text to inspect.", metavar="TEXT")]
File = Annotated[Path | None, path("File to inspect, in any encoding.", metavar="FILE")]
Task = Annotated[
    str | None,
    named(
        "Task whose test examples to inspect: the name of a task, or a recipe.",
        metavar="TASK",
        default="the first run's",
    ),
]
Limit = Annotated[
    int | None,
    amount(
        "Maximum examples of a task, or pieces of a long text.",
        bounds.EXAMPLES,
        default=f"{EXAMPLES} examples, {PIECES} pieces",
    ),
]
Html = Annotated[
    Path | None,
    written(
        "Write a self-contained HTML page to this file, with every gate value and an adjustable threshold.",
        "--html",
    ),
]
Heatmap = Annotated[
    bool, option("Show every checkpoint of one run, to see how deletion develops.", "--heatmap")
]


def inspect_deletions(
    runs: Runs,
    revision: options.Revision = None,
    text: Text = None,
    file: File = None,
    task: Task = None,
    limit: Limit = None,
    threshold: options.Threshold = None,
    html: Html = None,
    heatmap: Heatmap = False,
    device: options.Device = "auto",
    no_pickle: options.NoPickle = False,
    code: options.Code = None,
    as_json: options.AsJson = False,
) -> None:
    """Show which bytes a model deletes, or how it pools them, and count them by kind.

    By default, the texts are test examples of the first run's task.

    Examples:

      mrt5 inspect-deletions runs/quickstart-mrt5-seed42

      mrt5 inspect-deletions runs/quickstart-mrt5-seed42 --text "Was bleibt, und was geht?"

      mrt5 inspect-deletions runs/quickstart-mrt5-seed42 --file book.txt --limit 3 --json

      mrt5 inspect-deletions runs/quickstart-mrt5-seed42 runs/quickstart-random-seed42 --html gates.html

      mrt5 inspect-deletions runs/quickstart-mrt5-seed42 --heatmap --limit 1
    """
    if sum(given is not None for given in (text, file, task)) > 1:
        raise UserError("--text, --file and --task exclude each other", "give one of them")
    if heatmap and len(runs) > 1:
        raise UserError(
            f"--heatmap shows the checkpoints of one run, but {len(runs)} were named",
            "name one run, or leave out --heatmap to compare models",
        )
    if html is not None and file is not None and html.resolve() == file.resolve():
        raise UserError(f"--file and --html both name {file}", "choose another name for the page")
    content = None if text is None else text.encode("utf-8", "surrogateescape")
    if file is not None:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}", "name a readable file") from error
    if content == b"":
        raise UserError(f"{file or '--text'} is empty", "give at least one byte of text")
    # After the checks above, because torch takes seconds to import.
    from mrt5cli import runtime
    from mrt5cli.commands.inspection_display import present, present_several, summary
    from mrt5cli.models import read_config
    from mrt5cli.subject import find_subjects

    subjects = find_subjects(runs, revision, allow_pickle=not no_pickle)
    if heatmap:
        subjects = _history(subjects[0])
    configs = [read_config(subject.source) for subject in subjects]
    for subject, config in zip(subjects, configs, strict=True):
        _check_shortens(config, subject, threshold)
    if content is None:
        look = _at_task(subjects, task, limit or EXAMPLES, threshold)
    else:
        look = _at_text(subjects, configs, content, limit or PIECES, threshold)
    found = _inspected(subjects, look, threshold, runtime.device(device))
    labels = [subject.name for subject in subjects]
    if heatmap:
        labels = ["finished" if one.step is None else f"step {one.step:,}" for one in subjects]
    if html is not None:
        _write_page(html, found, labels, subjects[0].run.path.name if heatmap and subjects[0].run else None)
    if as_json:
        documents = [one.document() for one in found]
        if heatmap:
            steps = [
                {"step": one.step, **document} for one, document in zip(subjects, documents, strict=True)
            ]
            print_json({"name": runs[0], "checkpoints": steps})
        else:
            print_json(documents[0] if len(documents) == 1 else {"models": documents})
    elif html is not None:
        for one in found:
            say(summary(one))
        say(f"wrote {html}; open it in a browser")
    elif len(found) == 1:
        present(found[0])
    else:
        present_several(found, labels, heatmap)


def _history(subject: Subject) -> list[Subject]:
    """The checkpoints and the finished model of a run; UserError if it is not a run, or has none."""
    from mrt5cli.subject import history

    if subject.run is None:
        raise UserError(
            f"--heatmap needs a run directory, and {subject.name} is not one",
            "name a directory that `mrt5 pretrain` or `mrt5 finetune` wrote",
        )
    if subject.step is not None:
        raise UserError(
            f"--heatmap shows all checkpoints of a run, and {subject.name} is one checkpoint",
            f"name the run: {shown(subject.run.path)}",
        )
    steps = subject.run.saved_steps()
    if not steps:
        raise UserError(
            f"{subject.run.path} has no checkpoints left", "leave out --heatmap to inspect its model"
        )
    training = None if subject.recipe is None else subject.recipe.training
    if len(steps) < FEW_CHECKPOINTS and training is not None:
        say_on_stderr(
            f"{subject.name} has only {counted(len(steps), 'checkpoint')}, because it was trained with "
            f"training.keep_checkpoints={training.keep_checkpoints} and training.save_steps="
            f"{training.save_steps}; to see more, train with a larger keep_checkpoints or smaller save_steps"
        )
    return history(subject)


def _check_shortens(config: MrT5Config, subject: Subject, threshold: float | None) -> None:
    """Refuse a model that deletes nothing, and a threshold outside the range of gate values."""
    from mrt5cli.generation.calibration import check_threshold
    from mrt5cli.recipe.shorteners import of_type

    kind = of_type(config.deletion_type)
    if kind.refuses_inspection:
        raise UserError(
            f"{subject.name} {kind.refuses_inspection}",
            "inspect-deletions needs a run with a shortener; `mrt5 pretrain local_text` trains one",
        )
    if threshold is not None:
        check_threshold(config, subject.name, threshold)


def _inspected(
    subjects: Sequence[Subject], look: Look, threshold: float | None, device: torch.device
) -> list[Inspection]:
    """The deletions of each model; only one model is in memory at a time."""
    import torch

    from mrt5cli.analysis.inspection import Inspection
    from mrt5cli.models.shorteners import SHORTENERS
    from mrt5cli.recipe.shorteners import of_config
    from mrt5cli.subject import load_model

    found = []
    alone = len(subjects) == 1
    with bars("inspecting") as bar:
        for number, subject in enumerate(subjects):
            bar(*((subject.name, 0, 0) if alone else ("models", number, len(subjects))))
            model = load_model(subject, device)
            torch.manual_seed(0)  # the reference's formulas use random numbers in evaluation too
            rows = look(subject, model, partial(bar, subject.name) if alone else lambda done, total: None)
            config = model.config
            shortener = of_config(config)
            limit = config.threshold if threshold is None else threshold
            found.append(
                Inspection(
                    subject.name,
                    config.deletion_type,
                    limit,
                    rows,
                    requested=SHORTENERS[config.deletion_type].rate_at(config, limit),
                    lowest=shortener.lowest_gate_value,
                    fixed=shortener.refuses_threshold
                    and shortener.refuses_threshold.format_map(dict(shortener)),
                )
            )
    return found


def _at_text(
    subjects: Sequence[Subject],
    configs: Sequence[MrT5Config],
    content: bytes,
    limit: int,
    threshold: float | None,
) -> Look:
    """Inspect a text in pieces that are short enough for every model."""
    from mrt5cli.analysis.deletions import inspect_text, pieces
    from mrt5cli.recipe import DiagnosticTask

    tasks = [None if subject.recipe is None else subject.recipe.task for subject in subjects]
    longest = [LENGTH_WITHOUT_RECIPE if task is None else task.longest_source for task in tasks]
    longest += [one.max_position_embeddings for one in configs if one.has_absolute_position_embeddings]
    length = min(longest)
    of_strings = [
        subject.name
        for subject, task in zip(subjects, tasks, strict=True)
        if isinstance(task, DiagnosticTask)
    ]
    if of_strings and not content.startswith(b"#"):
        was = "was" if len(of_strings) == 1 else "were"
        say_on_stderr(f"{listed(of_strings)} {was} trained on strings that begin with '#', unlike this text")
    # Each piece ends with an EOS that is not in the text.
    lengths = [len(piece) - 1 for piece in islice(pieces(content, length), limit)]
    if sum(lengths) < len(content):
        say_on_stderr(
            f"only the first {sum(lengths):,} of {len(content):,} bytes are inspected, in {limit} pieces of "
            f"{length} byte tokens; --limit sets the number of pieces"
        )

    def look(_: Subject, model: MrT5ForConditionalGeneration, progress: Progress) -> list[InspectedRow]:
        return inspect_text(
            model,
            content,
            length,
            limit=limit,
            threshold=threshold,
            progress=lambda done: progress(done, len(lengths)),
        )

    return look


def _at_task(subjects: Sequence[Subject], option: str | None, limit: int, threshold: float | None) -> Look:
    """Inspect test examples of a task, by default the first model's."""
    from mrt5cli.analysis.deletions import inspect_task
    from mrt5cli.subject import check_fits, choose_task
    from mrt5cli.tasks.base import build_task

    section = choose_task(option, subjects[0])
    others = [one.name for one in subjects if one.recipe is not None and one.recipe.task != section]
    if option is None and others:
        say_on_stderr(
            f"all models read the task of {subjects[0].name}; {listed(others)} had another task in training"
        )
    task = build_task(section)
    subsets = task.subsets("test")
    shares = {
        subset: limit // len(subsets) + (place < limit % len(subsets))
        for place, subset in enumerate(subsets[:limit])
    }

    def look(subject: Subject, model: MrT5ForConditionalGeneration, progress: Progress) -> list[InspectedRow]:
        check_fits(model, section, subject.name)
        rows: list[InspectedRow] = []
        done = dict.fromkeys(shares, 0)

        def tell(subset: str, count: int) -> None:
            done[subset] = count
            progress(sum(done.values()), limit)

        found = inspect_task(model, task, shares, batch_size=8, threshold=threshold, progress=tell)
        for subset, part in found.items():
            of = f" ({subset})" if len(subsets) > 1 else ""
            rows += [replace(row, label=f"example {n}{of}") for n, row in enumerate(part, len(rows) + 1)]
        return rows

    return look


def _write_page(
    file: Path, found: Sequence[Inspection], labels: Sequence[str], history_of: str | None
) -> None:
    from mrt5cli.report.inspection_page import inspection_page

    positions = sum(one.rate.count for one in found)
    if positions > MANY_POSITIONS:
        say_on_stderr(
            f"this page shows {positions:,} bytes and takes a browser seconds to open; use a smaller --limit "
            "to speed it up"
        )
    try:
        write_text(file, inspection_page(found, labels, history_of=history_of))
    except OSError as error:
        raise not_written(error) from error
