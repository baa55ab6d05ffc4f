"""What an experiment's runs came to, read back for the claims that are made of them.

Only files are read: the documents that `mrt5 evaluate` saved, the recipe of each job, the model's
configuration, and the documents of analyses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrt5cli.json_files import read_object
from mrt5cli.recipe import Recipe
from mrt5cli.suite.jobs import Experiment, SuitePlan, TrainJob


@dataclass(frozen=True)
class Result:
    """One run and its evaluation on its own task.

    Attributes:
        recipe: shipped name.
        seed: it was trained with.
        kind: of its shortener, as recipes name it; "none" is ByT5.
        task: kind of its task.
        softmax1: whether its attention may attend to nothing.
        target: deletion rate its controller aimed at, 0 to 1, or None.
        rows: of the evaluation, one a subset, the total last when there are several (`evaluation.rows.Row`).
        config: of the model, as saved; empty when it is not there.
    """

    recipe: str
    seed: int
    kind: str
    task: str
    softmax1: bool
    target: float | None
    rows: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What to call it in a sentence: the recipe's name without its folder."""
        return self.recipe.rpartition("/")[2]

    @property
    def total(self) -> Mapping[str, Any]:
        """The total, or the only subset's row."""
        return self.rows[-1]

    @property
    def rate(self) -> float:
        """Share of non-pad positions that are gone, 0 to 1."""
        return float(self.total["deletion_rate"] or 0.0)

    @property
    def loss(self) -> float:
        """Nats per target token."""
        return float(self.total["loss"])


@dataclass(frozen=True)
class Evidence:
    """All that an experiment has to show so far.

    Attributes:
        results: of the runs that are there and evaluated, in the experiment's order, by seed.
        missing: what is not there yet, in words.
        analyses: documents of the experiment's analyses that are there, by name.
    """

    results: Sequence[Result]
    missing: Sequence[str] = ()
    analyses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of_kind(self, *kinds: str) -> list[Result]:
        """Results of these shorteners."""
        return [result for result in self.results if result.kind in kinds]


def gather(experiment: Experiment, plan: SuitePlan) -> Evidence:
    """What the runs and analyses of an experiment have left on disk."""
    results, missing = [], []
    for (recipe, seed), job in plan.runs(experiment).items():
        document = _evaluation(experiment, plan, job)
        if document is None:
            missing.append(f"{recipe} seed {seed}")
            continue
        results.append(_result(recipe, job, job.recipe, document))
    found = {name: _read(plan.analysis(experiment, name)) for name in experiment.analyses}
    missing += [f"analysis {name}" for name, document in found.items() if document is None]
    return Evidence(results, missing, {name: document for name, document in found.items() if document})


def _evaluation(experiment: Experiment, plan: SuitePlan, train: TrainJob) -> dict[str, Any] | None:
    """The document of a run's evaluation on its own task; a timed one before others."""
    wanted = [job for job in plan.evaluations(experiment, train) if job.evaluation.task is None]
    wanted = [job for job in wanted if job.evaluation in experiment.evaluations]
    for job in sorted(wanted, key=lambda job: not job.evaluation.runtime):
        document = _read(job.output)
        if document is not None and document.get("models"):
            return document
    return None


def _result(name: str, job: TrainJob, recipe: Recipe, document: Mapping[str, Any]) -> Result:
    config = _read(job.run.model / "config.json")
    return Result(
        recipe=name,
        seed=recipe.seed,
        kind=recipe.model.shortener.kind,
        task=recipe.task.kind,
        softmax1=recipe.model.softmax1,
        target=recipe.target_deletion_rate,
        rows=document["models"][0]["rows"],
        config=config or {},
    )


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file, or None without the file."""
    if not path.is_file():
        return None
    return read_object(path, "delete it, and reproduce makes it anew")
