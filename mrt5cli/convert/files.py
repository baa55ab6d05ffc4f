"""Files common to all layouts: weights, ByT5's tokenizer, a recipe without local paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from transformers import ByT5Tokenizer

from mrt5cli.byte_tokens import LAST_BYTE_ID, VOCAB_SIZE
from mrt5cli.convert.published import published
from mrt5cli.metrics.results import Json
from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
from mrt5cli.models.checkpoint import quiet_transformers
from mrt5cli.recipe import Recipe
from mrt5cli.rundir import RunDir
from mrt5cli.writing import write_json, write_text


@dataclass(frozen=True)
class Job:
    """The model to write, and its options.

    Attributes:
        model: the model, which is not changed.
        recipe, run: recipe and run of the model, or None.
        repo_id: the Hub repository it is meant for, "owner/name", or None.
        license: license in the card's metadata, see `license`.
        moved: whether the deletion threshold differs from that of the run, whose results the card shows.
    """

    model: MrT5ForConditionalGeneration
    recipe: Recipe | None = None
    run: RunDir | None = None
    shard_size: str = "5GB"
    repo_id: str | None = None
    license: Json = field(default_factory=dict)
    moved: bool = False

    @property
    def config(self) -> MrT5Config:
        return self.model.config

    @property
    def dtype(self) -> str:
        """Dtype of the weights, "float32" or "bfloat16"."""
        return str(self.model.dtype).removeprefix("torch.")


def has_byte_vocabulary(config: MrT5Config) -> bool:
    """Whether the vocabulary fits ByT5's tokenizer: 3 special ids, 256 bytes, up to 125 unused ids."""
    return LAST_BYTE_ID < config.vocab_size <= VOCAB_SIZE


def write_weights(job: Job, folder: Path, rename: Callable[[str], str] = str) -> None:
    """Write weights, config.json and generation_config.json as `save_pretrained` does.

    Args:
        rename: maps the model's name of a weight to its name in the files.
    """
    state = {rename(name): tensor for name, tensor in job.model.state_dict().items()}
    with quiet_transformers():  # it warns about fields that are rewritten right away
        job.model.save_pretrained(folder, state_dict=state, max_shard_size=job.shard_size)


def write_configurations(written: Json, config: MrT5Config, folder: Path) -> None:
    """Write `written` as config.json, and the special ids of `config` as generation_config.json."""
    names = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
    generation = {"_from_model_config": True} | {name: getattr(config, name) for name in names}
    write_json(folder / "config.json", written)
    write_json(folder / "generation_config.json", generation)


def write_tokenizer(config: MrT5Config, folder: Path) -> None:
    """Write the files of ByT5's tokenizer, if the vocabulary is one of bytes."""
    if has_byte_vocabulary(config):
        ByT5Tokenizer(extra_ids=config.vocab_size - 1 - LAST_BYTE_ID).save_pretrained(folder)


def write_recipe(job: Job, folder: Path) -> list[str]:
    """Write recipe.yaml, if there is a recipe; `mrt5 evaluate` finds the task in it.

    Returns:
        A list of at most one note for the user.
    """
    if job.recipe is None:
        return []
    _, text, replaced = published(job.recipe)
    write_text(folder / "recipe.yaml", text)
    return [f"recipe.yaml has placeholders for local paths: {', '.join(replaced)}"] if replaced else []
