"""Differences between two recipes, and whether they make a different run."""

from __future__ import annotations

import re

from pydantic import BaseModel

from mrt5cli.recipe.schema import Recipe
from mrt5cli.recipe.strict_yaml import Tree, inline

# Keys that may change when a run is resumed: they do not affect its numbers.
FREE_KEYS = (
    "description",
    "paper",
    "evaluation",
    "task.metrics",
    # A resumed run checks that the commit is the same.
    "task.source.revision",
    "task.source.patience",
    "task.source.skip_corrupt",
    "training.data_workers",
    "training.eval_steps",
    "training.save_steps",
    "training.keep_checkpoints",
    "training.recompute",
    "training.report_to",
    "training.sharding",
)
CHOOSING_KEYS = ("evaluation", "training.eval_steps")
"""Those of them that determine which weights a run with `training.best_metric` keeps as the best."""
IN_A_SEGMENT = (*FREE_KEYS, "loss", "controller", "training")
"""Keys that may change when a finished run is continued: how the model is trained, not which model."""
OF_ALL_SEGMENTS = {
    "training.batch_size": "the position in the training data is counted in batches of this size",
    "training.lora": "the optimizer's state belongs to other weights",
    "controller.alpha_start": "alpha continues from its current value",
}
"""Exceptions among those, which must not change, and why."""


def differences(before: Recipe, now: Recipe) -> dict[str, str]:
    """The dotted keys whose values differ, each with both values as text."""
    return {key: f"{old} in the run, {new} now" for key, (old, new) in unlike(before, now).items()}


def unlike(one: BaseModel, other: BaseModel) -> dict[str, tuple[str, str]]:
    """The dotted keys whose values differ between two recipes or sections, with both values as YAML."""
    first, second = flat(one.model_dump(mode="json")), flat(other.model_dump(mode="json"))
    return {
        key: (first.get(key, "absent"), second.get(key, "absent"))
        for key in {**first, **second}
        if first.get(key) != second.get(key)
    }


def decides_numbers(key: str, recipe: Recipe) -> bool:
    """Whether changing a key would change the numbers of a run."""
    key = re.sub(r"^task\.sources\[\d+\]", "task.source", key)
    if key in ("training.device_batch_size", "training.batch_tokens"):
        return _sees_micro_batches(recipe)
    chooses = CHOOSING_KEYS if recipe.training.best_metric is not None else ()
    return not key.startswith(FREE_KEYS) or bool(chooses and key.startswith(chooses))


def refused_in_a_segment(key: str, before: Recipe, now: Recipe) -> str | None:
    """Why a key must not change when a run is continued, as a clause, or None if it may."""
    key = re.sub(r"^task\.sources\[\d+\]", "task.source", key)
    if not key.startswith(IN_A_SEGMENT):
        return "the model or the data would be different"
    # Another kind of controller may lack the key, which changes nothing.
    unset = getattr(before.controller, "alpha_start", 0) == getattr(now.controller, "alpha_start", 0)
    for fixed, why in OF_ALL_SEGMENTS.items():
        if key.startswith(fixed) and not (fixed == "controller.alpha_start" and unset):
            return why
    metric, new = before.training.best_metric, now.training.best_metric
    if metric is not None and new is not None:
        compares = key in ("training.best_metric", "evaluation.examples", "evaluation.hard_delete")
        if compares or key.startswith("evaluation.generation"):
            return "the best weights so far were measured with the old value"
    return None


def _sees_micro_batches(recipe: Recipe) -> bool:
    """Whether the division of an optimizer step into micro-batches matters; see `training.losses`."""
    loss, moves = recipe.loss, getattr(recipe.controller, "update_per", "optimizer_step")
    shortener = recipe.model.shortener
    shortens = shortener.pools or not shortener.reads_source
    return (
        "micro_batch" in (loss.average_per, moves)
        or loss.gate_loss == "gate_variance"
        or loss.entropy_coefficient_1 != 0
        or loss.entropy_coefficient_2 != 0
        or loss.hard_delete_probability > 0
        or getattr(shortener, "per", "row") == "batch"
        or (loss.score_coefficient > 0 and (loss.score_per == "batch" or shortens))
    )


def flat(tree: Tree, prefix: str = "") -> dict[str, str]:
    """The dotted keys of a tree with their values as YAML."""
    keys: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            keys |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for number, item in enumerate(value):
                keys |= flat(item, f"{prefix}{key}[{number}].")
        else:
            keys[f"{prefix}{key}"] = inline(value)
    return keys
