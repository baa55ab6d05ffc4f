"""Run directories as trainings leave them, made in milliseconds, without weights that anybody could load."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import tiny_runs

from mrt5cli import manifest
from mrt5cli import recipe as recipes
from mrt5cli.rundir import RunDir
from mrt5cli.writing import write_json, write_text

STEPS = 40


@cache
def _recipe(start: str, max_steps: int, target: float) -> str:
    return recipes.dump(
        recipes.Recipe.model_validate(
            {
                "name": "recorded",
                "description": "recorded: for tests",
                "seed": 3,
                "task": tiny_runs.VOWELS,
                "model": {
                    "start": start,
                    "shape": tiny_runs.SHAPE if start == "scratch" else None,
                    "shortener": tiny_runs.GATE,
                },
                "controller": {"kind": "pi", "target_deletion_rate": target},
                "training": {"max_steps": max_steps, "batch_size": 8, "logging_steps": 4},
            }
        )
    )


def record(
    path: Path,
    *,
    start: str = "scratch",
    status: str = "finished",
    steps: int = STEPS,
    max_steps: int = STEPS,
    every: int = 4,
    cross_entropy: float = 0.5,
    target: float = 0.25,
    ended: str | None = "2026-01-02T03:04:05+00:00",
    checkpoints: tuple[int, ...] = (20, 40),
    evaluation: dict[str, Any] | None = None,
    **meta: Any,
) -> RunDir:
    """A run of so many steps.

    Args:
        every: steps between two lines of metrics.
        cross_entropy: at its end.
        evaluation: numbers of its row on the test split, hard, of its own task.
        meta: more of meta.json.
    """
    run = RunDir.create(path)
    text = _recipe(start, max_steps, target)
    write_text(run.recipe_path, text)
    session = {
        "started": "2026-01-02T03:00:00+00:00",
        "from_step": 0,
        "code": "0.1.0+abc",
        "recipe": manifest.hash_of(run.recipe_path.read_bytes()),
    }
    known = {"status": status, "name": path.name, "seed": 3, "parameters": 1234, "step": steps}
    known |= {"started": session["started"], "ended": ended, "commit": "f" * 40, "data": {}}
    known |= {"versions": {"mrt5cli": "0.1.0", "torch": "2.13.0"}, "device": "cpu", "hub_commits": {}}
    write_json(run.meta_path, {**known, "sessions": [{**session, "ended": ended, "status": status}], **meta})
    lines = [
        {
            "step": step,
            "loss": cross_entropy * max_steps / step - 1,
            "cross_entropy": cross_entropy * steps / step,
            "deletion_rate": target * step / steps,
            "alpha": 0.1 * step / steps,
            "target": target,
            "bytes_per_second": 1000.0,
            "seconds": 2.0 * step,
        }
        for step in range(every, steps + 1, every)
    ]
    write_text(run.metrics_path, "".join(json.dumps(line) + "\n" for line in lines))
    models = [(run.checkpoint(step), step) for step in checkpoints]
    for folder, step in [*models, *([(run.model, steps)] if status == "finished" else [])]:
        write_json(folder / "config.json", {"model_type": "t5"})
        (folder / "model.safetensors").write_bytes(bytes(1000))
        write_text(folder / "recipe.yaml", text)
        manifest.write(folder, step=step, finite=True, metrics=run.metrics_content())
    if evaluation is not None:
        evaluate(run, **evaluation)
    return run


def evaluate(
    run: RunDir, split: str = "test", deletion: str = "hard", limit: int | None = None, **numbers: Any
) -> Path:
    """A file of results of the run's finished model."""
    settings = run.recipe().task.model_dump(mode="json")
    row = {"subset": "all", "examples": limit or 100, "deletion_rate": 0.2, **numbers}
    path = run.eval(f"{settings['kind']}-{split}-{deletion}-{limit}")
    model = {"source": str(run.model), "step": None, "run_ended": run.meta()["ended"], "rows": [row]}
    document = {"version": 3, "task": {"kind": settings["kind"], "settings": settings, "commits": {}}}
    document |= {"split": split, "deletion": deletion, "batch_size": 8, "limit": limit, "models": [model]}
    write_json(path, document)
    return path
