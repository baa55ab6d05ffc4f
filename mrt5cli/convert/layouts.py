"""The five layouts that `mrt5 convert` writes, each into an empty directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mrt5cli.convert.export import export_hub, write_tokenizer, write_weights
from mrt5cli.convert.published import published_yaml, without_local_paths
from mrt5cli.convert.reference import (
    deviations,
    first_version_config,
    plain_config,
    reference_config,
    reference_generation_config,
)
from mrt5cli.errors import UserError
from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
from mrt5cli.models.layouts import move_gate
from mrt5cli.recipe import Recipe
from mrt5cli.rundir import RunDir, write_json, write_text


@dataclass(frozen=True)
class Job:
    """What is written, and how.

    Attributes:
        model: from `mrt5cli.models`.
        recipe, run: what the model comes from, or None.
        dtype: of the weights, "float32" or "bfloat16".
        shard_size: weights above it go into several files.
        repo_id: the Hub repository it is meant for, or None.
    """

    model: MrT5ForConditionalGeneration
    recipe: Recipe | None
    run: RunDir | None
    dtype: str
    shard_size: str
    repo_id: str | None = None

    @property
    def config(self) -> MrT5Config:
        return self.model.config


def write_mrt5(job: Job, folder: Path) -> list[str]:
    """This toolkit's own layout."""
    write_weights(job.model, folder, job.dtype, job.shard_size)
    write_tokenizer(job.config.vocab_size, folder)
    if job.recipe is not None:
        write_text(folder / "recipe.yaml", published_yaml(job.recipe))
    return _paths_left_out(job)


def write_byt5(job: Job, folder: Path) -> list[str]:
    """Plain T5 v1.1: the shortener is left out.

    Raises:
        UserError: learned positions, which plain T5 has not.
    """
    config = job.config
    if config.has_absolute_position_embeddings:
        raise UserError(
            "plain T5 has a relative bias; this model has learned positions, and cannot become one",
            "convert it to mrt5, reference or hub",
        )
    write_weights(bare_copy(job.model), folder, job.dtype, job.shard_size)
    write_json(folder / "config.json", dict(sorted(plain_config(config, job.dtype).items())))
    write_json(folder / "generation_config.json", reference_generation_config(config))
    write_tokenizer(config.vocab_size, folder)
    notes = []
    if config.use_softmax1:
        notes.append(
            "the model was made with softmax1, and plain T5 computes softmax: its outputs differ until it is "
            "trained on"
        )
    if config.relative_bias_per_layer:
        notes.append(
            "transformers 5 takes every umT5 for one with a tied head, and divides its logits by the root of "
            "d_model: the best tokens stay the same, losses do not"
        )
    if config.deletion_type != "none":
        notes.append("the model was made with a shortener, which plain T5 has not: it reads every byte")
    return notes


def write_reference(job: Job, folder: Path) -> list[str]:
    """The authors' layout."""
    config = job.config
    written = reference_config(config, job.dtype)
    write_weights(job.model, folder, job.dtype, job.shard_size)
    write_json(folder / "config.json", written)
    write_json(folder / "generation_config.json", reference_generation_config(config))
    return [f"the authors' code {phrase}; this model runs otherwise here" for phrase in deviations(config)]


def write_first_version(job: Job, folder: Path) -> list[str]:
    """The layout of the first version of the authors' code, whose gate stands after a block.

    Raises:
        UserError: a model that its classes cannot hold.
    """
    config = job.config
    written = first_version_config(config, job.dtype)
    write_weights(job.model, folder, job.dtype, job.shard_size, rename=lambda name: move_gate(name, -1))
    write_json(folder / "config.json", written)
    write_json(folder / "generation_config.json", reference_generation_config(config))
    return [
        f"the first version of the authors' code {phrase}; this model runs otherwise here"
        for phrase in deviations(config, first_version=True)
    ]


def write_hub(job: Job, folder: Path) -> list[str]:
    """What plain transformers loads with `trust_remote_code=True`, with a model card.

    Raises:
        UserError: the model's shortener is not of this package, whose source is what is exported.
    """
    shortener = job.model.encoder.shortener
    if shortener is not None and not type(shortener).__module__.startswith("mrt5cli.models."):
        raise UserError(
            f"the shortener {job.config.deletion_type!r} comes with --code, and an exported model is made of "
            "this package's files alone",
            "convert it to mrt5, or put its file into mrt5cli/models/shorteners",
        )
    export_hub(
        job.model,
        job.recipe,
        job.run,
        folder,
        repo_id=job.repo_id,
        dtype=job.dtype,
        shard_size=job.shard_size,
    )
    return _paths_left_out(job)


def _paths_left_out(job: Job) -> list[str]:
    replaced = [] if job.recipe is None else without_local_paths(job.recipe)[1]
    return [f"recipe.yaml has placeholders for local paths: {', '.join(replaced)}"] if replaced else []


LAYOUTS: dict[str, Callable[[Job, Path], list[str]]] = {
    "mrt5": write_mrt5,
    "byt5": write_byt5,
    "reference": write_reference,
    "reference-v1": write_first_version,
    "hub": write_hub,
}
"""Layout and its writer, which returns notes for the user."""


def bare_copy(model: MrT5ForConditionalGeneration) -> MrT5ForConditionalGeneration:
    """The same weights, not copied, in a model without a shortener."""
    import torch

    fields = model.config.to_diff_dict() | {"deletion_type": "none", "deletion_threshold": None}
    with torch.device("meta"):
        bare = MrT5ForConditionalGeneration(MrT5Config(**fields))
    bare.load_state_dict(model.state_dict(), strict=False, assign=True)
    bare.tie_weights()
    return bare
