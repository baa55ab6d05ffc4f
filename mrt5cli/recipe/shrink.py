"""Shrinking a recipe for `--smoke`: the same code paths in a few seconds on a CPU, without a network.

Whatever selects code is kept: the task, the shortener and its settings, softmax1, positions, the losses, the
controller, the schedule, the precision, gradient accumulation. Sizes and durations shrink. Text from the Hub
is replaced by the embedded text (which is English, so the languages become `en`), rows of a downstream task
by generated ones (local files of text2text stay), and a start from a checkpoint or the Hub by a random model.
The numbers of such a run mean nothing.

Keys given with `--set` keep their values, except those that refer to the Hub or to a trained model: these are
still replaced, and `left_out_of_smoke` reports them.
"""

from __future__ import annotations

from pydantic import ValidationError

from mrt5cli.errors import RecipeError
from mrt5cli.recipe import words
from mrt5cli.recipe.loading import merge
from mrt5cli.recipe.schema import Recipe, Shape
from mrt5cli.recipe.strict_yaml import Tree
from mrt5cli.recipe.tasks import DiagnosticTask, RowTask, SpanCorruptionTask, Text2TextTask, name_of

SUFFIX = "-smoke"
STEPS = 6
LAYERS = 3
EXAMPLES = 16
SHAPE = Shape(d_model=32, d_ff=64, d_kv=8, num_heads=2, num_layers=LAYERS, num_decoder_layers=2)


def smoke(recipe: Recipe, given: Tree | None = None) -> Recipe:
    """Shrink a recipe. Shrinking it again changes nothing.

    Args:
        given: the tree of `--set`; see `loading.parse_overrides`.

    Raises:
        RecipeError: the values given with `--set` do not fit the shrunk ones.
    """
    given = given or {}
    tree = recipe.model_dump(mode="json")
    if not recipe.name.endswith(SUFFIX):
        tree["name"] += SUFFIX
        tree["description"] = f"Smoke run, tiny and meaningless, of: {recipe.description}"
    tree["paper"] = None
    _shrink_task(tree["task"], recipe, given.get("task", {}))
    _shrink_model(tree["model"], recipe, given.get("model", {}))
    _shrink_training(tree, given.get("training", {}))
    replaced = [("name",), ("description",), ("paper",), *_replaced(recipe)]
    try:
        return Recipe.model_validate(merge(tree, _without(given, replaced)))
    except ValidationError as error:
        problems = [(words.dotted(place), text) for place, text in words.problems(error)]
        hint = "set the other key as well: --smoke shrinks everything but the keys given with --set"
        raise RecipeError("--smoke", problems, hint) from None


def left_out_of_smoke(recipe: Recipe, given: Tree) -> list[str]:
    """One sentence for each key that was given with `--set` but is still replaced."""
    return [
        f"{section}.{key} is ignored: a smoke run does not use the Hub and starts from a tiny random model"
        for section, key in _replaced(recipe)
        if given.get(section, {}).get(key) is not None
    ]


def _replaced(recipe: Recipe) -> list[tuple[str, str]]:
    """Sections and keys that refer to the Hub or to a trained model."""
    keys: list[tuple[str, str]] = []
    if _reads_hub(recipe):
        lone = not getattr(recipe.task, "sources", ())
        keys = [("task", "source" if lone else "sources")]
        if lone and isinstance(recipe.task, SpanCorruptionTask):
            keys.append(("task", "languages"))
    if recipe.model.start != "scratch":
        keys += [("model", "start"), ("model", "revision"), ("model", "shape")]
    return keys


def _reads_hub(recipe: Recipe) -> bool:
    return any(source.kind == "hub" for source in recipe.task.every_source)


def _without(tree: Tree, paths: list[tuple[str, ...]], above: tuple[str, ...] = ()) -> Tree:
    """A copy of a tree without some keys, with plain mappings, which `merge` merges key by key."""
    return {
        key: _without(value, paths, (*above, key)) if isinstance(value, dict) else value
        for key, value in tree.items()
        if (*above, key) not in paths
    }


def _shrink_task(task: Tree, recipe: Recipe, given: Tree) -> None:
    if isinstance(recipe.task, DiagnosticTask):
        length = recipe.task.length if "length" in given else min(recipe.task.length, 16)
        if recipe.task.mean_insertions is not None:
            task["mean_insertions"] = recipe.task.mean_insertions * length / recipe.task.length
        task["length"] = length
        _at_most(task, train_examples=64, eval_examples=16)
        return
    task["input_length"] = min(recipe.task.longest_source, 64)
    if isinstance(recipe.task, Text2TextTask):
        _at_most(task, target_length=16)
        _replace_datasets(task)
    elif isinstance(recipe.task, RowTask):
        if "source" not in given or _reads_hub(recipe):
            task["source"] = {"kind": "generated", "examples": EXAMPLES}
        if "languages" in task:
            task["languages"] = task["languages"][:2]
        if "answer_length" in task:
            _at_most(task, answer_length=8)
    elif recipe.task.sources:
        task["sources"] = [
            {"kind": "embedded", "name": name_of(one), "weight": one.weight, "languages": ["en"]}
            if one.kind == "hub"
            else dumped
            for one, dumped in zip(recipe.task.sources, task["sources"], strict=True)
        ]
    elif _reads_hub(recipe):
        task |= {"source": {"kind": "embedded"}, "languages": ["en"]}


def _replace_datasets(task: Tree) -> None:
    """Replace Hub rows by generated ones, in a mixture with the same weight."""
    generated = {"kind": "generated", "examples": EXAMPLES}
    if task.get("source", {}).get("kind") == "hub":
        task["source"] = generated
    for number, source in enumerate(task.get("sources", ())):
        if source["kind"] == "hub":
            own = {key: source[key] for key in ("weight", "input", "target")}
            name = source["label"] or source["name"].rpartition("/")[2]
            task["sources"][number] = {**generated, "name": name, **own}


def _shrink_model(model: Tree, recipe: Recipe, given: Tree) -> None:
    model |= {"start": "scratch", "revision": None, "shape": SHAPE.model_dump()}
    if "layer" in given.get("shortener", {}):
        model["shape"]["num_layers"] = max(LAYERS, model["shortener"]["layer"] + 1)
    limits = {"layer": LAYERS - 1} if "layer" in model["shortener"] else {}
    _at_most(model["shortener"], **limits, **recipe.model.shortener.smallest())


def _shrink_training(tree: Tree, given: Tree) -> None:
    training = tree["training"]
    accumulates = training["batch_size"] > training["device_batch_size"]
    if "device_batch_size" in given:
        training["batch_size"] = training["device_batch_size"] * (2 if accumulates else 1)
    elif "batch_size" not in given:  # a given one is a multiple of the recipe's device_batch_size
        training |= {"batch_size": 4, "device_batch_size": 2 if accumulates else 4}
    steps = given.get("max_steps")
    steps = steps if isinstance(steps, int) else STEPS
    training |= {"max_steps": STEPS, "continues_from": 0, "compile": False, "logging_steps": 1}
    _at_most(training, warmup_steps=1, data_workers=1, eval_steps=3, save_steps=3)
    _at_most(tree["loss"], regularizer_delay=max(0, min(2, steps - 1)))
    if "every_steps" in tree["controller"]:
        _at_most(tree["controller"], every_steps=2)
    _at_most(tree["evaluation"], examples=8, batch_size=4)


def _at_most(section: Tree, **limits: int) -> None:
    for key, limit in limits.items():
        section[key] = min(section[key], limit)
