"""The types of `mrt5 reproduce`: experiments, the jobs they need, and the plan of all jobs.

A suite lists experiments in the order of the report: `suites/paper.yaml` covers the paper, and
`suites/miniature.yaml` its claims with small models and real text. An experiment is the content of one table
or figure. A job is one unit of work for it: train a recipe, evaluate the run, or analyze several runs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from mrt5cli.analysis.runs import ExperimentRun, ExperimentRuns
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.recipe import Recipe
from mrt5cli.recipe.tasks import TaskSection
from mrt5cli.rundir import RunDir

Machine = Literal["cpu", "gpu"]
Status = Literal["done", "half done", "missing", "changed", "failed", "blocked", "left out"]
"""The status of a job. "changed": done with another recipe or other code. "blocked": a dependency failed.
"left out": not requested, or beyond the budget."""

Text = Annotated[str, Field(min_length=1)]
Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
CLOSED = ConfigDict(extra="forbid", strict=True)


@checked(frozen=True, config=CLOSED)
class Evaluation:
    """One `mrt5 evaluate` of each run of an experiment.

    Attributes:
        task: shipped recipe whose task is measured; None: the run's own.
        runtime: also time forward passes with the paper's protocol.
        constrained: also choose among the possible targets (xnli).
        limit: examples per language; None: the recipe's.
    """

    task: Text | None = None
    runtime: bool = False
    constrained: bool = False
    limit: Annotated[int, Field(ge=1)] | None = None

    @property
    def label(self) -> str:
        """Suffix that separates its results from those of a plain `mrt5 evaluate RUN`; may be empty."""
        task = self.task and self.task.replace("/", ".")
        parts = [task, self.runtime and "runtime", self.limit and f"first-{self.limit}"]
        return "-".join(part for part in parts if part)


@checked(frozen=True, config=CLOSED)
class Experiment:
    """The content of one table or figure, as written in a suite.

    Attributes:
        id: names files and jobs, e.g. "multilingual_v3".
        title: title of its section in the report.
        version: version of the paper, or None if nothing was published.
        about: the paper's statement, or the question, in a sentence or two.
        recipes: names of shipped recipes, in the order of the table.
        seeds: seeds to train each recipe with; empty: each recipe's own.
        baseline: the recipe whose losses are the reference (ByT5's), or None.
        evaluations: evaluations of each run.
        analyses: names in `across_runs.ANALYSES`, each over all runs.
        figures: names in `report.figures.FIGURES`.
        claims: names in `claims.CLAIMS`, the paper's claims to verify at toy scale.
        machine: the intended machine; None: the suite's, which defaults to a GPU.
    """

    id: Id
    title: str
    version: Literal["v1", "v3"] | None = None
    about: str = ""
    recipes: tuple[Text, ...] = ()
    seeds: tuple[Seed, ...] = ()
    baseline: Text | None = None
    evaluations: tuple[Evaluation, ...] = (Evaluation(),)
    analyses: tuple[Text, ...] = ()
    figures: tuple[Text, ...] = ()
    claims: tuple[Text, ...] = ()
    machine: Machine | None = None


@dataclasses.dataclass(kw_only=True, eq=False)
class Job:
    """One unit of work.

    Attributes:
        id: e.g. "train multilingual_v3/mrt5_50 seed 40", unique in a plan.
        name: the shipped recipe, or for an analysis "experiment:analysis".
        output: the file whose existence indicates that the job is done.
        needs: the jobs it depends on.
        experiments: ids of the experiments that show it; empty if only other jobs need it.
        reason: why it is not done, as text; None if it is.
        hours: estimated hours of the plan's machine.
        gigabytes: estimated disk space of its results.
    """

    kind: ClassVar[Literal["train", "evaluate", "analyse"]]
    id: str
    name: str
    output: Path
    needs: tuple[Job, ...] = ()
    experiments: tuple[str, ...] = ()
    status: Status = "missing"
    reason: str | None = None
    hours: float = 0.0
    gigabytes: float = 0.0

    @property
    def to_do(self) -> bool:
        return self.status in ("missing", "half done", "changed", "failed")


@dataclasses.dataclass(kw_only=True, eq=False)
class TrainJob(Job):
    """Train a recipe.

    Attributes:
        recipe: the recipe to train, shrunk in a smoke plan, with its start in the plan's folder.
        own_seed: whether the seed is the shipped recipe's, and not from an experiment's `seeds`.
    """

    kind = "train"
    recipe: Recipe
    run: RunDir
    own_seed: bool = True


@dataclasses.dataclass(kw_only=True, eq=False)
class EvaluateJob(Job):
    """Evaluate a run.

    Attributes:
        train: the job that trains the run.
        task: recipe section of the task to measure.
    """

    kind = "evaluate"
    train: TrainJob
    evaluation: Evaluation
    task: TaskSection
    options: EvaluationOptions


@dataclasses.dataclass(kw_only=True, eq=False)
class AnalyseJob(Job):
    """Analyze all runs of an experiment."""

    kind = "analyse"
    experiment: Experiment
    analysis: str


@dataclasses.dataclass
class SuitePlan:
    """All jobs of a suite, in an executable order.

    Attributes:
        root: the folder of the runs; analyses go to `<root>/analyses/<experiment>/<analysis>.json`.
        smoke: whether every recipe is shrunk to seconds, so that the numbers mean nothing.
        machine: unit of the jobs' hours: one GPU, or one CPU core.
    """

    suite: str
    root: Path
    experiments: list[Experiment]
    jobs: list[Job] = dataclasses.field(default_factory=list)
    smoke: bool = False
    machine: Machine = "gpu"

    def job(self, id_: str) -> Job:
        """The job with an id, which must exist."""
        return next(job for job in self.jobs if job.id == id_)

    @property
    def trainings(self) -> list[TrainJob]:
        return [job for job in self.jobs if isinstance(job, TrainJob)]

    def runs(self, experiment: Experiment) -> dict[tuple[str, int], TrainJob]:
        """The training jobs of an experiment by (recipe, seed), in the experiment's order."""
        found = [
            job
            for job in self.trainings
            if job.name in experiment.recipes
            and (job.recipe.seed in experiment.seeds if experiment.seeds else job.own_seed)
        ]
        found.sort(key=lambda job: (experiment.recipes.index(job.name), job.recipe.seed))
        return {(job.name, job.recipe.seed): job for job in found}

    def experiment_runs(self, experiment: Experiment) -> ExperimentRuns:
        """The input of an experiment's analyses: each run, with the experiment's own evaluations first."""
        runs = []
        for (name, _), train in self.runs(experiment).items():
            found = [job for job in self.jobs if isinstance(job, EvaluateJob) and job.train is train]
            found.sort(key=lambda job: job.evaluation not in experiment.evaluations)
            shown = sum(job.evaluation in experiment.evaluations for job in found)
            outputs = tuple(job.output for job in found)
            runs.append(ExperimentRun(name, train.recipe, train.run, outputs, shown))
        return ExperimentRuns(
            experiment.id, tuple(runs), experiment.baseline, experiment.version, smoke=self.smoke
        )

    def analysis(self, experiment: Experiment, name: str) -> Path:
        """The output file of an experiment's analysis."""
        return self.root / "analyses" / experiment.id / f"{name}.json"
