"""Shrinking a recipe: the same code paths, a few seconds on a CPU, no network.

What is kept is what chooses code: the task, the shortener and its settings, softmax1, positions, the losses,
the controller, the schedule, the precision, gradient accumulation. What is shrunk is size and time. Text of
the Hub is replaced by the embedded text (which is English, so the languages become `en`), rows of a
downstream task by generated ones, and a start from a checkpoint or the Hub by a random model: the numbers of
such a run mean nothing.
"""

from __future__ import annotations

from typing import Any

from mrt5cli.recipe.schema import BoundaryPredictor, DiagnosticTask, Recipe, RowTask, Shape

SUFFIX = "-smoke"
STEPS = 6
LAYERS = 3
STRIDE = 4
LENGTH = 64
EXAMPLES = 16
LANGUAGES = 2
ANSWER_LENGTH = 8
SHAPE = Shape(d_model=32, d_ff=64, d_kv=8, num_heads=2, num_layers=LAYERS, num_decoder_layers=2)


def smoke(recipe: Recipe) -> Recipe:
    """See `mrt5cli.recipe.smoke`. Shrinking twice changes nothing more."""
    tree = recipe.model_dump(mode="json")
    if not recipe.name.endswith(SUFFIX):
        tree["name"] += SUFFIX
        tree["description"] = f"Smoke run, tiny and meaningless, of: {recipe.description}"
    tree["paper"] = None
    _shrink_task(tree["task"], recipe)
    _shrink_model(tree["model"], recipe)
    _shrink_training(tree)
    return Recipe.model_validate(tree)


def _shrink_task(task: dict[str, Any], recipe: Recipe) -> None:
    if isinstance(recipe.task, DiagnosticTask):
        length = min(recipe.task.length, 16)
        if recipe.task.mean_insertions is not None:
            task["mean_insertions"] = recipe.task.mean_insertions * length / recipe.task.length
        task["length"] = length
        _at_most(task, train_examples=64, eval_examples=16)
        return
    if isinstance(recipe.task, RowTask):
        task["source"] = {"kind": "generated", "examples": EXAMPLES}
        task["input_length"] = min(recipe.input_length, LENGTH)
        if "languages" in task:
            task["languages"] = task["languages"][:LANGUAGES]
        if "answer_length" in task:
            _at_most(task, answer_length=ANSWER_LENGTH)
        return
    if recipe.task.source.kind == "hub":
        task["source"] = {"kind": "embedded"}
        task["languages"] = ["en"]
    _at_most(task, input_length=LENGTH)


def _shrink_model(model: dict[str, Any], recipe: Recipe) -> None:
    if recipe.model.start != "scratch":
        model |= {"start": "scratch", "revision": None}
    model["shape"] = SHAPE.model_dump()
    limits = {"layer": LAYERS - 1, "stride": STRIDE, "label_examples": 64, "vocabulary": 300}
    shortener = recipe.model.shortener
    if isinstance(shortener, BoundaryPredictor) and shortener.type != "unigram":
        del limits["vocabulary"]  # without meaning, and so refused
        if shortener.type == "gumbel":
            del limits["label_examples"]
    _at_most(model["shortener"], **{key: limits[key] for key in limits.keys() & model["shortener"].keys()})


def _shrink_training(tree: dict[str, Any]) -> None:
    training = tree["training"]
    accumulates = training["batch_size"] > training["device_batch_size"]
    training |= {"max_steps": STEPS, "batch_size": 4, "device_batch_size": 2 if accumulates else 4}
    training |= {"compile": False, "logging_steps": 1}
    _at_most(training, warmup_steps=1, data_workers=1, eval_steps=3, save_steps=3)
    _at_most(tree["loss"], regularizer_delay=2)
    if "every_steps" in tree["controller"]:
        _at_most(tree["controller"], every_steps=2)
    _at_most(tree["evaluation"], examples=8, batch_size=4)


def _at_most(section: dict[str, Any], **limits: int) -> None:
    for key, limit in limits.items():
        section[key] = min(section[key], limit)
