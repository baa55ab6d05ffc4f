"""The six layouts that `mrt5 convert` writes, each into an empty directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import GenerationConfig

from mrt5cli.convert.card import model_card
from mrt5cli.convert.files import (
    Job,
    has_byte_vocabulary,
    write_configurations,
    write_recipe,
    write_tokenizer,
    write_weights,
)
from mrt5cli.convert.modules import CONFIGURATION, MODELING, source_files
from mrt5cli.convert.onnx import write_onnx
from mrt5cli.convert.reference import deviations, first_version_config, plain_config, reference_config
from mrt5cli.data.span_noise import plan_lengths
from mrt5cli.errors import UserError
from mrt5cli.models.checkpoint import sharing_weights
from mrt5cli.models.layouts import move_gate
from mrt5cli.recipe import SpanCorruptionTask
from mrt5cli.writing import write_json, write_text

NEW_TOKENS = 512
"""Bytes `generate` may write where no recipe says how long targets are."""

AUTO_MAP = {
    "AutoConfig": f"{CONFIGURATION}.MrT5Config",
    "AutoModelForSeq2SeqLM": f"{MODELING}.MrT5ForConditionalGeneration",
}


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
    write_weights(replace(job, model=sharing_weights(job.model, deletion_type="none")), folder)
    write_configurations(plain_config(config, job.dtype), config, folder)
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
    write_configurations(written, job.config, folder)
    phrases = deviations(job.config, first_version=first_version)
    return [f"{whose} {phrase}; this model runs otherwise here" for phrase in phrases]


def write_hub(job: Job, folder: Path) -> list[str]:
    """What plain transformers and the readers of a model need, for the Hugging Face Hub.

        config.json (auto_map)  generation_config.json  model.safetensors, or shards  *_mrt5.py (the code)
        tokenizer_config.json, added_tokens.json (ByT5's)  README.md (the card)  recipe.yaml (no local paths)

    Whether bytes are removed where a call does not say stands in config.json (`inference_deletion`). It could
    not be a default of generation_config.json: transformers takes a field it finds there out of a call's
    arguments, so that `generate(hard_delete=...)` would no longer reach the model.

    Raises:
        UserError: the shortener is not of this package, whose source is what is exported; or results of the
            run cannot be read.
    """
    shortener = job.model.encoder.shortener
    if shortener is not None and not type(shortener).__module__.startswith("mrt5cli.models."):
        raise UserError(
            f"the shortener {job.config.deletion_type!r} comes with --code, and an exported model is made of "
            "this package's files alone",
            "convert it to mrt5, or put its file into mrt5cli/models/shorteners",
        )
    card = model_card(job)  # first what may be refused, then the gigabytes
    for file, source in source_files().items():
        write_text(folder / file, source)
    write_weights(job, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"auto_map": AUTO_MAP, "dtype": job.dtype}
    config.pop("tokenizer_class", None)
    if has_byte_vocabulary(job.config):
        config["tokenizer_class"] = "ByT5Tokenizer"
    write_json(path, dict(sorted(config.items())))
    # Not the model's own, which may carry sampling settings from wherever the weights started.
    GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=_most_new_tokens(job),
        pad_token_id=job.config.pad_token_id,
        eos_token_id=job.config.eos_token_id,
        decoder_start_token_id=job.config.decoder_start_token_id,
    ).save_pretrained(folder)
    write_tokenizer(job.config, folder)
    write_text(folder / "README.md", card)
    return write_recipe(job, folder)


LAYOUTS: dict[str, Callable[[Job, Path], list[str]]] = {
    "mrt5": write_mrt5,
    "byt5": write_byt5,
    "reference": write_reference,
    "reference-v1": partial(write_reference, first_version=True),
    "hub": write_hub,
    "onnx": write_onnx,
}
"""Layout and its writer, which returns notes for the user."""


def _most_new_tokens(job: Job) -> int:
    """The longest target of the task a model was trained on, in byte tokens, as far as it has positions."""
    task, length = None if job.recipe is None else job.recipe.task, NEW_TOKENS
    if isinstance(task, SpanCorruptionTask):
        length = plan_lengths(task.input_length, task.noise_density, task.mean_span_length).targets
    elif task is not None:
        length = task.longest_target or NEW_TOKENS
    learned = job.config.has_absolute_position_embeddings
    return min(length, job.config.max_position_embeddings) if learned else length
