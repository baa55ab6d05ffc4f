"""`mrt5 convert --to hub`: a directory that plain transformers loads, and its way to the Hugging Face Hub.

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
from mrt5cli.errors import UserError
from mrt5cli.hub import LOG_IN, OutOfPatience, patiently, refusal, trouble
from mrt5cli.models.checkpoint import dtype_name
from mrt5cli.recipe import Recipe, SpanCorruptionTask
from mrt5cli.rundir import RunDir, write_json, write_text
from mrt5cli.text import first_line, say_on_stderr

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

REPLACED = ["*.safetensors", "*.safetensors.index.json", "*_mrt5.py"]
"""What an earlier push may have left in a repository and a loader would still find."""


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


# --- the Hub ------------------------------------------------------------------------------------------------


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot name a repository of somebody's.

    Raises:
        UserError: it has no owner, or characters the Hub does not take.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    hint = "write owner/name, the owner being a user or an organisation of the Hub"
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id} is not a repository of the Hub", hint)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id} is not a name that the Hub takes: {first_line(error)}", hint) from error


def check_can_push(repo_id: str) -> None:
    """Refuse a push that has no chance, before any work is done for it.

    Raises:
        UserError: the name is impossible, nobody is logged in, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    check_repo_id(repo_id)
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"nothing can be pushed to {repo_id} while HF_HUB_OFFLINE is set", "unset it, or leave out --push"
        )
    if get_token() is None:
        raise UserError(
            f"pushing to {repo_id} needs a Hugging Face token, and there is none",
            f"{LOG_IN} to a token that may write",
        )
    try:
        patiently(HfApi(library_name="mrt5cli").whoami, repo_id, tell=say_on_stderr)
    except OutOfPatience as error:
        raise UserError(
            f"pushing to {repo_id} needs the Hub, and {error.trouble.reason}",
            "push the directory later, or leave out --push",
        ) from error
    except (HfHubHTTPError, json.JSONDecodeError) as error:
        raise _refusal(error, repo_id) from error


def push(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload an exported directory, creating the repository if it is not there; see `check_can_push`.

    A new repository is private if that is asked for, else what the owner's settings on the Hub say, which is
    public by default; one that exists keeps its visibility. Weights and code of an earlier push are replaced;
    the rest of the repository stays.

    Returns:
        The repository's address.

    Raises:
        UserError: no network, no token, no permission, or whatever else the Hub objects to.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    api = HfApi(library_name="mrt5cli")
    try:
        url = api.create_repo(repo_id, repo_type="model", exist_ok=True, private=private or None)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="model",
            folder_path=folder,
            commit_message="Model, code and card from mrt5 convert",
            delete_patterns=REPLACED,
        )
    except HfHubHTTPError as error:
        raise _refusal(error, repo_id) from error
    except (HTTPError, OSError, RuntimeError) as error:  # the last is what the upload's Rust part raises
        raise UserError(
            f"the upload to {repo_id} broke off: {first_line(error)}",
            f"{folder} is complete; push again, what has arrived is not sent twice",
        ) from error
    return str(url)


def _refusal(error: Exception, repo_id: str) -> UserError:
    found = trouble(error)
    if found.status in (403, 404):
        return UserError(
            f"the token's owner may not write to {repo_id}, or the Hub knows no {repo_id.split('/')[0]}",
            "use a token with write permission for that owner, or another repository",
        )
    return refusal(found, repo_id)
