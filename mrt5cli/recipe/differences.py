"""What differs between two recipes, and whether it makes another run of it."""

from __future__ import annotations

from typing import Any

from mrt5cli.recipe.schema import Recipe

# Keys that may change when a run goes on: they leave its numbers as they are.
FREE_KEYS = (
    "description",
    "paper",
    "evaluation",
    # A run that goes on checks that the commit is the same.
    "task.source.revision",
    "task.source.patience",
    "task.source.skip_corrupt",
    "training.data_workers",
    "training.eval_steps",
    "training.save_steps",
    "training.keep_checkpoints",
    "training.recompute",
)
CHOOSING_KEYS = ("evaluation", "training.eval_steps")
"""Of those, the ones that decide which weights are the best where the run keeps them."""


def differences(before: Recipe, now: Recipe) -> dict[str, str]:
    """Dotted keys whose values differ, each with both values."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    return {
        key: f"{old.get(key, 'absent')} in the run, {new.get(key, 'absent')} now"
        for key in {**old, **new}
        if old.get(key, "absent") != new.get(key, "absent")
    }


def decides_numbers(key: str, recipe: Recipe) -> bool:
    """Whether a run with another value of a key would be another run."""
    chooses = CHOOSING_KEYS if recipe.training.best_metric is not None else ()
    return not key.startswith(FREE_KEYS) or bool(chooses and key.startswith(chooses))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
