"""What softmax1 is worth: runs that differ in it alone, on the same examples."""

from __future__ import annotations

import json
from typing import Any

from mrt5cli.analysis.across_runs.shared import Asked, described, subject_of
from mrt5cli.errors import UserError
from mrt5cli.report.results import Ran


def softmax1(asked: Asked) -> dict[str, Any]:
    """A line each pair: both summaries, and the difference, softmax1 minus softmax, with its interval.

    The interval is of the test examples alone. Over seeds it is `report`'s to say.

    Raises:
        UserError: no two finished runs differ in softmax1 alone.
    """
    pairs = [
        (one, other)
        for one in asked.trained
        for other in asked.trained
        if one.recipe.model.softmax1 and not other.recipe.model.softmax1 and _rest(one) == _rest(other)
    ]
    if not pairs:
        raise UserError(
            f"no two finished runs of {asked.experiment.id} differ in model.softmax1 alone",
            "a pair has the same task, model, controller and seed",
        )
    return {"pairs": [_compared(asked, one, other) for one, other in pairs], "missing": asked.missing}


def _rest(ran: Ran) -> str:
    """All that makes a run's numbers but softmax1, and but its start, which may need the same softmax."""
    tree = ran.recipe.model_dump(mode="json")
    model = {key: value for key, value in tree["model"].items() if key not in ("softmax1", "start")}
    kept = ("seed", "task", "loss", "controller", "training")
    return json.dumps([model, *(tree[key] for key in kept)], sort_keys=True)


def _compared(asked: Asked, one: Ran, other: Ran) -> dict[str, Any]:
    from mrt5cli.evaluation.compare import compare
    from mrt5cli.evaluation.options import EvaluationOptions

    settings = one.recipe.evaluation
    options = EvaluationOptions(
        batch_size=settings.batch_size, limit=settings.examples, hard_delete=settings.hard_delete
    )
    document = compare(
        [subject_of(one), subject_of(other)],
        one.recipe.task,
        options,
        test_difference=True,
        device=asked.device,
        progress=asked.progress,
    ).document()
    summaries = [model["rows"][-1] for model in document["models"]]
    wanted = ("loss", "bits_per_byte", "deletion_rate", "examples")
    return {
        **described(one),
        "without": other.name,
        "softmax1": {name: summaries[0][name] for name in wanted},
        "softmax": {name: summaries[1][name] for name in wanted},
        "differences": document["differences"],
    }
