"""Loading and building: `load` for every checkpoint we can run, `build` for a recipe's model section."""

from __future__ import annotations

import json
import pickle
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError
from torch import nn
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.utils import logging

from mrt5cli.models.config import BYT5_SHAPES, MrT5Config
from mrt5cli.models.layouts import CheckpointError, fields_of, first_line
from mrt5cli.models.mrt5 import MrT5ForConditionalGeneration
from mrt5cli.models.shortening import Shortener
from mrt5cli.models.weights import check_files, not_only_numbers, read_pickles

SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")
SHORTENER_PARTS = ("delete_gate", "boundary_predictor", "downsampling_module", "down_ln")


def load(
    path_or_hub_id: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | None = None,
    allow_pickle: bool = False,
    **config_overrides: Any,
) -> MrT5ForConditionalGeneration:
    """The model of a checkpoint, in eval mode.

    Args:
        path_or_hub_id: a directory as `save_pretrained` writes it (ours, the authors', or a plain T5 v1.1,
            ByT5, mT5 or umT5 one, which becomes a model without a shortener unless `deletion_type` is given),
            or a Hub id.
        dtype: "float32" or "bfloat16"; T5 overflows in float16.
        attn_implementation: "packed" (the default), "sdpa" or "eager"; see `models.attention`.
        allow_pickle: also read weights from pickles, with a reader that runs no code.
        **config_overrides: fields of `MrT5Config` to change. The authors' baselines are loaded to treat every
            row by itself; `shortening_per="batch"` and `boundary_sampling="always"` are what their code does.

    Raises:
        CheckpointError: not a checkpoint, wrong kind of model, weights missing or of another shape, no
            network.
    """
    model, _ = load_and_tell(
        path_or_hub_id,
        dtype=dtype,
        attn_implementation=attn_implementation,
        allow_pickle=allow_pickle,
        **config_overrides,
    )
    return model


def load_and_tell(
    path_or_hub_id: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | None = None,
    allow_pickle: bool = False,
    **config_overrides: Any,
) -> tuple[MrT5ForConditionalGeneration, list[str]]:
    """As `load`, and the names of the weights that the checkpoint does not hold: a new shortener's, or none.

    Raises:
        CheckpointError: as `load`.
    """
    raw = raw_config(path_or_hub_id)
    config = _config(raw, path_or_hub_id, config_overrides)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if dtype not in (torch.float32, torch.bfloat16):
        raise CheckpointError(
            f"dtype {dtype} is not offered: T5's activations overflow in float16; use bfloat16"
        )
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(path_or_hub_id), "use_safetensors": True}
    folder = Path(path_or_hub_id)
    if not folder.is_dir():
        source["use_safetensors"] = None if allow_pickle else True
    elif check_files(folder, allow_pickle=allow_pickle):
        source = {"pretrained_model_name_or_path": None, "state_dict": read_pickles(folder)}
    try:
        with _quiet():
            model, info = MrT5ForConditionalGeneration.from_pretrained(
                config=config,
                attn_implementation=attn_implementation,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, all at once and in our words
                **source,
            )
    except (pickle.UnpicklingError, EOFError, struct.error) as error:
        raise not_only_numbers(path_or_hub_id) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        pickled = not folder.is_dir() and "safetensors" in str(error) and not allow_pickle
        hint = f"; if it has only pickles: mrt5 convert {path_or_hub_id} DEST --to mrt5 --allow-pickle"
        raise CheckpointError(
            f"{path_or_hub_id}: the weights could not be read: {first_line(error)}{hint if pickled else ''}"
        ) from error
    own = fields_of(raw, str(path_or_hub_id))
    same = all(own.get(name) == getattr(config, name) for name in ("deletion_type", "delete_gate_layer"))
    return model.eval(), _check_complete(path_or_hub_id, model, info, may_be_fresh=not same)


def read_config(path_or_hub_id: str | Path, **overrides: Any) -> MrT5Config:
    """The `MrT5Config` of a checkpoint, whoever wrote it, with `overrides` applied.

    Raises:
        CheckpointError: as `load`, before any weight is read.
    """
    return _config(raw_config(path_or_hub_id), path_or_hub_id, overrides)


