"""Suites of tiny recipes, and what their jobs leave behind, made without any training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mrt5cli import recipe as recipes
from mrt5cli.fingerprint import code_version
from mrt5cli.recipe import Recipe
from mrt5cli.rundir import RunDir
from mrt5cli.suite.jobs import EvaluateJob, Experiment, Job, SuitePlan, TrainJob
from mrt5cli.suite.states import MADE, made_of
from mrt5cli.writing import write_json, write_text

VOWELS = {"kind": "vowel_removal", "length": 16, "train_examples": 64, "eval_examples": 8}
SHAPE = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 1}


def tree(name: str, start: str = "scratch", **sections: Any) -> dict[str, Any]:
    """A recipe of seconds as it is written; `sections` are laid over it, key by key."""
    model: dict[str, Any] = {"start": start, "positions": "absolute", "max_positions": 64}
    if start == "scratch":
        model["shape"] = SHAPE
    written: dict[str, Any] = {
        "name": name,
        "description": f"tiny {name}",
        "seed": 1,
        "task": VOWELS,
        "model": model,
        "training": {
            **{"max_steps": 4, "batch_size": 4, "device_batch_size": 4},
            **{"save_steps": 2, "logging_steps": 1},
        },
        "evaluation": {"examples": 8, "batch_size": 4},
    }
    for key, value in sections.items():
        merge = isinstance(value, dict) and key != "task"
        written[key] = written.get(key, {}) | value if merge else value
    return written


def recipe(name: str, start: str = "scratch", **sections: Any) -> Recipe:
    """The same, checked."""
    return Recipe.model_validate_json(json.dumps(tree(name, start, **sections)))


def experiment(id_: str, *names: str, **fields: Any) -> Experiment:
    return Experiment(id_, id_.title(), None, "what is asked", tuple(names), **fields)


FAMILY: Mapping[str, Recipe] = {
    "tiny/byt5": recipe("byt5"),
    "tiny/mrt5": recipe("mrt5", "runs/byt5-seed1"),
    "tiny/random": recipe("random", "runs/byt5-seed1"),
    "other": recipe("other"),
}
"""One that starts from nothing, two that start from it, and one by itself."""


def trained(job: TrainJob, *, ended: str = "2026-01-01", code: str | None = None, **meta: Any) -> RunDir:
    """Leave what a finished training leaves; more of meta.json by name."""
    run = RunDir.create(job.run.path)
    write_text(run.recipe_path, recipes.dump(job.recipe))
    session = {"started": "2026-01-01", "code": code or code_version("train")}
    write_json(
        run.meta_path,
        {"status": "finished", "started": "2026-01-01", "ended": ended, "sessions": [session]} | meta,
    )
    write_text(run.model / "config.json", "{}")
    return run


def evaluated(job: EvaluateJob, **changes: Any) -> None:
    """Leave what an evaluation leaves, as far as plans look at it."""
    document = {
        "version": 2,
        "task": {"kind": job.task.kind, "settings": job.task.model_dump(mode="json")},
        "deletion": "hard",
        "split": "test",
        "limit": job.options.limit,
        "batch_size": job.train.recipe.evaluation.batch_size,
        "constrained": job.evaluation.constrained,
        "code": code_version("evaluate"),
        "models": [measured(job.train.run.meta()["ended"])],
    }
    write_json(job.output, document | changes)


def measured(run_ended: str, ms_per_example: float | None = 1.0) -> dict[str, Any]:
    """A model's part of an evaluation's document."""
    row = {"subset": "all", "examples": 8, "ms_per_example": ms_per_example}
    return {"source": "model", "run_ended": run_ended, "rows": [row]}


def analysed(plan: SuitePlan, job: Job) -> None:
    """Leave what an analysis leaves."""
    write_json(job.output, {"rows": [], MADE: made_of(job)})


def leave_done(plan: SuitePlan, *ids: str) -> None:
    """Leave what these jobs leave; all of the plan's by default."""
    for job in plan.jobs:
        if ids and job.id not in ids:
            continue
        if isinstance(job, TrainJob):
            trained(job)
        elif isinstance(job, EvaluateJob):
            evaluated(job)
        else:
            analysed(plan, job)
