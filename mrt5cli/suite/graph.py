"""Turns experiments into jobs: what to train, evaluate and analyze, each listed once, dependencies first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mrt5cli import recipe as recipes
from mrt5cli.analysis.across_runs import COMPARING
from mrt5cli.errors import UserError
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.recipe import EmbeddedSource, FilesSource, Recipe, SpanCorruptionTask
from mrt5cli.recipe.strict_yaml import inline
from mrt5cli.rundir import DEFAULT_FOLDER, RunDir, default_directory, name_and_seed
from mrt5cli.suite.jobs import AnalyseJob, EvaluateJob, Evaluation, Experiment, Job, SuitePlan, TrainJob


def build_plan(
    suite: str,
    experiments: Sequence[Experiment],
    known: Mapping[str, Path | Recipe],
    root: Path,
    *,
    smoke: bool = False,
) -> SuitePlan:
    """Every job of the experiments, in an executable order, without reading the disk.

    A recipe that several experiments show is trained once. A recipe that starts from `runs/<name>-seed<seed>`
    depends on the recipe of that name, in whichever folder the runs are; if its file contains `{seed}` there,
    each repetition with another seed depends on the run with that seed.

    Args:
        known: recipes, or their files, by name; no two may train into the same directory.
        root: folder of the runs.
        smoke: shrink every recipe; all then start from random weights, without dependencies.

    Raises:
        UserError: a recipe starts from a run that no recipe trains, or an analysis lacks its baseline.
    """
    graph = _Graph(SuitePlan(suite, root, list(experiments), smoke=smoke), known)
    for experiment in experiments:
        graph.add(experiment)
    graph.plan.jobs = list(graph.jobs.values())
    return graph.plan


def shrunk(recipe: Recipe) -> Recipe:
    """The smoke version of a recipe, as in `mrt5 pretrain --smoke`, with embedded text for missing files."""
    small = recipes.smoke(recipe)
    match small.task:
        case SpanCorruptionTask(source=FilesSource(path=path)) as task if not Path(path).exists():
            stand_in = {"source": EmbeddedSource(kind="embedded"), "languages": ["en"]}
            return small.model_copy(update={"task": task.model_copy(update=stand_in)})
    return small


class _Graph:
    def __init__(self, plan: SuitePlan, known: Mapping[str, Path | Recipe]) -> None:
        self.plan = plan
        self.known = known
        self.recipes = {
            name: one if isinstance(one, Recipe) else recipes.load(one) for name, one in known.items()
        }
        self.by_own_name = {recipe.name: name for name, recipe in self.recipes.items()}
        self.jobs: dict[str, Job] = {}

    def add(self, experiment: Experiment) -> None:
        shown: list[Job] = []
        for name in experiment.recipes:
            for seed in experiment.seeds or (self.recipes[name].seed,):
                train = self._train(name, seed)
                shown += [train, *(self._evaluate(train, one) for one in experiment.evaluations)]
        for job in shown:
            job.experiments = tuple(dict.fromkeys((*job.experiments, experiment.id)))
        for analysis in experiment.analyses:
            if analysis in COMPARING and experiment.baseline not in experiment.recipes:
                raise UserError(
                    f"{experiment.id}: the analysis {analysis} compares with the baseline, which is "
                    f"{experiment.baseline or 'not set'}; expected one of the experiment's recipes",
                    "set `baseline` in the suite",
                )
            name = f"{experiment.id}:{analysis}"
            self.jobs[f"analyse {name}"] = AnalyseJob(
                id=f"analyse {name}",
                name=name,
                needs=tuple(shown),
                experiments=(experiment.id,),
                output=self.plan.analysis(experiment, analysis),
                experiment=experiment,
                analysis=analysis,
            )

    def _train(self, name: str, seed: int) -> TrainJob:
        """The job that trains a recipe, added after the job that trains its start."""
        id_ = f"train {name} seed {seed}"
        there = self.jobs.get(id_)
        if isinstance(there, TrainJob):
            return there
        own = seed == self.recipes[name].seed
        # Load the file again for another seed, because `model.start` may contain it.
        recipe = self.recipes[name] if own else recipes.load(self.known[name], [f"seed={seed}"])
        start = Path(recipe.model.start)
        needs: tuple[Job, ...] = ()
        if self.plan.smoke:
            recipe = shrunk(recipe)
        elif start.parts[0] == DEFAULT_FOLDER:
            needs = (self._maker(name, start),)
            moved = inline(str(self.plan.root.joinpath(*start.parts[1:])))
            recipe = recipes.load(recipe, [f"model.start={moved}"], trusted=False)
        run = RunDir(self.plan.root / default_directory(recipe).name)
        job = TrainJob(
            id=id_, name=name, needs=needs, output=run.meta_path, recipe=recipe, run=run, own_seed=own
        )
        self.jobs[id_] = job
        return job

    def _maker(self, name: str, start: Path) -> TrainJob:
        """The job that trains a start below `runs/`."""
        maker, seed = name_and_seed("".join(start.parts[1:2]))
        if maker not in self.by_own_name or seed < 0:
            raise UserError(f"recipe {name} starts from {start}, which no shipped recipe trains")
        return self._train(self.by_own_name[maker], seed)

    def _evaluate(self, train: TrainJob, evaluation: Evaluation) -> Job:

        settings, task = train.recipe.evaluation, train.recipe.task
        limit = evaluation.limit or settings.examples
        if evaluation.task is not None:
            other = self.recipes[evaluation.task]
            task = (shrunk(other) if self.plan.smoke else other).task
        options = replace(
            EvaluationOptions.of(settings),
            limit=min(limit, settings.examples) if self.plan.smoke else limit,
            constrained=evaluation.constrained,
            runtime=evaluation.runtime,
            label=evaluation.label,
        )
        stem = options.result_name(task.kind)
        id_ = f"evaluate {train.name} seed {train.recipe.seed} {stem}"
        job = EvaluateJob(
            id=id_,
            name=train.name,
            needs=(train,),
            output=train.run.eval(stem),
            train=train,
            evaluation=evaluation,
            task=task,
            options=options,
        )
        return self.jobs.setdefault(id_, job)
