"""The effect of softmax1: pairs of runs that differ only in it, on the same examples."""

from __future__ import annotations

from dataclasses import replace

from mrt5cli.analysis.runs import ExperimentRun, ExperimentRuns
from mrt5cli.errors import UserError
from mrt5cli.metrics.results import Json

SUMMARY = ("loss", "bits_per_byte", "deletion_rate", "examples")
"""Fields of each row that the document contains."""


def softmax1(runs: ExperimentRuns) -> Json:
    """Each pair of runs that differs only in softmax1: both summaries, and softmax1 minus softmax.

    Intervals are over test examples; `report` computes those over seeds.

    Raises:
        UserError: no two finished runs differ only in softmax1.
    """
    pairs = [
        (one, other)
        for one in runs.trained
        for other in runs.trained
        if one.recipe.model.softmax1 and not other.recipe.model.softmax1 and _rest(one) == _rest(other)
    ]
    if not pairs:
        raise UserError(
            f"no two finished runs of {runs.experiment} differ only in model.softmax1",
            "train two runs with the same task, model, controller and seed",
        )
    return {"pairs": [_compared(runs, one, other) for one, other in pairs]}


def _rest(run: ExperimentRun) -> Json:
    """A pair's common settings: all but softmax1 and the start, which may need the same softmax."""
    tree = run.recipe.model_dump(
        mode="json", include={"seed", "task", "model", "loss", "controller", "training"}
    )
    del tree["model"]["softmax1"], tree["model"]["start"]
    return tree


def _compared(runs: ExperimentRuns, one: ExperimentRun, other: ExperimentRun) -> Json:
    from mrt5cli.evaluation.compare import compare
    from mrt5cli.evaluation.options import EvaluationOptions

    document = compare(
        [one.subject(), other.subject()],
        one.recipe.task,
        replace(EvaluationOptions.of(one.recipe.evaluation), test_difference=True),
        device=runs.device,
        progress=runs.progress,
    ).document()
    first, second = ({name: model["rows"][-1][name] for name in SUMMARY} for model in document["models"])
    return {
        **one.line(),
        "without": other.name,
        "softmax1": first,
        "softmax": second,
        "differences": document["differences"],
    }
