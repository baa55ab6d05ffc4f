"""Where a training starts: random weights, another run, a checkpoint or a Hub model, and what it brings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mrt5cli.errors import UserError
from mrt5cli.recipe import load as load_recipe
from mrt5cli.recipe import shorteners
from mrt5cli.recipe.loading import shipped
from mrt5cli.rundir import default_directory, resolve_model

if TYPE_CHECKING:
    from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
    from mrt5cli.models.hub_files import Located
    from mrt5cli.recipe import ModelSection

LARGEST_BYTE_VOCABULARY = 1024
"""Entries: ByT5's 384, or what somebody rounds them up to; vocabularies of pieces of words are far larger."""


@dataclass(frozen=True)
class Start:
    """A model to train.

    Attributes:
        model: in training mode.
        origin: of its weights, in words.
        carried: the shortener whose trained weights it has from its start, in words, or None.
        notes: on what the start has and the recipe has not, or the other way round, a sentence each.
        commit: of the Hub model that it starts from, or None.
    """

    model: MrT5ForConditionalGeneration
    origin: str
    carried: str | None = None
    notes: list[str] = field(default_factory=list)
    commit: str | None = None


def checkpoint_to_resume(checkpoint: Path, step: int) -> Start:
    """One of a run's own checkpoints.

    Raises:
        UserError: it cannot be loaded.
    """
    from mrt5cli.models import load
    from mrt5cli.training.whole import not_whole

    try:
        return Start(load(checkpoint).train(), f"checkpoint of step {step}")
    except UserError as error:
        why = error.message.removeprefix(f"{checkpoint}: ")
        raise not_whole(checkpoint, f"holds no model to go on with: {why}") from error


def model_to_start(section: ModelSection, *, allow_pickle: bool = True) -> Start:
    """What a recipe's `model` section starts from.

    Args:
        allow_pickle: as `models.load`.

    Raises:
        UserError: there is no such start, or it does not fit the recipe.
    """
    from mrt5cli.models import build
    from mrt5cli.models.checkpoint import read_config

    if section.start == "scratch":
        return Start(build(section), "random weights")
    found = resolve_start(section.start, section.revision, allow_pickle=allow_pickle)
    before = read_config(found.folder)
    now = read_config(found.folder, **section.shortener.config_fields())
    _check_fits(section, before, now)
    model = build(section.model_copy(update={"start": str(found.folder), "revision": None}))
    carried = section.shortener.called if _keeps_shortener(before, now) else None
    notes = [*_vocabulary(section.start, now.vocab_size), *_notes(section.start, before, now)]
    origin = section.start
    if found.commit is not None:
        origin += f" at {found.commit[:12]}"
    if carried is not None:
        origin += f", {carried} included"
    return Start(model, origin, carried, notes, found.commit)


def resolve_start(start: str, revision: str | None = None, *, allow_pickle: bool = True) -> Located:
    """What a recipe's `model.start` and `model.revision` stand for, downloaded if it is a Hub model.

    Raises:
        UserError: it cannot be had.
    """
    from mrt5cli.models.hub_files import locate

    check_start(start)
    return locate(start, revision=revision, allow_pickle=allow_pickle)


def check_start(start: str, asked_by: str = "model.start") -> None:
    """Refuse what is neither here nor a Hub id; nothing is downloaded.

    Args:
        asked_by: the recipe's key or the option that names it, for the message.

    Raises:
        UserError: if a shipped recipe makes it, the hint says which.
    """
    try:
        resolve_model(start)
    except UserError as error:
        maker = None if Path(start).exists() else _recipe_that_makes(Path(start))
        if maker is None:
            raise
        hint = f"it is what the recipe {maker} trains: mrt5 pretrain {maker}"
        raise UserError(f"{asked_by}: {error.message}", hint) from error


def _recipe_that_makes(run: Path) -> str | None:
    """The shipped recipe whose run goes there by default."""
    for name, path in shipped().items():
        recipe = load_recipe(path)
        if run == default_directory(recipe):
            return name
    return None


def _check_fits(section: ModelSection, before: MrT5Config, now: MrT5Config) -> None:
    """Refuse what would load and not work, or fail with less to say.

    Args:
        before, now: of the start, and with what the recipe changes in it.
    """
    if before.has_absolute_position_embeddings and section.positions != "absolute":
        raise UserError(
            f"{section.start} has learned {before.max_position_embeddings} absolute positions, and "
            f"model.positions is {section.positions}",
            "--set model.positions=absolute "
            f"--set model.max_positions={before.max_position_embeddings}, or start from another model",
        )
    if not _keeps_shortener(before, now):
        return
    shortener = section.shortener
    for key, old in shorteners.of_config(before).shapes_of_weights.items():
        if old != (new := shortener.shapes_of_weights[key]):
            raise UserError(
                f"{section.start} has a {shortener.called} with {key} {old}, whose weights do not fit "
                f"model.shortener.{key} {new}",
                f"--set model.shortener.{key}={old}, or start from another model",
            )


def _keeps_shortener(before: MrT5Config, now: MrT5Config) -> bool:
    """Whether the shortener's weights are those of the start: the same kind at the same place."""
    kind = shorteners.of_type(now.deletion_type)
    same_place = before.delete_gate_layer == now.delete_gate_layer
    return kind.has_weights and kind is shorteners.of_type(before.deletion_type) and same_place


def _vocabulary(start: str, size: int) -> list[str]:
    """A sentence where a start's embeddings are of other things than bytes.

    Args:
        size: ids of the start's vocabulary. ByT5's has 384, of which 259 are in use.
    """
    if size <= LARGEST_BYTE_VOCABULARY:
        return []
    return [
        f"{start} has a vocabulary of {size:,} entries, pieces of words, and MrT5 reads bytes: its first 259 "
        "embeddings come to stand for bytes, which they know nothing of, and the others are never used; "
        "google/byt5-small is a start that knows bytes"
    ]


def _notes(start: str, before: MrT5Config, now: MrT5Config) -> list[str]:
    """What the start has and the model has not, or the other way round.

    Args:
        start: as the recipe says it.
        before, now: of the start and of the model.
    """
    if _keeps_shortener(before, now):
        return []
    old, new = shorteners.of_type(before.deletion_type), shorteners.of_type(now.deletion_type)
    if new.has_weights:
        place = f" before encoder block {before.delete_gate_layer}" if old is new else ""
        return [f"the {new.called} starts fresh: {start} has {_with_article(old.called)}{place}"]
    if old.has_weights:
        return [f"the {old.called} of {start} is left out: the recipe has {_with_article(new.called)}"]
    return []


def _with_article(what: str) -> str:
    return what if what.startswith("no ") else f"a {what}"
