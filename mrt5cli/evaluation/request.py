"""From names of models to results: `from mrt5cli import evaluate`, and the work of `mrt5 evaluate`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mrt5cli import runtime as machine
from mrt5cli.bars import bars
from mrt5cli.errors import UserError
from mrt5cli.evaluation.compare import Comparison, compare
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.metrics.answers import Normalization
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.recipe import EvaluationSection
from mrt5cli.recipe.differences import unlike
from mrt5cli.runtime import Precision
from mrt5cli.subject import Subject, check_stays, choose_task, find_subjects
from mrt5cli.text import quiet

Model = str | Path | MrT5ForConditionalGeneration


def evaluate(
    model: Model | Sequence[Model],
    task: str | Path | None = None,
    *,
    data: str | Path | None = None,
    split: Literal["validation", "test"] = "test",
    languages: Sequence[str] | None = None,
    hard_delete: bool | None = None,
    deletion_rates: Sequence[float] = (),
    test_difference: bool = False,
    constrained: bool = False,
    normalization: Normalization | None = None,
    runtime: bool = False,
    limit: int | None = None,
    batch_size: int | None = None,
    predictions: str | Path | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    revision: str | None = None,
    allow_pickle: bool = True,
    progress: bool = True,
    unfinished: Callable[[Comparison], object] = lambda part: None,
) -> Comparison:
    """Measure models on held-out data: quality, deletion, and the control without a source.

    In the result, `rows` are the first model's numbers, one row per subset and the total last if there are
    several; `summary` is the last of them; `results` has the rows of every model. Losses are in nats per
    target token, rates and accuracies are shares, 0 to 1. `document()` is what `mrt5 evaluate --json` prints.
    Nothing is written until `save()` is called, which writes the results to each run's eval/ folder.

    Args:
        model: a run directory, a checkpoint directory, a Hub id, or a model from `load`, which stays on its
            device and in its precision; or a sequence of these.
        task: a kind of task, or a recipe whose task to use. Default: the first run's own; a loaded model has
            none.
        data: a file or folder of examples that replaces the task's own source.
        split: held-out split to use.
        languages: languages, or parts of the test. Default: all.
        hard_delete: remove positions, or gate softly as in training. Default: as the first run's recipe
            evaluates, or True.
        deletion_rates: also evaluate a single model at these shares of deleted positions, each from 0 to
            below 1, with thresholds found on validation data.
        test_difference: also test whether two models differ.
        constrained: also choose the likeliest of the possible targets (xnli).
        normalization: how exact match and F1 compare answers: "squad", "multilingual" or "none". Default:
            the task's.
        runtime: also time forward passes.
        limit: examples per language. Default: the recipe's, or 10,000.
        batch_size: examples per batch. Default: the recipe's, or 16.
        predictions: a new .jsonl, .csv or .tsv file to which `save()` also writes generated answers, one row
            per example, with their scores.
        device: "cpu", "cuda", "cuda:1" (a GPU's number) or "auto", a GPU if there is one.
        precision: precision of weights and products, "fp32" or "bf16".
        revision: branch, tag or commit of Hub models.
        allow_pickle: see `load`.
        progress: report progress on stderr.
        unfinished: called with the results so far, if there are any, before an error is raised.

    Raises:
        UserError: a model, task, data or device does not exist, or options contradict these or each other.
        CheckpointError: a model's files are incomplete.
        RunFailed: the Hub became unreachable after something was measured.
    """
    names = [model] if isinstance(model, Model) else list(model)
    if not names:
        raise UserError("there is no model to evaluate", "name a run, a checkpoint directory or a Hub id")
    _check(languages, deletion_rates, limit, batch_size)
    if test_difference and len(names) != 2:
        raise UserError(f"test_difference needs two models, not {len(names)}", "pass two models")
    if deletion_rates and len(names) > 1:
        raise UserError("--deletion-rate calibrates a single run", "pass one RUN, without --compare")
    with quiet(not progress):
        subjects = _subjects(names, revision, allow_pickle, device, precision)
        first, local = subjects[0], None if data is None else str(data)
        section = choose_task(None if task is None else str(task), first, local)
        if task is None:
            _check_one_task(
                subjects, {"train_examples", "metrics"} | ({"source", "sources"} if data else set())
            )
        settings = EvaluationOptions.of(
            EvaluationSection() if first.recipe is None else first.recipe.evaluation
        )
        options = replace(
            settings,
            split=split,
            subsets=languages,
            batch_size=batch_size or settings.batch_size,
            limit=limit or settings.limit,
            hard_delete=settings.hard_delete if hard_delete is None else hard_delete,
            constrained=constrained,
            normalization=normalization,
            runtime=runtime,
            deletion_rates=deletion_rates,
            test_difference=test_difference,
            precision=precision,
            predictions=None if predictions is None else Path(predictions),
            recipe="" if task is None else str(task),
            data=local,
        )
        if deletion_rates and not options.hard_delete:
            raise UserError("--deletion-rate requires hard deletion; soft gates delete nothing", "add --hard")
        with bars("evaluating") as bar:
            return compare(
                subjects,
                section,
                options,
                device=machine.device(device),
                progress=lambda name, subset, done: bar(f"{name}, {subset}", done, options.limit or 0),
                unfinished=unfinished,
            )


def _check(
    languages: Sequence[str] | None, rates: Sequence[float], limit: int | None, batch_size: int | None
) -> None:
    """Check arguments that the command line has already checked for its own users."""
    if isinstance(languages, str):
        raise TypeError("languages must be a sequence of names, not one string")
    for name, value in {"limit": limit, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}, expected 1 or more", "leave it out to use the recipe's")
    for rate in rates:
        if not 0 <= rate < 1:
            raise UserError(
                f"deletion rate {rate:g}: expected a share of positions, from 0 to below 1",
                "for example deletion_rates=[0.3, 0.5]",
            )


def _subjects(
    models: Sequence[Model], revision: str | None, allow_pickle: bool, device: str, precision: Precision
) -> list[Subject]:
    """The subjects of models that are named or already loaded."""
    names = [str(one) for one in models if not isinstance(one, MrT5ForConditionalGeneration)]
    found = iter(find_subjects(names, revision, allow_pickle=allow_pickle))
    subjects = []
    for one in models:
        if isinstance(one, MrT5ForConditionalGeneration):
            check_stays(device, precision)
            subjects.append(Subject("the loaded model", "in memory", None, None, model=one))
        else:
            subjects.append(next(found))
    return subjects


def _check_one_task(subjects: Sequence[Subject], ignored: Collection[str]) -> None:
    """Without --task, all runs must have been trained on the first run's task."""
    first = subjects[0]
    for other in subjects[1:]:
        if other.recipe is None or first.recipe is None:
            continue
        for key, (one, two) in unlike(first.recipe.task, other.recipe.task).items():
            if re.split(r"[.\[]", key)[0] not in ignored:
                raise UserError(
                    f"{first.name} and {other.name} were trained on different tasks ({key}: {one} and {two})",
                    "name the task to evaluate them on with --task",
                )
