"""Does the share deleted from a sample tell how much its loss rises? (paper, per-sample analysis)

The paper: batch size 1, English test text, 1000 of 10,000 samples; ours are the same 1000 for all models of
an experiment, so that differences between models are not differences between samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mrt5cli.analysis.across_runs.shared import Asked, described, subject_of
from mrt5cli.analysis.per_sample import POOL, correlation, draw_samples, fisher_mean, loss_increase
from mrt5cli.errors import UserError
from mrt5cli.report.results import Ran

if TYPE_CHECKING:
    from mrt5cli.tasks.base import Task

LANGUAGE = "en"
DIGITS = 4


def per_sample(asked: Asked) -> dict[str, Any]:
    """Correlations of each model, their mean of each family, and the points of every sample.

    A model is compared with the baseline's run of its own seed, or else with the baseline's first.

    Raises:
        UserError: no baseline, or fewer than three samples.
    """
    from mrt5cli.tasks.base import build_task

    base = asked.baseline
    task = build_task(base[0].recipe.task)
    subsets = task.subsets("test")
    subset = LANGUAGE if LANGUAGE in subsets else subsets[0]
    pool = base[0].recipe.evaluation.examples if asked.plan.smoke else POOL
    drawn = _Drawn.of(task, subset, pool, asked.experiment.version)
    if len(drawn.batches) < 3:
        raise UserError(
            f"{len(drawn.batches)} samples of {subset} make no correlation", "give more test text"
        )
    losses = {ran.seed: _measured(asked, ran, drawn)[0] for ran in base}
    models = []
    for ran in asked.trained:
        if ran.name == asked.experiment.baseline:
            continue
        loss, deleted = _measured(asked, ran, drawn)
        rise = loss_increase(loss, losses.get(ran.seed, losses[base[0].seed]))
        models.append(
            {
                **described(ran),
                **asdict(correlation(100 * deleted, rise)),
                "deleted_percent": np.round(100 * deleted, DIGITS).tolist(),
                "loss_increase_percent": np.round(rise, DIGITS).tolist(),
            }
        )
    families = dict.fromkeys(model["family"] for model in models)
    return {
        "subset": subset,
        "available": drawn.available,
        "samples": len(drawn.batches),
        "drawn": "without replacement",
        "models": models,
        "families": {
            family: fisher_mean([model["r"] for model in models if model["family"] == family])
            for family in families
        },
        "missing": asked.missing,
    }


@dataclass(frozen=True)
class _Drawn:
    """The drawn samples, as a task that `measure` can be given: a batch each, so that nothing is padded."""

    task: Any
    subset: str
    available: int
    batches: list[dict[str, Any]]

    choices = None
    answer_length = None

    @classmethod
    def of(cls, task: Any, subset: str, pool: int, version: str | None) -> _Drawn:
        there = list(task.held_out("test", subset, batch_size=1, limit=pool))
        chosen = draw_samples(len(there), version)
        return cls(task, subset, len(there), [there[place] for place in chosen])

    @property
    def name(self) -> str:
        return str(self.task.name)

    def subsets(self, split: str) -> list[str]:
        return [self.subset]

    def held_out(self, split: str, subset: str, **ignored: Any) -> Iterator[dict[str, Any]]:
        yield from self.batches

    def deletable(self, input_ids: Any) -> None:
        return None

    def truncated(self, split: str, subset: str, limit: int | None = None) -> int:
        return 0


def _measured(asked: Asked, ran: Ran, drawn: _Drawn) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) loss of each sample, nats a token, and (n,) share of its positions that is gone, 0 to 1."""
    from mrt5cli.evaluation.evaluate import measure
    from mrt5cli.evaluation.options import EvaluationOptions
    from mrt5cli.subject import load_model

    what = f"{ran.name} seed {ran.seed}"
    measured = measure(
        load_model(subject_of(ran), asked.device),
        cast("Task", drawn),  # it has all of one that is asked for here
        EvaluationOptions(
            batch_size=1,
            hard_delete=ran.recipe.evaluation.hard_delete,
            source_removed=False,
            generate=False,
        ),
        progress=lambda subset, done: asked.tell(what, subset, done),
    )
    outcomes = measured.outcomes[drawn.subset]
    assert outcomes.kept is not None and outcomes.positions is not None  # teacher-forced outcomes have both
    return outcomes.nats / outcomes.tokens, 1 - outcomes.kept / outcomes.positions
