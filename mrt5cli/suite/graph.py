"""From experiments to jobs: what must be trained, evaluated and analysed, each once, needs first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrt5cli import recipe as recipes
from mrt5cli.errors import RecipeError
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.recipe import EmbeddedSource, FilesSource, Recipe, SpanCorruptionTask
from mrt5cli.recipe.words import nearest
from mrt5cli.rundir import DEFAULT_FOLDER, RunDir, default_directory
from mrt5cli.suite.jobs import Evaluation, Experiment, Job, Plan

RUN_NAME = re.compile(r"(?P<name>.+)-seed(?P<seed>\d+)")


def build_plan(
    suite: str,
    experiments: Sequence[Experiment],
    shipped: Mapping[str, Recipe],
    root: Path,
    *,
    smoke: bool = False,
) -> Plan:
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
    plan = Plan(suite, root, list(experiments), smoke=smoke)
    graph = _Graph(plan, shipped)
    for experiment in experiments:
        graph.add(experiment)
    if graph.problems:
        raise RecipeError(f"suite {suite}", graph.problems, "`mrt5 recipe list` shows the shipped recipes")
    return plan


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

    def __init__(self, plan: Plan, shipped: Mapping[str, Recipe]) -> None:
        self.plan = plan
        self.shipped = shipped
        self.by_own_name = {recipe.name: name for name, recipe in shipped.items()}
        self.jobs: dict[str, Job] = {}
        self.directories: dict[Path, str] = {}
        self.open: list[str] = []
        self.problems: list[tuple[str, str]] = []

    def add(self, experiment: Experiment) -> None:
        done: list[str] = []
        for name in experiment.recipes:
            for seed in experiment.seeds or (self.shipped[name].seed,):
                train = self.train(name, seed)
                if train is None:
                    continue
                done.append(self._shown(train, experiment))
                for evaluation in experiment.evaluations:
                    done.append(self._shown(self.evaluate(train, evaluation), experiment))
        for analysis in experiment.analyses:
            name = f"{experiment.id}:{analysis}"
            self._put(
                Job(
                    f"analyse {name}",
                    "analyse",
                    name,
                    needs=tuple(done),
                    experiments=(experiment.id,),
                    output=self.plan.analysis(experiment, analysis),
                )
            )

    def train(self, name: str, seed: int) -> Job | None:
        """The job that trains a recipe, after what it starts from; None where there can be none."""
        id_ = f"train {name} seed {seed}"
        if id_ in self.jobs:
            return self.jobs[id_]
        if id_ in self.open:
            circle = " -> ".join(one.removeprefix("train ") for one in [*self.open, id_])
            self.problems.append((name, f"the starts go in a circle: {circle}"))
            return None
        recipe = self.shipped[name]
        own_seed = seed == recipe.seed
        recipe = recipe.model_copy(update={"seed": seed})
        needs: tuple[str, ...] = ()
        if self.plan.smoke:
            recipe = shrunk(recipe)
        elif recipe.model.start.split("/")[0] == DEFAULT_FOLDER:
            self.open.append(id_)
            start = self._start(name, Path(recipe.model.start))
            self.open.pop()
            if start is None:
                return None
            needs = (start.id,)
            moved = str(self.plan.root.joinpath(*Path(recipe.model.start).parts[1:]))
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"start": moved})})
        run = RunDir(self.plan.root / default_directory(recipe).name)
        other = self.directories.setdefault(run.path, name)
        if other != name:
            self.problems.append((name, f"trains into {run.path}, as {other} does"))
            return None
        job = Job(id_, "train", name, needs, own_seed=own_seed, recipe=recipe, run=run, output=run.meta_path)
        return self._put(job)

    def _start(self, name: str, start: Path) -> Job | None:
        """The job that makes a start below `runs/`."""
        match = RUN_NAME.fullmatch(start.parts[1]) if len(start.parts) > 1 else None
        maker = self.by_own_name.get(match["name"]) if match else None
        if match is None or maker is None:
            names = {f"{known}-seed{self.shipped[of].seed}": known for known, of in self.by_own_name.items()}
            near = nearest(start.parts[1] if len(start.parts) > 1 else "", names)
            hint = f"; did you mean {DEFAULT_FOLDER}/{near}?" if near else ""
            self.problems.append((name, f"model.start {start}: no shipped recipe makes it{hint}"))
            return None
        return self.train(maker, int(match["seed"]))

    def evaluate(self, train: Job, evaluation: Evaluation) -> Job:
        """The job that evaluates a run."""
        assert train.recipe is not None and train.run is not None, "training jobs have both"
        task: Any = train.recipe.task
        if evaluation.task is not None:
            other = self.shipped[evaluation.task]
            task = (shrunk(other) if self.plan.smoke else other).task
        limit = evaluation.limit or train.recipe.evaluation.examples
        if self.plan.smoke:
            limit = min(limit, train.recipe.evaluation.examples)
        options = EvaluationOptions(
            batch_size=train.recipe.evaluation.batch_size,
            limit=limit,
            hard_delete=train.recipe.evaluation.hard_delete,
            constrained=evaluation.constrained,
            runtime=evaluation.runtime,
        )
        stem = options.result_name(task.kind, label=evaluation_label(evaluation))
        return self._put(
            Job(
                f"evaluate {train.name} seed {train.recipe.seed} {stem}",
                "evaluate",
                train.name,
                needs=(train.id,),
                own_seed=train.own_seed,
                recipe=train.recipe,
                run=train.run,
                evaluation=evaluation,
                task=task,
                limit=limit,
                output=train.run.eval(stem),
            )
        )

    def _put(self, job: Job) -> Job:
        if job.id not in self.jobs:
            self.jobs[job.id] = job
            self.plan.jobs.append(job)
        return self.jobs[job.id]

    def _shown(self, job: Job, experiment: Experiment) -> str:
        if experiment.id not in job.experiments:
            job.experiments = (*job.experiments, experiment.id)
        return job.id
