"""The starting point of a training: random weights, another run, a checkpoint or a Hub model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mrt5cli.errors import UserError
from mrt5cli.recipe import load as load_recipe
from mrt5cli.recipe import shorteners
from mrt5cli.recipe.loading import shipped
from mrt5cli.rundir import DEFAULT_FOLDER, RunDir, name_and_seed, resolve_model

if TYPE_CHECKING:
    from mrt5cli.models import MrT5ForConditionalGeneration
    from mrt5cli.recipe import ModelSection

LARGEST_BYTE_VOCABULARY = 1024
"""Entries: ByT5 has 384, possibly rounded up; vocabularies of subwords are far larger."""


@dataclass(frozen=True)
class Start:
    """A model to train.

    Attributes:
        model: the model, in training mode.
        origin: where the weights come from, as text; states whether they include the shortener's.
        notes: one sentence for each difference between the start and the recipe.
        commit: commit of the Hub model, or None.
    """

    model: MrT5ForConditionalGeneration
    origin: str
    notes: list[str] = field(default_factory=list)
    commit: str | None = None


def checkpoint_to_resume(checkpoint: Path) -> Start:
    """Load one of the run's own checkpoints.

    Raises:
        UserError: it cannot be loaded.
    """
    from mrt5cli.models import load
    from mrt5cli.training.whole import not_whole

    try:
        return Start(load(checkpoint).train(), f"the checkpoint of step {RunDir.step_of(checkpoint)}")
    except UserError as error:
        why = error.message.removeprefix(f"{checkpoint} is not a complete checkpoint: ")
        raise not_whole(checkpoint, why.removeprefix(f"{checkpoint}: ")) from error


def model_to_start(section: ModelSection, *, allow_pickle: bool = True) -> Start:
    """Load the model that a recipe's `model` section starts from; a Hub model is downloaded.

    Args:
        allow_pickle: also accept pickled weights, as in `models.load`.

    Raises:
        UserError: the start does not exist, or it does not fit the recipe.
    """
    from mrt5cli.models import build
    from mrt5cli.models.checkpoint import read_config
    from mrt5cli.models.hub_files import locate
    from mrt5cli.models.shorteners import SHORTENERS

    start = section.start
    if start == "scratch":
        return Start(build(section), "random weights")
    found = locate(start, revision=section.revision, allow_pickle=allow_pickle)
    before, shortener = read_config(found.folder), section.shortener
    if before.has_absolute_position_embeddings and section.positions != "absolute":
        raise UserError(
            f"{start} has {before.max_position_embeddings} learned absolute positions, but model.positions "
            f"is {section.positions}",
            f"--set model.positions=absolute --set model.max_positions={before.max_position_embeddings}",
        )
    origin = start if found.commit is None else f"{start} at {found.commit[:12]}"
    former, notes = shorteners.of_config(before), []
    kept = former.kind == shortener.kind and getattr(shortener, "layer", None) == before.delete_gate_layer
    if shortener.has_weights and kept:
        origin += f", {shortener.called} included"
        for key in former.shaped_by:
            old, new = getattr(former, key), getattr(shortener, key)
            if old != new:
                raise UserError(
                    f"{start} has a {former.called} with {key} {old}, whose weights do not fit "
                    f"model.shortener.{key} {new}",
                    f"--set model.shortener.{key}={old}, or start from another model",
                )
    elif shortener.has_weights:
        notes.append(f"the {shortener.called} is randomly initialized: {start} has none at that layer")
    elif former.has_weights:
        notes.append(f"the {former.called} of {start} is not used")
    if before.vocab_size > LARGEST_BYTE_VOCABULARY:
        notes.append(
            f"{start} has a vocabulary of {before.vocab_size:,} subwords, but MrT5 reads bytes, which its "
            "embeddings do not represent; google/byt5-small was trained on bytes"
        )
    model = build(section.model_copy(update={"start": str(found.folder), "revision": None}))
    # A threshold that is the gate's own default needs no note, even if the scales differ.
    own = SHORTENERS[before.deletion_type].default_threshold(before) if kept and shortener.gates else None
    if own is not None and before.threshold not in (own, model.config.threshold):
        notes.append(
            f"{start} deletes at gate values up to {before.threshold:.4g}; this run uses the recipe's "
            f"threshold, {model.config.threshold:g}"
        )
    return Start(model, origin, notes, found.commit)


def check_start(start: str) -> None:
    """Refuse a start that neither exists here nor is a Hub id; downloads nothing.

    Raises:
        UserError: the hint names the shipped recipe that trains this start, if there is one.
    """
    try:
        if start != "scratch":
            resolve_model(start)
    except UserError as error:
        first, *more = error.message.split("\n")
        message = f"model.start: {first}"
        (name, seed), recipes = name_and_seed(Path(start).name), {}
        if Path(start).parent == Path(DEFAULT_FOLDER) and not Path(start).exists():
            recipes = {maker: load_recipe(path) for maker, path in shipped().items()}
        maker = next((maker for maker, recipe in recipes.items() if recipe.name == name), None)
        if maker is None or seed < 0:
            raise UserError(message, error.hint, more) from error
        hint = f"the recipe {maker} trains it: mrt5 pretrain {maker}"
        hint += "" if seed == recipes[maker].seed else f" --set seed={seed}"
        raise UserError(message, hint, more) from error
