"""`mrt5 convert --to hub`: a directory that plain transformers loads, ready for the Hugging Face Hub.

    config.json (auto_map)  generation_config.json  model.safetensors, or shards  *_mrt5.py (the model's code)
    tokenizer_config.json, added_tokens.json (ByT5's)  README.md (the card)  recipe.yaml (no local paths)

Hard deletion stays off unless a call asks for it, as everywhere else: the same weights should not give other
numbers because they were exported. It could not be a default of generation_config.json anyway. transformers
takes a field it finds there out of a call's arguments, so `generate(hard_delete=...)` would no longer reach
the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mrt5cli.byte_tokens import LAST_BYTE_ID, VOCAB_SIZE
from mrt5cli.convert.card import model_card
from mrt5cli.convert.modules import CONFIGURATION, MODELING, source_files
from mrt5cli.convert.published import published_yaml
from mrt5cli.data.span_noise import plan_lengths
from mrt5cli.hub import check_repo_id
from mrt5cli.models.checkpoint import dtype_name
from mrt5cli.recipe import Recipe, SpanCorruptionTask
from mrt5cli.rundir import RunDir, write_json, write_text

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from mrt5cli.models import MrT5ForConditionalGeneration

SHARD_SIZE = "5GB"
"""Weights above it go into several files."""

NEW_TOKENS = 512
"""Bytes `generate` may write where no recipe says how long targets are."""

AUTO_MAP = {
    "AutoConfig": f"{CONFIGURATION}.MrT5Config",
    "AutoModelForSeq2SeqLM": f"{MODELING}.MrT5ForConditionalGeneration",
}


def export_hub(
    model: MrT5ForConditionalGeneration,
    recipe: Recipe | None,
    run: RunDir | None,
    folder: Path,
    *,
    repo_id: str | None = None,
    dtype: str | torch.dtype | None = None,
    shard_size: str = SHARD_SIZE,
) -> None:
    """Write a model with everything that plain transformers and its readers need.

    Args:
        model: from `mrt5cli.models`; left as it is.
        recipe: how it was trained, or None: the card then says that this is not known.
        run: the run it comes from, for versions, times and evaluation results, or None.
        folder: an existing, empty directory.
        repo_id: the Hub repository it is meant for, "owner/name"; the card's examples name it.
        dtype: "float32" or "bfloat16"; None keeps the model's.
        shard_size: weights above it go into several files.

    Raises:
        CheckpointError: another dtype.
        UserError: a repository name that cannot be, results of the run that cannot be read.
    """
    name = dtype_name(model.dtype if dtype is None else dtype)
    if repo_id is not None:
        check_repo_id(repo_id)
    # First what may be refused, then the gigabytes.
    of_bytes = has_byte_vocabulary(model.config.vocab_size)
    card = model_card(model, recipe, run, repo_id=repo_id, dtype=name, tokenizer=of_bytes)
    for file, source in source_files().items():
        write_text(folder / file, source)
    write_weights(model, folder, name, shard_size)
    _write_configuration(folder, name)
    _write_generation_config(model.config, recipe, folder)
    write_tokenizer(model.config.vocab_size, folder)
    if recipe is not None:
        # `mrt5 evaluate` finds a checkpoint's task beside it.
        write_text(folder / "recipe.yaml", published_yaml(recipe))
    write_text(folder / "README.md", card)


def has_byte_vocabulary(vocab_size: int) -> bool:
    """Whether ids can be those of ByT5's tokenizer: 3 special ones, 256 bytes, up to 125 unused."""
    return LAST_BYTE_ID < vocab_size <= VOCAB_SIZE


def most_new_tokens(config: PretrainedConfig, recipe: Recipe | None) -> int:
    """The longest target of the task a model was trained on, in byte tokens, as far as it has positions."""
    length = NEW_TOKENS
    if recipe is not None:
        task = recipe.task
        if isinstance(task, SpanCorruptionTask):
            length = plan_lengths(task.input_length, task.noise_density, task.mean_span_length).targets
        else:
            length = task.longest_target or NEW_TOKENS
    return min(length, config.max_position_embeddings) if config.has_absolute_position_embeddings else length


def write_weights(
    model: MrT5ForConditionalGeneration,
    folder: Path,
    dtype: str,
    shard_size: str = SHARD_SIZE,
    rename: Callable[[str], str] = str,
) -> None:
    """Write weights, config.json and generation_config.json as `save_pretrained` does.

    Args:
        model: left as it is.
        folder: an existing directory.
        dtype: "float32" or "bfloat16".
        shard_size: weights above it go into several files.
        rename: what a weight of the model is called in the files.
    """
    import torch

    from mrt5cli.models.checkpoint import quiet_transformers

    state = {rename(name): tensor for name, tensor in model.state_dict().items()}
    if str(model.dtype) != f"torch.{dtype}":
        target = getattr(torch, dtype)
        converted: dict[int, torch.Tensor] = {}
        for tensor in state.values():
            # Tensors that share memory still must, or they are written twice.
            converted.setdefault(tensor.data_ptr(), tensor.to(target))
        state = {name: converted[tensor.data_ptr()] for name, tensor in state.items()}
    with quiet_transformers():  # its remarks are on fields that are rewritten right after it
        model.save_pretrained(folder, state_dict=state, max_shard_size=shard_size)


def _write_configuration(folder: Path, dtype: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"auto_map": AUTO_MAP, "dtype": dtype, "tokenizer_class": "ByT5Tokenizer"}
    if not has_byte_vocabulary(config["vocab_size"]):
        del config["tokenizer_class"]
    write_json(path, dict(sorted(config.items())))


def _write_generation_config(config: PretrainedConfig, recipe: Recipe | None, folder: Path) -> None:
    from transformers import GenerationConfig

    # Not the model's own, which may carry sampling settings from wherever the weights started.
    GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=most_new_tokens(config, recipe),
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
    ).save_pretrained(folder)


def write_tokenizer(vocab_size: int, folder: Path) -> None:
    """Write the files of ByT5's tokenizer, if the vocabulary can be one of bytes."""
    from transformers import ByT5Tokenizer

    if not has_byte_vocabulary(vocab_size):
        return
    ByT5Tokenizer(extra_ids=vocab_size - 1 - LAST_BYTE_ID).save_pretrained(folder)
