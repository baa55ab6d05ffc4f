"""Where a training starts: random weights, another run, a checkpoint or a Hub model, and what it brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrt5cli.errors import UserError
from mrt5cli.recipe import load as load_recipe
from mrt5cli.recipe.loading import shipped
from mrt5cli.rundir import default_directory, resolve_model

HINT = "model.start is a run or checkpoint directory, a Hub id, or scratch"
SHORTENERS = {
    "none": "no shortener",
    "scaled_sigmoid": "delete gate",
    "log_sigmoid": "delete gate",
    "random": "random gate",
    "fixed": "fixed gate",
    "boundary_predictor": "boundary predictor",
    "convolution": "strided convolution",
    "source_removed": "no source",
}
"""What a model's `deletion_type` is called."""
LEARNED = ("delete gate", "boundary predictor", "strided convolution")
"""The shorteners that have weights."""


def model_of_checkpoint(checkpoint: Path) -> Any:
    """The model of one of a run's own checkpoints, in training mode.

    Raises:
        UserError: it cannot be loaded.
    """
    from mrt5cli.models import CheckpointError, load

    try:
        return load(checkpoint).train()
    except CheckpointError as error:
        raise UserError(str(error), HINT) from error


def model_to_start(section: Any) -> tuple[Any, str | None, list[str]]:
    """The model of a recipe's `model` section, in training mode.

    Returns:
        The model; the shortener whose trained weights it has from its start, in words, or None; and notes on
        what the start has and the recipe has not, or the other way round, a sentence each.

    Raises:
        UserError: there is no such start, or it does not fit the recipe.
    """
    from mrt5cli.models import CheckpointError, build
    from mrt5cli.models.checkpoint import read_config

    try:
        if section.start == "scratch":
            return build(section), None, []
        where = resolve_start(section.start)
        before = read_config(where)
        _check_fits(section, before)
        model = build(section.model_copy(update={"start": where}))
    except CheckpointError as error:
        raise UserError(str(error), HINT) from error
    carried, notes = _shortener_of(section.start, before, model.config)
    return model, carried, notes


def resolve_start(start: str) -> str:
    """What to load for a recipe's `model.start`.

    Raises:
        UserError: it is not there; if a shipped recipe makes it, the hint says which.
    """
    try:
        return resolve_model(start)[0]
    except UserError as error:
        maker = None if Path(start).exists() else _recipe_that_makes(Path(start))
        if maker is None:
            raise
        hint = f"it is what the recipe {maker} trains: mrt5 pretrain {maker}"
        raise UserError(f"model.start: {error.message}", hint) from error


def _recipe_that_makes(run: Path) -> str | None:
    """The shipped recipe whose run goes there by default."""
    for name, path in shipped().items():
        recipe = load_recipe(path)
        if run == default_directory(recipe):
            return name
    return None


def _check_fits(section: Any, before: Any) -> None:
    """Refuse what would load and not work, or fail with less to say.

    Args:
        before: the start's `MrT5Config`.
    """
    if before.has_absolute_position_embeddings and section.positions != "absolute":
        raise UserError(
            f"{section.start} has learned {before.max_position_embeddings} absolute positions, and "
            f"model.positions is {section.positions}",
            "--set model.positions=absolute "
            f"--set model.max_positions={before.max_position_embeddings}, or start from another model",
        )
    shortener = section.shortener
    if (
        shortener.kind == before.deletion_type == "convolution"
        and shortener.layer == before.delete_gate_layer
        and shortener.stride != before.downsampling_rate
    ):
        raise UserError(
            f"{section.start} has a convolution of stride {before.downsampling_rate}, which does not fit "
            f"model.shortener.stride {shortener.stride}",
            f"--set model.shortener.stride={before.downsampling_rate}, or start from another model",
        )


def _shortener_of(start: str, before: Any, now: Any) -> tuple[str | None, list[str]]:
    """What of the start's shortener the model has, and notes where that is not all of it.

    Args:
        start: as the recipe says it.
        before, now: `MrT5Config` of the start and of the model.
    """
    old, new = SHORTENERS[before.deletion_type], SHORTENERS[now.deletion_type]
    same_place = before.delete_gate_layer == now.delete_gate_layer
    if old == new and old in LEARNED and same_place:
        if old == "delete gate" and _norm(before) != _norm(now):
            return old, [
                f"the delete gate of {start} was trained with norm {_norm(before)}, and "
                f"model.shortener.norm is {_norm(now)}: the norm starts fresh where their weights differ"
            ]
        return old, []
    place = f" before encoder block {before.delete_gate_layer}" if old == new else ""
    has = old if old.startswith("no ") else f"a {old}{place}"
    if new in LEARNED:
        return None, [f"the {new} starts fresh: {start} has {has}"]
    if old in LEARNED:
        return None, [f"the {old} of {start} is left out: the recipe has {new}"]
    return None, []


def _norm(config: Any) -> str:
    return str(config.gate_layer_norm_type) if config.gate_layer_norm else "none"
