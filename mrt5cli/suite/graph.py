"""From experiments to jobs: what must be trained, evaluated and analysed, each once, needs first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mrt5cli import recipe as recipes
from mrt5cli.errors import RecipeError
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.recipe import EmbeddedSource, FilesSource, Recipe, SpanCorruptionTask
from mrt5cli.recipe.words import nearest
from mrt5cli.rundir import DEFAULT_FOLDER, RunDir, default_directory
from mrt5cli.suite.jobs import AnalyseJob, EvaluateJob, Evaluation, Experiment, Job, SuitePlan, TrainJob

RUN_NAME = re.compile(r"(?P<name>.+)-seed(?P<seed>\d+)")


def build_plan(
    suite: str,
    experiments: Sequence[Experiment],
    shipped: Mapping[str, Recipe],
    root: Path,
    *,
    smoke: bool = False,
) -> SuitePlan:
    """Every job of the experiments, in an order in which they can be done; nothing is looked at on disk.

    A recipe that several experiments show is trained once. One that starts from `runs/<name>-seed<seed>`
    needs the recipe of that name, in whatever folder the runs are.

    Args:
        shipped: recipes by their names.
        root: folder of the runs.
        smoke: shrink every recipe; then all start from nothing, and none needs another.

    Raises:
        RecipeError: starts that no recipe makes, circles of starts, and recipes that share a run directory.
    """
    graph = _Graph(SuitePlan(suite, root, list(experiments), smoke=smoke), shipped)
    for experiment in experiments:
        graph.add(experiment)
    if graph.problems:
        raise RecipeError(f"suite {suite}", graph.problems, "`mrt5 recipe list` shows the shipped recipes")
    return graph.plan


def evaluation_label(evaluation: Evaluation) -> str:
    """What sets an evaluation's file apart from that of `mrt5 evaluate RUN`; empty where it is the same."""
    parts = [
        "" if evaluation.task is None else evaluation.task.replace("/", "."),
        "runtime" if evaluation.runtime else "",
        "" if evaluation.limit is None else f"first-{evaluation.limit}",
    ]
    return "-".join(part for part in parts if part)


def shrunk(recipe: Recipe) -> Recipe:
    """A recipe for smoke: as `mrt5 pretrain --smoke` has it, and text that is not there yet stands in too."""
    small = recipes.smoke(recipe)
    task = small.task
    if not isinstance(task, SpanCorruptionTask) or not isinstance(task.source, FilesSource):
        return small
    if Path(task.source.path).exists():
        return small
    stand_in = {"source": EmbeddedSource(kind="embedded"), "languages": ["en"]}
    return small.model_copy(update={"task": task.model_copy(update=stand_in)})


class _Graph:
    """A plan that is being filled."""

    def __init__(self, plan: SuitePlan, shipped: Mapping[str, Recipe]) -> None:
        self.plan = plan
        self.shipped = shipped
        self.by_own_name = {recipe.name: name for name, recipe in shipped.items()}
        self.jobs: dict[str, Job] = {}
        self.directories: dict[Path, str] = {}
        self.problems: list[tuple[str, str]] = []

    def add(self, experiment: Experiment) -> None:
        shown: list[Job] = []
        for name in experiment.recipes:
            for seed in experiment.seeds or (self.shipped[name].seed,):
                train = self._train(name, seed)
                if train is not None:
                    shown += [train, *(self._evaluate(train, one) for one in experiment.evaluations)]
        for job in shown:
            job.experiments = tuple(dict.fromkeys((*job.experiments, experiment.id)))
        for analysis in experiment.analyses:
            name = f"{experiment.id}:{analysis}"
            job = AnalyseJob(
                id=f"analyse {name}",
                name=name,
                needs=tuple(job.id for job in shown),
                experiments=(experiment.id,),
                output=self.plan.analysis(experiment, analysis),
                experiment=experiment,
                analysis=analysis,
            )
            self._put(job)

    def _train(self, name: str, seed: int, above: tuple[str, ...] = ()) -> TrainJob | None:
        """The job that trains a recipe, after what it starts from; None where there can be none.

        Args:
            above: what starts from it, one from the next.
        """
        id_ = f"train {name} seed {seed}"
        there = self.jobs.get(id_)
        if isinstance(there, TrainJob):
            return there
        if id_ in above:
            circle = " -> ".join(one.removeprefix("train ") for one in (*above, id_))
            self.problems.append((name, f"the starts go in a circle: {circle}"))
            return None
        shipped = self.shipped[name]
        recipe = shipped.model_copy(update={"seed": seed})
        start = Path(shipped.model.start)
        needs: tuple[str, ...] = ()
        if self.plan.smoke:
            recipe = shrunk(recipe)
        elif start.parts[0] == DEFAULT_FOLDER:
            maker = self._start(name, start, (*above, id_))
            if maker is None:
                return None
            needs = (maker.id,)
            moved = str(self.plan.root.joinpath(*start.parts[1:]))
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"start": moved})})
        run = RunDir(self.plan.root / default_directory(recipe).name)
        other = self.directories.setdefault(run.path, name)
        if other != name:
            self.problems.append((name, f"trains into {run.path}, as {other} does"))
            return None
        own = seed == shipped.seed
        job = TrainJob(
            id=id_, name=name, needs=needs, output=run.meta_path, recipe=recipe, run=run, own_seed=own
        )
        self._put(job)
        return job

    def _start(self, name: str, start: Path, above: tuple[str, ...]) -> TrainJob | None:
        """The job that makes a start below `runs/`."""
        folder = start.parts[1] if len(start.parts) > 1 else ""
        match = RUN_NAME.fullmatch(folder)
        maker = self.by_own_name.get(match["name"]) if match else None
        if match is not None and maker is not None:
            return self._train(maker, int(match["seed"]), above)
        near = nearest(folder, [f"{own}-seed{self.shipped[of].seed}" for own, of in self.by_own_name.items()])
        hint = f"; did you mean {DEFAULT_FOLDER}/{near}?" if near else ""
        self.problems.append((name, f"model.start {start}: no shipped recipe makes it{hint}"))
        return None

    def _evaluate(self, train: TrainJob, evaluation: Evaluation) -> Job:
        """The job that evaluates a run."""
        settings = train.recipe.evaluation
        task = train.recipe.task
        if evaluation.task is not None:
            other = self.shipped[evaluation.task]
            task = (shrunk(other) if self.plan.smoke else other).task
        limit = evaluation.limit or settings.examples
        limit = min(limit, settings.examples) if self.plan.smoke else limit
        options = EvaluationOptions(
            batch_size=settings.batch_size,
            limit=limit,
            hard_delete=settings.hard_delete,
            constrained=evaluation.constrained,
            runtime=evaluation.runtime,
        )
        label = evaluation_label(evaluation)
        stem = options.result_name(task.kind, label=label)
        job = EvaluateJob(
            id=f"evaluate {train.name} seed {train.recipe.seed} {stem}",
            name=train.name,
            needs=(train.id,),
            output=train.run.eval(stem),
            train=train,
            evaluation=evaluation,
            task=task,
            options=options,
            label=label,
        )
        return self._put(job)

    def _put(self, job: Job) -> Job:
        """The job of that id: this one, where there is none yet."""
        if job.id not in self.jobs:
            self.jobs[job.id] = job
            self.plan.jobs.append(job)
        return self.jobs[job.id]