def _config(raw: dict[str, Any], path_or_hub_id: str | Path, overrides: dict[str, Any]) -> MrT5Config:
    where = str(path_or_hub_id)
    fields = fields_of(raw, where)
    unknown = sorted(set(overrides) - set(MrT5Config().to_dict()) - set(fields))
    if unknown:
        raise CheckpointError(f"{unknown[0]!r} is not a field of the model's configuration")
    # A threshold belongs to its gate: with another gate, and none given, the new gate's default applies.
    if {"deletion_type", "sigmoid_mask_scale"} & set(overrides):
        overrides = {"deletion_threshold": None, **overrides}
    fields |= overrides
    for name in SIZES:
        size = fields.get(name)
        if isinstance(size, int) and size < 1:
            raise CheckpointError(f"{where}: {name} is {size}; expected 1 or more")
    try:
        return MrT5Config(**fields)
    except Exception as error:  # strict dataclasses raise several unrelated types
        raise CheckpointError(f"{where}: {first_line(error)}") from error


def build(
    section: Any, *, vocab_size: int = 384, device: str | torch.device | None = None
) -> MrT5ForConditionalGeneration:
    """The model of a recipe's `model` section, in training mode.

    Args:
        section: `recipe.ModelSection`.
        vocab_size: only for models built from scratch.
        device: where to build; "meta" allocates nothing and needs no weights.

    Raises:
        CheckpointError: the start cannot be loaded.
    """
    fields = shortener_fields(section.shortener)
    fields |= {
        "use_softmax1": section.softmax1,
        "dropout_rate": section.dropout,
        "attention_dropout_rate": section.attention_dropout,
    }
    if section.positions == "absolute":
        fields |= {"has_absolute_position_embeddings": True, "max_position_embeddings": section.max_positions}
    on_meta = device is not None and torch.device(device).type == "meta"
    if section.start == "scratch":
        shape = section.shape.model_dump() if section.shape is not None else {}
        config = MrT5Config(vocab_size=vocab_size, **shape, **fields)
    elif on_meta and section.start in BYT5_SHAPES:
        config = MrT5Config(**BYT5_SHAPES[section.start], **fields)
    elif on_meta:
        config = read_config(section.start, **fields)
    else:
        return load(section.start, **fields).train().to(device or "cpu")
    with torch.device(device or "cpu"):
        model = MrT5ForConditionalGeneration(config)
    if section.initialization == "depth_scaled":
        initialize_depth_scaled(model)
    return model.train()


def shortener_fields(shortener: Any) -> dict[str, Any]:
    """Configuration fields that a recipe's shortener section stands for."""
    if shortener.kind in ("none", "source_removed"):
        return {"deletion_type": shortener.kind}
    fields = {"delete_gate_layer": shortener.layer}
    if shortener.kind != "delete_gate":
        fields |= {"deletion_type": shortener.kind, "shortening_per": shortener.per}
    if shortener.kind == "convolution":
        return fields | {"downsampling_rate": shortener.stride}
    if shortener.kind == "boundary_predictor":
        return fields | {
            "boundary_predictor_type": shortener.type,
            "prior": shortener.prior,
            "boundary_temperature": shortener.temperature,
            "boundary_sampling": shortener.sampling,
        }
    fields |= {"sigmoid_mask_scale": shortener.scale}
    if shortener.kind == "random":
        return fields | {"random_deletion_probability": shortener.rate}
    if shortener.kind == "fixed":
        return fields | {"fixed_deletion_amount": shortener.amount}
    return fields | {
        "deletion_type": shortener.activation,
        "deletion_threshold": shortener.threshold,
        "gate_layer_norm": shortener.norm != "none",
        "gate_layer_norm_type": "layer" if shortener.norm == "layer" else "rms",
        "gate_bias_init": shortener.bias_init,
        "use_gumbel_noise": shortener.noise != "none",
        "gumbel_noise_law": "single" if shortener.noise == "gumbel" else "difference",
        "row_without_survivors": shortener.row_without_survivors,
    }


