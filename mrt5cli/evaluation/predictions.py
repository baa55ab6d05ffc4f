"""`mrt5 evaluate --predictions`: a row per example with the model's answer and its scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mrt5cli.errors import UserError
from mrt5cli.evaluation.counting import Outcomes
from mrt5cli.generation.outputs import RowFormat, format_of
from mrt5cli.metrics import scoring
from mrt5cli.metrics.catalog import METRICS, generates
from mrt5cli.recipe.tasks import TaskSection
from mrt5cli.rundir import RunDir
from mrt5cli.tasks.base import Task
from mrt5cli.writing import write_text

Row = dict[str, object]


def check(path: Path, task: Task, sections: Iterable[TaskSection]) -> None:
    """Refuse a file of unknown format or one that contains the examples, and a task without answers.

    Args:
        sections: sections of the measured task and of the tasks that the models were trained on.

    Raises:
        UserError: the file or the task is refused.
    """
    if format_of(path.name) == "lines":
        raise UserError(
            f"--predictions {path}: unknown format", "choose a name that ends in .jsonl, .csv or .tsv"
        )
    if not generates(task.measures):
        measures = ", ".join(task.measures) or "the loss"
        raise UserError(
            f"--predictions writes generated answers, but {task.name} generates none: it measures {measures} "
            "given the true targets",
            "leave it out, or write outputs with `mrt5 generate`",
        )
    if path.name == RunDir(path.parent).metrics_path.name and RunDir(path.parent).is_run:
        raise UserError(f"--predictions {path} contains the metrics of a run", "choose another name")
    for data in _files_of(sections):
        if Path(data).resolve() in (path.resolve(), *path.resolve().parents):
            where = (
                "contains the examples"
                if Path(data).is_file()
                else f"is in {data}, which contains the examples"
            )
            raise UserError(f"--predictions {path} {where}", "choose another name")


def _files_of(sections: Iterable[TaskSection]) -> Iterator[str]:
    """Paths of the files and folders that tasks read examples from."""
    for section in sections:
        for source in (getattr(section, "source", None), *getattr(section, "sources", ())):
            if (path := getattr(source, "path", None)) is not None:
                yield path


def write(path: Path, results: Sequence[tuple[str, Mapping[str, Outcomes]]], measures: Sequence[str]) -> None:
    """Write a row per example and model: its texts, its score by each measure, and its deletion.

    `deleted` is the share of the source's positions that were deleted, 0 to 1, and `kept` the number that
    remain, EOS included. Loaded metrics have no score per example.

    Args:
        path: its suffix sets the format; see `check`.
        results: each model's name, and its outcomes by subset.
    """
    scored = [name for name in measures if name in METRICS]
    columns = ["subset", "input", "target", "references", "prediction", *scored, "deleted", "kept"]
    several = len(results) > 1
    if several:
        columns.insert(0, "model")
    rows = RowFormat(format_of(path.name), columns)
    text = [
        rows.row({**({"model": label} if several else {}), "subset": subset, **row})
        for label, subsets in results
        for subset, outcomes in subsets.items()
        for row in _rows(outcomes, scored)
    ]
    write_text(path, rows.head() + "".join(text))


def _rows(outcomes: Outcomes, measures: Sequence[str]) -> Iterator[Row]:
    answers = outcomes.answers
    assert answers is not None
    scores = [_scores(name, outcomes) for name in measures]
    deleted = 1 - outcomes.kept / outcomes.positions
    for place, texts in enumerate(zip(answers.inputs, answers.accepted, answers.texts, strict=True)):
        source, accepted, answer = texts
        yield {
            "input": source,
            "target": accepted[0],
            "references": list(accepted),
            "prediction": answer,
            **{name: each[place] for name, each in zip(measures, scores, strict=True)},
            "deleted": float(deleted[place]),
            "kept": int(outcomes.kept[place]),
        }


def _scores(name: str, outcomes: Outcomes) -> list[float | None]:
    """The score of each example."""
    if name == "token_accuracy":
        pairs = zip(outcomes.tokens_right.tolist(), outcomes.tokens.tolist(), strict=True)
        return [right / tokens if tokens else None for right, tokens in pairs]
    return scoring.alone(name, outcomes.scores[name])
