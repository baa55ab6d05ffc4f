"""What `mrt5 reproduce` works with: experiments, the jobs they need, and the plan those make.

A suite is a list of experiments in the order of the report: `suites/paper.yaml` is the paper, and
`suites/miniature.yaml` the paper's claims on small models and real text. An experiment is what one table or
figure shows. A job is one thing to do for it: train a recipe, evaluate the run, or analyse several runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mrt5cli.recipe import Recipe
from mrt5cli.rundir import RunDir

Machine = Literal["cpu", "gpu"]
Kind = Literal["train", "evaluate", "analyse"]
Status = Literal["done", "half done", "missing", "changed", "failed", "blocked", "left out"]
"""Of a job. "changed": done, by another recipe or other code. "blocked": something it needs failed.
"left out": not asked for, or beyond the budget."""


@dataclass(frozen=True)
class Evaluation:
    """One `mrt5 evaluate` of each run of an experiment.

    Attributes:
        task: shipped recipe whose task is measured; None is the run's own.
        runtime: also time forward passes, by the paper's protocol.
        constrained: also choose among the possible targets (xnli).
        limit: examples a language; None is the recipe's.
    """

    task: str | None = None
    runtime: bool = False
    constrained: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class Experiment:
    """What one table or figure shows.

    Attributes:
        id: names files and jobs, e.g. "multilingual_v3".
        title: of its section in the report.
        version: of the paper, or None where nothing was published.
        about: what the paper says, or what is asked, in a sentence or two.
        recipes: shipped names, in the order of the table.
        seeds: that each recipe is trained with; empty is each recipe's own.
        baseline: the recipe that losses are compared with (ByT5's), or None.
        evaluations: of each run.
        analyses: names in `analyses.ANALYSES`, of all runs together.
        figures: names in `figures.FIGURES`.
        claims: names in `claims.CLAIMS`; what must come out for the paper to be right, in miniature.
        machine: what its suite is made for.
    """

    id: str
    title: str
    version: Literal["v1", "v3"] | None
    about: str
    recipes: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    baseline: str | None = None
    evaluations: tuple[Evaluation, ...] = (Evaluation(),)
    analyses: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    machine: Machine = "gpu"


@dataclass
class Job:
    """One thing to do.

    Attributes:
        id: e.g. "train multilingual_v3/mrt5_50 seed 40", unique in a plan.
        name: the shipped recipe, or for an analysis "experiment:analysis".
        needs: ids of the jobs that must be done before.
        recipe: as it is trained: shrunk for smoke, its start in the plan's folder.
        experiments: ids of those that show it; none where other jobs need it and nobody shows it.
        own_seed: the seed is the shipped recipe's, not one that an experiment repeats it with.
        run: where the recipe's run is, or None for an analysis.
        task: recipe section of the task that an evaluation measures.
        limit: examples a language that it measures at most.
        output: the file that says it is done.
        reason: why it is not done, in words; None when it is.
        hours, gigabytes: estimates of what it will take, of the plan's machine, and leave on disk.
    """

    id: str
    kind: Kind
    name: str
    needs: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()
    own_seed: bool = True
    recipe: Recipe | None = None
    run: RunDir | None = None
    evaluation: Evaluation | None = None
    task: Any = None
    limit: int = 0
    output: Path | None = None
    status: Status = "missing"
    reason: str | None = None
    hours: float = 0.0
    gigabytes: float = 0.0


@dataclass
class Plan:
    """Everything a suite needs, in an order in which it can be done.

    Attributes:
        root: the folder of the runs; analyses go to `<root>/analyses/<experiment>/<analysis>.json`.
        smoke: every recipe shrunk to seconds; the numbers mean nothing.
        machine: whose hours the jobs' are: of one GPU, or of one core of a CPU.
    """

    suite: str
    root: Path
    experiments: list[Experiment]
    jobs: list[Job] = field(default_factory=list)
    smoke: bool = False
    machine: Machine = "gpu"

    def job(self, id_: str) -> Job:
        """The job of that id; a KeyError when there is none."""
        for job in self.jobs:
            if job.id == id_:
                return job
        raise KeyError(id_)

    def runs(self, experiment: Experiment) -> dict[tuple[str, int], Job]:
        """The training jobs of an experiment's runs, by (recipe, seed), in its order."""
        wanted = {name: place for place, name in enumerate(experiment.recipes)}
        found = [
            job
            for job in self.jobs
            if job.kind == "train"
            and job.name in wanted
            and job.recipe is not None
            and (job.recipe.seed in experiment.seeds if experiment.seeds else job.own_seed)
        ]
        found.sort(key=lambda job: (wanted[job.name], job.recipe.seed if job.recipe else 0))
        return {(job.name, job.recipe.seed): job for job in found if job.recipe}

    def analysis(self, experiment: Experiment, name: str) -> Path:
        """Where an analysis of an experiment is written."""
        return self.root / "analyses" / experiment.id / f"{name}.json"