@torch.no_grad()
def initialize_depth_scaled(model: MrT5ForConditionalGeneration) -> None:
    """The reference's from-scratch initialisation: every weight of a stack shrinks with the root of its
    depth.

    Linear weights have standard deviation 1 / sqrt(fan in * layers of their stack), relative biases
    1 / sqrt(d_model * layers), norm weights are 1 / sqrt(layers), the embedding and the head have 1 /
    sqrt(d_model). Shorteners keep their own law; norms are scaled wherever they are, a shortener's too.
    """
    width = model.config.d_model
    for stack in (model.encoder, model.decoder):
        depth = len(stack.block)
        inside = {
            part for module in stack.modules() if isinstance(module, Shortener) for part in module.modules()
        }
        for name, module in stack.named_modules():
            if isinstance(module, nn.Linear) and module not in inside:
                nn.init.normal_(module.weight, std=(module.in_features * depth) ** -0.5)
            elif isinstance(module, nn.Embedding) and name != "embed_tokens":
                nn.init.normal_(module.weight, std=(width * depth) ** -0.5)
            elif isinstance(module, T5LayerNorm | nn.LayerNorm):
                nn.init.constant_(module.weight, depth**-0.5)
    for weight in (model.shared.weight, model.lm_head.weight):
        nn.init.normal_(weight, std=width**-0.5)


def _check_complete(
    where: str | Path, model: MrT5ForConditionalGeneration, info: dict[str, Any], *, may_be_fresh: bool
) -> list[str]:
    """Exactly a new shortener may be missing; anything else means that these are not this model's weights.

    Returns:
        The weights of a new shortener, which are all of it or none.
    """
    missing, mismatched = set(info["missing_keys"]), sorted(info["mismatched_keys"])
    if mismatched:
        key, found, expected = mismatched[0]
        raise CheckpointError(
            f"{where}: {len(mismatched)} weights have another shape, first {key}: {list(found)} in the file, "
            f"{list(expected)} in config.json"
        )
    if "lm_head.weight" in missing:
        # transformers 5 builds T5 with a tied head and then does not write it.
        model.lm_head.weight.data.copy_(model.shared.weight.data)
        missing.discard("lm_head.weight")
    whole = {key for key in model.state_dict() if _of_a_shortener(key)}
    fresh = whole if may_be_fresh and whole <= missing else set()
    lost = sorted(missing - fresh)
    if lost:
        decoder = {key for key in model.state_dict() if key.startswith("decoder.block.")}
        alone = decoder <= set(lost) and not any(key.startswith("encoder.") for key in lost)
        part = " (an encoder alone?)" if alone else ""
        raise CheckpointError(f"{where}: {len(lost)} weights are missing, first {lost[0]}{part}")
    extra = sorted(key for key in info["unexpected_keys"] if not _of_a_shortener(key))
    if extra:
        raise CheckpointError(
            f"{where}: {len(extra)} weights belong to no part of this model, first {extra[0]}"
        )
    return sorted(fresh)


def _of_a_shortener(key: str) -> bool:
    """Whether a weight belongs to what stands between two encoder blocks, whichever kind it is."""
    return any(f".{part}." in key for part in SHORTENER_PARTS)


def raw_config(path_or_hub_id: str | Path) -> dict[str, Any]:
    """The content of a checkpoint's config.json.

    Raises:
        CheckpointError: there is none, or it is no JSON object.
    """
    path = Path(path_or_hub_id)
    where = str(path_or_hub_id)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{where} is not a checkpoint: it has no config.json")
        file = path / "config.json"
    elif path.exists():
        raise CheckpointError(f"{where} is a file; expected a checkpoint directory or a Hub id")
    elif where.count("/") > 1 or where.startswith((".", "/", "~")) or "\\" in where:
        raise CheckpointError(f"{where} does not exist")
    else:
        file = _hub_config(where)
    try:
        raw = json.loads(Path(file).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{where}: config.json is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{where}: config.json is not a JSON object")
    return raw


def _hub_config(hub_id: str) -> Path:
    """config.json of a Hub model, from the cache or the network, with no retries when there is neither."""
    cached = try_to_load_from_cache(hub_id, "config.json")
    if isinstance(cached, str):
        return Path(cached)
    if constants.HF_HUB_OFFLINE or not hub_reachable():
        raise CheckpointError(
            f"{hub_id} is neither a directory here nor in the local Hub cache, and the Hub cannot be "
            "reached; give a checkpoint directory, or run once with a network"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(hub_id, "config.json"))
    except HfHubHTTPError as error:
        raise CheckpointError(
            f"{hub_id}: the Hub has no such model, or it is private: {first_line(error)}"
        ) from error


def hub_reachable(timeout_seconds: float = 3.0) -> bool:
    """Whether the Hub answers at all; asked before libraries that retry for half a minute."""
    endpoint = urlparse(constants.ENDPOINT)
    try:
        port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
        with socket.create_connection((endpoint.hostname or "", port), timeout=timeout_seconds):
            return True
    except OSError:
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report of missing keys while loading: `_check_complete` judges those."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
