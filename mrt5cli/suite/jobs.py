"""What `mrt5 reproduce` works with: experiments, the jobs they need, and the plan those make.

A suite is a list of experiments in the order of the report: `suites/paper.yaml` is the paper, and
`suites/miniature.yaml` the paper's claims on small models and real text. An experiment is what one table or
figure shows. A job is one thing to do for it: train a recipe, evaluate the run, or analyse several runs.
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
"""Of a job. "changed": done, by another recipe or other code. "blocked": something it needs failed.
"left out": not asked for, or beyond the budget."""

Text = Annotated[str, Field(min_length=1)]
Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
CLOSED = ConfigDict(extra="forbid", strict=True)


@checked(frozen=True, config=CLOSED)
class Evaluation:
    """One `mrt5 evaluate` of each run of an experiment.

    Attributes:
        task: shipped recipe whose task is measured; None is the run's own.
        runtime: also time forward passes, by the paper's protocol.
        constrained: also choose among the possible targets (xnli).
        limit: examples a language; None is the recipe's.
    """

    task: Text | None = None
    runtime: bool = False
    constrained: bool = False
    limit: Annotated[int, Field(ge=1)] | None = None

    @property
    def label(self) -> str:
        """What sets its results' file apart from that of `mrt5 evaluate RUN`; empty where it is the same."""
        task = self.task and self.task.replace("/", ".")
        parts = [task, self.runtime and "runtime", self.limit and f"first-{self.limit}"]
        return "-".join(part for part in parts if part)


@checked(frozen=True, config=CLOSED)
class Experiment:
    """What one table or figure shows, as suites write it.

    Attributes:
        id: names files and jobs, e.g. "multilingual_v3".
        title: of its section in the report.
        version: of the paper, or None where nothing was published.
        about: what the paper says, or what is asked, in a sentence or two.
        recipes: shipped names, in the order of the table.
        seeds: that each recipe is trained with; empty is each recipe's own.
        baseline: the recipe that losses are compared with (ByT5's), or None.
        evaluations: of each run.
        analyses: names in `across_runs.ANALYSES`, of all runs together.
        figures: names in `report.figures.FIGURES`.
        claims: names in `claims.CLAIMS`; what must come out for the paper to be right, in miniature.
        machine: what it is made for; None is the suite's, and then a GPU.
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
    """One thing to do.

    Attributes:
        id: e.g. "train multilingual_v3/mrt5_50 seed 40", unique in a plan.
        name: the shipped recipe, or for an analysis "experiment:analysis".
        output: the file that says it is done.
        needs: the jobs that must be done before.
        experiments: ids of those that show it; none where only other jobs need it.
        reason: why it is not done, in words; None when it is.
        hours: of the plan's machine that it will take, an estimate.
        gigabytes: that it will leave on disk, an estimate.
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
        recipe: as it is trained: shrunk for smoke, its start in the plan's folder.
        own_seed: the seed is the shipped recipe's, not one that an experiment repeats it with.
    """

    kind = "train"
    recipe: Recipe
    run: RunDir
    own_seed: bool = True


@dataclasses.dataclass(kw_only=True, eq=False)
class EvaluateJob(Job):
    """Evaluate a run.

    Attributes:
        train: the job that makes it.
        task: recipe section of the task that is measured.
    """

    kind = "evaluate"
    train: TrainJob
    evaluation: Evaluation
    task: TaskSection
    options: EvaluationOptions


@dataclasses.dataclass(kw_only=True, eq=False)
class AnalyseJob(Job):
    """Look at all runs of an experiment."""

    kind = "analyse"
    experiment: Experiment
    analysis: str


@dataclasses.dataclass
class SuitePlan:
    """Everything a suite needs, in an order in which it can be done.

    Attributes:
        root: the folder of the runs; analyses go to `<root>/analyses/<experiment>/<analysis>.json`.
        smoke: every recipe shrunk to seconds; the numbers mean nothing.
        machine: whose hours the jobs' are: of one GPU, or of one core of a CPU.
    """

    suite: str
    root: Path
    experiments: list[Experiment]
    jobs: list[Job] = dataclasses.field(default_factory=list)
    smoke: bool = False
    machine: Machine = "gpu"

    def job(self, id_: str) -> Job:
        """The job of that id, which the plan must have."""
        return next(job for job in self.jobs if job.id == id_)

    @property
    def trainings(self) -> list[TrainJob]:
        return [job for job in self.jobs if isinstance(job, TrainJob)]

    def runs(self, experiment: Experiment) -> dict[tuple[str, int], TrainJob]:
        """The training jobs of an experiment's runs, by (recipe, seed), in its order."""
        found = [
            job
            for job in self.trainings
            if job.name in experiment.recipes
            and (job.recipe.seed in experiment.seeds if experiment.seeds else job.own_seed)
        ]
        found.sort(key=lambda job: (experiment.recipes.index(job.name), job.recipe.seed))
        return {(job.name, job.recipe.seed): job for job in found}

    def experiment_runs(self, experiment: Experiment) -> ExperimentRuns:
        """What analyses are given of an experiment: each run, with the evaluations first that it shows."""
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
        """Where an analysis of an experiment is written."""
        return self.root / "analyses" / experiment.id / f"{name}.json"
