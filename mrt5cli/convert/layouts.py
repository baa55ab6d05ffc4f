"""The five layouts that `mrt5 convert` writes, each into an empty directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from mrt5cli.convert.export import write_hub
from mrt5cli.convert.files import Job, write_recipe, write_tokenizer, write_weights
from mrt5cli.convert.reference import deviations, first_version_config, plain_config, reference_config
from mrt5cli.errors import UserError
from mrt5cli.metrics.results import Json
from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
from mrt5cli.models.layouts import move_gate
from mrt5cli.writing import write_json


def write_mrt5(job: Job, folder: Path) -> list[str]:
    """This toolkit's own layout."""
    write_weights(job, folder)
    write_tokenizer(job.config, folder)
    return write_recipe(job, folder)


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
    write_weights(replace(job, model=_without_shortener(job.model)), folder)
    _write_configurations(plain_config(config, job.dtype), config, folder)
    write_tokenizer(config, folder)
    notes = {
        "the model was made with softmax1, and plain T5 computes softmax: its outputs differ until it is "
        "trained on": config.use_softmax1,
        "transformers 5 takes every umT5 for one with a tied head, and divides its logits by the root of "
        "d_model: the best tokens stay the same, losses do not": config.relative_bias_per_layer,
        "the model was made with a shortener, which plain T5 has not: it reads every byte": (
            config.deletion_type != "none"
        ),
    }
    return [note for note, holds in notes.items() if holds]


def write_reference(job: Job, folder: Path, *, first_version: bool = False) -> list[str]:
    """The authors' layout, or that of the first version of their code, whose gate stands after a block.

    Raises:
        UserError: a model that their classes cannot hold.
    """
    whose = "the first version of the authors' code" if first_version else "the authors' code"
    written = (first_version_config if first_version else reference_config)(job.config, job.dtype)
    write_weights(job, folder, rename=lambda name: move_gate(name, -1) if first_version else name)
    _write_configurations(written, job.config, folder)
    phrases = deviations(job.config, first_version=first_version)
    return [f"{whose} {phrase}; this model runs otherwise here" for phrase in phrases]


LAYOUTS: dict[str, Callable[[Job, Path], list[str]]] = {
    "mrt5": write_mrt5,
    "byt5": write_byt5,
    "reference": write_reference,
    "reference-v1": partial(write_reference, first_version=True),
    "hub": write_hub,
}
"""Layout and its writer, which returns notes for the user."""


def _write_configurations(written: Json, config: MrT5Config, folder: Path) -> None:
    names = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
    generation = {"_from_model_config": True} | {name: getattr(config, name) for name in names}
    write_json(folder / "config.json", written)
    write_json(folder / "generation_config.json", generation)


def _without_shortener(model: MrT5ForConditionalGeneration) -> MrT5ForConditionalGeneration:
    """The same weights, not copied."""
    fields = model.config.to_diff_dict() | {"deletion_type": "none", "deletion_threshold": None}
    with torch.device("meta"):
        bare = MrT5ForConditionalGeneration(MrT5Config(**fields))
    bare.load_state_dict(model.state_dict(), strict=False, assign=True)
    bare.tie_weights()
    return bare
