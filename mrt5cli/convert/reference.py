"""Our models in the authors' layout: their class names, their fields, their keys.

What their code has no field for is kept in one object of config.json, which they ignore and we read back, so
that there and back again nothing is lost.
"""

from __future__ import annotations

from typing import Any

from mrt5cli.convert.export import has_byte_vocabulary
from mrt5cli.errors import UserError
from mrt5cli.models import MrT5Config
from mrt5cli.models.layouts import FIRST_VERSION_FIELD, NOT_FIELDS, TOOLKIT_KEY, fields_of
from mrt5cli.models.shorteners import SHORTENERS, Reference

# Of every one of their configurations.
SHARED_FIELDS = (
    "classifier_dropout",
    "d_ff",
    "d_kv",
    "d_model",
    "decoder_start_token_id",
    "dense_act_fn",
    "dropout_rate",
    "eos_token_id",
    "feed_forward_proj",
    "initializer_factor",
    "is_encoder_decoder",
    "is_gated_act",
    "layer_norm_epsilon",
    "num_decoder_layers",
    "num_heads",
    "num_layers",
    "pad_token_id",
    "relative_attention_max_distance",
    "relative_attention_num_buckets",
    "use_cache",
    "vocab_size",
)
# Fields of ours that their code has not: the value that it computes with, and what it does so.
NOT_THEIRS: dict[str, tuple[object, str]] = {
    "gate_layer_norm_type": (
        "rms",
        "normalises the gate's input without a mean and a bias (its first version, --to reference-v1, with "
        "both)",
    ),
    "shortening_per": ("batch", "mixes the rows of a batch in its baselines"),
    "boundary_sampling": ("always", "draws boundaries in evaluation too"),
    "row_without_survivors": ("first", "keeps the first byte of a row that would lose all"),
    "hard_delete_positions": ("compacted", "counts survivors anew when the gate is at layer 0"),
    "gumbel_noise_law": ("single", "draws gate noise with a mean of 0.58"),
    "learned_positions": ("unused", "adds no learned positions where it pools"),
}


def reference_config(config: MrT5Config, dtype: str) -> dict[str, Any]:
    """The config.json of the authors' code for a model of ours.

    Args:
        config: `MrT5Config`.
        dtype: of the weights, "float32" or "bfloat16".

    Raises:
        UserError: a model that their classes cannot hold.
    """
    if config.relative_bias_per_layer:
        raise UserError(
            "the authors' code has one relative bias for all layers; this model has one in each (umT5)",
            "convert it to mrt5",
        )
    written = plain_config(config, dtype)
    written |= {name: getattr(config, name) for name in ("use_softmax1", "has_absolute_position_embeddings")}
    if config.has_absolute_position_embeddings:
        written["max_position_embeddings"] = config.max_position_embeddings
    layout = _layout_of(config)
    if layout is not None:
        written |= {"architectures": [layout.architecture], "model_type": layout.model_type}
        written |= {name: getattr(config, name) for name in layout.fields}
        written |= {theirs: getattr(config, ours) for theirs, ours in layout.renamed.items()}
        if layout.model_type == "mrt5":
            written |= {name: getattr(config, name, "en") for name in ("train_language", "eval_language")}
    return _with_lost(config, written)


def first_version_config(config: MrT5Config, dtype: str) -> dict[str, Any]:
    """The config.json of the first version of the authors' code; arguments as `reference_config`.

    Raises:
        UserError: a model that its classes cannot hold.
    """
    layout = _layout_of(config)
    if layout is None or layout.model_type != "mrt5":
        raise UserError(
            "the first version of the authors' code knows delete gates and nothing else that shortens; this "
            f"model has deletion_type {config.deletion_type!r}",
            "convert it to reference, their later code",
        )
    if config.delete_gate_layer == 0:
        raise UserError(
            "in the first version of the authors' code a gate stands after a block; this one stands before "
            "the first",
            "convert it to reference, their later code",
        )
    normed = "gate_layer_norm_type" in layout.fixed and config.gate_layer_norm
    if normed and config.gate_layer_norm_type != "layer":
        raise UserError(
            "in the first version of the authors' code the gate's norm has a mean and a bias; this one has "
            "neither",
            "convert it to reference, their later code",
        )
    theirs = reference_config(config, dtype) | {
        "model_type": "t5",
        "delete_gate_layer": config.delete_gate_layer - 1,
        FIRST_VERSION_FIELD: False,
    }
    del theirs["use_gumbel_noise"]
    return _with_lost(config, theirs)


def plain_config(config: MrT5Config, dtype: str) -> dict[str, Any]:
    """The config.json of a plain T5 v1.1, or umT5, of the same sizes; arguments as above."""
    kind = "UMT5" if config.relative_bias_per_layer else "T5"
    written = {name: getattr(config, name) for name in SHARED_FIELDS}
    if has_byte_vocabulary(config.vocab_size):
        written["tokenizer_class"] = "ByT5Tokenizer"
    return {
        **written,
        "architectures": [f"{kind}ForConditionalGeneration"],
        "model_type": kind.lower(),
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }


def reference_generation_config(config: MrT5Config) -> dict[str, Any]:
    """The generation_config.json beside it."""
    names = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
    return {"_from_model_config": True} | {name: getattr(config, name) for name in names}


def deviations(config: MrT5Config, *, first_version: bool = False) -> list[str]:
    """What the authors' code, or its first version, does otherwise than this model, a phrase each."""
    layout = _layout_of(config)
    relevant = set() if layout is None else set(layout.fixed)
    if not config.has_absolute_position_embeddings:
        relevant -= {"learned_positions"}
    if config.delete_gate_layer > 0:
        relevant -= {"hard_delete_positions"}
    if not config.use_gumbel_noise or first_version:
        relevant -= {"gumbel_noise_law"}
    if first_version:
        relevant -= {"gate_layer_norm_type"}
    phrases = [
        phrase
        for name, (theirs, phrase) in sorted(NOT_THEIRS.items())
        if name in relevant and getattr(config, name) != theirs
    ]
    return [*phrases, "draws no gate noise"] if first_version and config.use_gumbel_noise else phrases


def _layout_of(config: MrT5Config) -> Reference | None:
    """How the authors' code holds a model's shortener; None for a model without a module for it.

    Raises:
        UserError: it has nothing like it.
    """
    shortener = SHORTENERS.get(config.deletion_type)
    if shortener is not None and shortener.reference is None:
        raise UserError(
            f"the authors' code has no shortener of deletion_type {config.deletion_type!r}",
            "convert it to mrt5 or hub",
        )
    return None if shortener is None else shortener.reference


def _with_lost(config: MrT5Config, written: dict[str, Any]) -> dict[str, Any]:
    """`written`, sorted, with an object of the fields of ours that reading it would not give back."""
    written = {name: value for name, value in sorted(written.items()) if name != TOOLKIT_KEY}
    ours = config.to_dict()
    back = MrT5Config(**fields_of(written, "")).to_dict()
    ignored = {*NOT_FIELDS, "tokenizer_class", "tie_word_embeddings", "_name_or_path", TOOLKIT_KEY}
    lost = {name: value for name, value in ours.items() if name not in ignored and back.get(name) != value}
    return written | {TOOLKIT_KEY: lost} if lost else written
