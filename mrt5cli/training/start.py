"""Where a training starts: random weights, another run, a checkpoint or a Hub model, and what it brings."""

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
"""Entries: ByT5's 384, or what somebody rounds them up to; vocabularies of pieces of words are far larger."""


@dataclass(frozen=True)
class Start:
    """A model to train.

    Attributes:
        model: in training mode.
        origin: of its weights, in words; says so where those of the shortener are among them.
        notes: on what the start has and the recipe has not, or the other way round, a sentence each.
        commit: of the Hub model that it starts from, or None.
    """

    model: MrT5ForConditionalGeneration
    origin: str
    notes: list[str] = field(default_factory=list)
    commit: str | None = None


def checkpoint_to_resume(checkpoint: Path) -> Start:
    """One of a run's own checkpoints.

    Raises:
        UserError: it cannot be loaded.
    """
    from mrt5cli.models import load
    from mrt5cli.training.whole import not_whole

    try:
        return Start(load(checkpoint).train(), f"checkpoint of step {RunDir.step_of(checkpoint)}")
    except UserError as error:
        why = error.message.removeprefix(f"{checkpoint} is not a whole checkpoint: ")
        raise not_whole(checkpoint, why.removeprefix(f"{checkpoint}: ")) from error


def model_to_start(section: ModelSection, *, allow_pickle: bool = True) -> Start:
    """What a recipe's `model` section starts from, downloaded if it is a Hub model.

    Args:
        allow_pickle: as `models.load`.

    Raises:
        UserError: there is no such start, or it does not fit the recipe.
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
            f"{start} has learned {before.max_position_embeddings} absolute positions, and model.positions "
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
        notes.append(f"the {shortener.called} starts fresh: {start} has none in its place")
    elif former.has_weights:
        notes.append(f"the {former.called} of {start} is left out")
    if before.vocab_size > LARGEST_BYTE_VOCABULARY:
        notes.append(
            f"{start} has a vocabulary of {before.vocab_size:,} entries, pieces of words, and MrT5 reads "
            "bytes, which its embeddings know nothing of; google/byt5-small is a start that knows bytes"
        )
    model = build(section.model_copy(update={"start": str(found.folder), "revision": None}))
    # Not where it is the gate's own, of another scale perhaps.
    own = SHORTENERS[before.deletion_type].default_threshold(before) if kept and shortener.gates else None
    if own is not None and before.threshold not in (own, model.config.threshold):
        notes.append(
            f"{start} deletes gate values up to {before.threshold:.4g}; the recipe's threshold, "
            f"{model.config.threshold:g}, takes its place"
        )
    return Start(model, origin, notes, found.commit)


def check_start(start: str) -> None:
    """Refuse what is neither here nor a Hub id; nothing is downloaded.

    Raises:
        UserError: if a shipped recipe makes it, the hint says which.
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
        hint = f"it is what the recipe {maker} trains: mrt5 pretrain {maker}"
        hint += "" if seed == recipes[maker].seed else f" --set seed={seed}"
        raise UserError(message, hint, more) from error
