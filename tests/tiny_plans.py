"""Plans whose runs are tiny and untrained: what `mrt5 reproduce --smoke` leaves behind, made in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mrt5cli import recipe as recipes
from mrt5cli.recipe.loading import shipped
from mrt5cli.rundir import RunDir
from mrt5cli.suite.jobs import Experiment, SuitePlan, TrainJob
from mrt5cli.writing import write_json, write_text


def make_plan(
    root: Path, experiments: Sequence[Experiment], *, left_out: Sequence[str] = (), smoke: bool = True
) -> SuitePlan:
    """A plan with a training job for each run of the experiments; see `train` and `pretend` for the runs.

    Args:
        left_out: recipes whose runs failed.
        smoke: shrink the recipes.
    """
    plan = SuitePlan("tiny", root, list(experiments), smoke=smoke)
    wanted: dict[tuple[str, int], recipes.Recipe] = {}
    for experiment in experiments:
        for name in experiment.recipes:
            recipe = _shipped(name)
            recipe = recipes.smoke(recipe) if smoke else recipe
            for seed in experiment.seeds or (recipe.seed,):
                wanted[name, seed] = recipe.model_copy(update={"seed": seed})
    for (name, seed), recipe in wanted.items():
        run = RunDir(root / f"{recipe.name}-seed{seed}")
        status, reason = ("failed", "out of memory") if name in left_out else ("done", None)
        plan.jobs.append(
            TrainJob(
                id=f"train {name} seed {seed}",
                name=name,
                output=run.meta_path,
                recipe=recipe,
                run=run,
                own_seed=seed == _shipped(name).seed,
                status=status,  # type: ignore[arg-type]
                reason=reason,
            )
        )
    return plan


@cache
def _shipped(name: str) -> recipes.Recipe:
    return recipes.load(shipped()[name])


def train(plan: SuitePlan, *, evaluate: bool = True, runtime: bool = False) -> None:
    """Give every run that did not fail an untrained model, and results on its own task."""
    for job in plan.trainings:
        if job.status == "done":
            _make(job, evaluate, runtime)


def _make(job: TrainJob, evaluate: bool, runtime: bool) -> None:
    import torch

    from mrt5cli.evaluation.compare import compare
    from mrt5cli.evaluation.options import EvaluationOptions
    from mrt5cli.models import build
    from mrt5cli.subject import find_subject

    run = RunDir.create(job.run.path)
    write_text(run.recipe_path, recipes.dump(job.recipe))
    write_json(run.meta_path, meta())
    torch.manual_seed(job.recipe.seed)
    built = build(job.recipe.model)
    for key, parameter in built.named_parameters():
        if "delete_gate.feed_forward" in key:  # about half of what it sees goes
            torch.nn.init.normal_(parameter, std=0.5) if parameter.ndim > 1 else parameter.data.zero_()
    built.save_pretrained(run.model)
    if evaluate:
        settings = job.recipe.evaluation
        compare(
            [find_subject(str(run.path))],
            job.recipe.task,
            EvaluationOptions(
                batch_size=settings.batch_size,
                limit=settings.examples,
                hard_delete=settings.hard_delete,
                runtime=runtime,
            ),
        ).save()


def meta() -> dict[str, Any]:
    """Of a finished run, the parts a report reads."""
    return {
        "status": "finished",
        "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T03:14:05+00:00",
        "device": "cpu",
        "device_name": "AMD EPYC",
        "precision": "fp32",
        "threads": 1,
        "processes": 1,
        "versions": {"mrt5cli": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        "commit": "0123456789ab",
        "sessions": [{"started": "2026-01-02T03:04:05+00:00", "ended": "2026-01-02T03:14:05+00:00"}],
    }


def pretend(plan: SuitePlan, *, shift: float = 1.0) -> None:
    """Give runs results without training any: the published numbers themselves, each times `shift`.

    Only for plans that are no smoke; the numbers of analyses are not among them.
    """
    from mrt5cli.data.languages import LANGUAGES
    from mrt5cli.metrics.catalog import BY_PUBLISHED_NAME, METRICS
    from mrt5cli.paper.tolerances import AVERAGES, TIMES
    from mrt5cli.report.placement import place
    from mrt5cli.report.results import PUBLISHED_DIAGNOSTICS

    codes = {language.name: code for code, language in LANGUAGES.items()}
    placed = place(plan.experiments)
    for experiment in plan.experiments:
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for row, recipe in placed[experiment.id]:
            name = "runtime_per_example" if row.metric in TIMES else row.metric.partition("[")[0]
            metric = BY_PUBLISHED_NAME[name]
            if recipe is None or metric.name not in METRICS:
                continue
            number, unit = metric.name, metric.factor
            subset = row.subset or "all"
            name = "total" if subset in AVERAGES else codes.get(subset.partition(" (")[0], subset)
            name = "all" if name in PUBLISHED_DIAGNOSTICS else name
            line = found.setdefault(recipe, {}).setdefault(name, blank_row(name))
            line[number] = row.value / unit * (shift if number not in ("deletion_rate", "examples") else 1.0)
        for (name, _), job in plan.runs(experiment).items():
            rows = sorted(found.get(name, {}).values(), key=lambda line: line["subset"] == "total")
            if rows and job.status == "done":
                settings = job.recipe.task.model_dump(mode="json")
                task = experiment.evaluations[0].task if experiment.evaluations else None
                if task is not None:
                    settings = _shipped(task).task.model_dump(mode="json")
                write_json(job.run.meta_path, meta())
                write_json(job.run.eval(f"{settings['kind']}-of-{experiment.id}"), document(settings, rows))


def blank_row(subset: str) -> dict[str, Any]:
    """A row of an evaluation's document in which nothing is known."""
    from dataclasses import fields

    from mrt5cli.metrics.results import Row

    known = {"subset": subset, "examples": 10_000, "target_tokens": 1_890_000, "input_length": 1024.0}
    names = (field.name for field in fields(Row) if not field.name.startswith("others"))
    return {name: known.get(name) for name in names} | {"truncated": 0}


def document(settings: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What `evaluate` saves of one run, without what is never read back."""
    conditions = {"device": "cpu", "device_name": "AMD EPYC", "dtype": "float32", "threads": 1}
    model = {"source": "model", "deletion_type": "none", "calibration": None, **conditions, "rows": rows}
    return {
        "version": 2,
        "task": {"kind": settings["kind"], "version": 1, "settings": settings},
        "split": "test",
        "deletion": "hard",
        "batch_size": 16,
        "languages": None,
        "data": None,
        "models": [model],
    }
