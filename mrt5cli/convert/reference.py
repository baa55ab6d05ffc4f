"""Configurations in the authors' layout: their class names and their fields.

Fields that their code lacks are stored in one object of config.json, which their code ignores and ours reads,
so that a round trip loses nothing.
"""

from __future__ import annotations

from mrt5cli.convert.files import has_byte_vocabulary
from mrt5cli.errors import UserError
from mrt5cli.metrics.results import Json
from mrt5cli.models import MrT5Config
from mrt5cli.models.layouts import FIRST_VERSION_FIELD, NOT_FIELDS, TOOLKIT_KEY, fields_of
from mrt5cli.models.shorteners import SHORTENERS, Reference

SHARED_FIELDS = """
    classifier_dropout d_ff d_kv d_model decoder_start_token_id dense_act_fn dropout_rate eos_token_id
    feed_forward_proj initializer_factor is_encoder_decoder is_gated_act layer_norm_epsilon num_decoder_layers
    num_heads num_layers pad_token_id relative_attention_max_distance relative_attention_num_buckets use_cache
    vocab_size
""".split()  # noqa: SIM905 (a list of 21 strings is 21 lines)
"""Fields of all of their configurations."""
NOT_THEIRS: dict[str, tuple[object, str]] = {
    "boundary_sampling": ("always", "samples boundaries in evaluation, too"),
    "gate_layer_norm_type": (
        "rms",
        "normalises the gate's input without mean and bias (the first version, --to reference-v1, has both)",
    ),
    "gumbel_noise_law": ("single", "samples gate noise with a mean of 0.58"),
    "hard_delete_positions": ("compacted", "renumbers kept positions when the gate is at layer 0"),
    "learned_positions": ("unused", "adds no learned positions in pooling models"),
    "row_without_survivors": ("first", "keeps the first byte of a row that would lose every byte"),
    "shortening_per": ("batch", "mixes the rows of a batch in its baselines"),
}
"""Fields that their code lacks: the value it implies, and a phrase about what it does instead."""


def reference_config(config: MrT5Config, dtype: str) -> Json:
    """The config.json of the authors' code for one of our models.

    Args:
        dtype: dtype of the weights, "float32" or "bfloat16".

    Raises:
        UserError: their classes cannot represent the model.
    """
    if config.relative_bias_per_layer:
        raise UserError(
            "the authors' code has one relative bias for all layers; this model has one per layer (umT5)",
            "use --to mrt5",
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


def first_version_config(config: MrT5Config, dtype: str) -> Json:
    """The config.json of the first version of the authors' code; arguments as for `reference_config`.

    Raises:
        UserError: its classes cannot represent the model.
    """
    layout, problem = _layout_of(config), None
    gate_norm = config.gate_layer_norm_type if config.gate_layer_norm else None
    if layout is None or layout.model_type != "mrt5":
        problem = f"it supports delete gates only, and this is deletion_type {config.deletion_type!r}"
    elif config.delete_gate_layer == 0:
        problem = "its gates follow a block, and this one precedes the first"
    elif "gate_layer_norm_type" in layout.fixed and gate_norm == "rms":
        problem = "its gate's norm has a mean and a bias, and this one's has neither"
    if problem is not None:
        raise UserError(
            f"the first version of the authors' code does not support this model: {problem}",
            "use --to reference, their later code",
        )
    theirs = reference_config(config, dtype) | {
        "model_type": "t5",
        "delete_gate_layer": config.delete_gate_layer - 1,
        FIRST_VERSION_FIELD: False,
    }
    del theirs["use_gumbel_noise"]
    return _with_lost(config, theirs)


def plain_config(config: MrT5Config, dtype: str) -> Json:
    """The config.json of a plain T5 v1.1 or umT5 of the same size; arguments as for `reference_config`."""
    kind = "UMT5" if config.relative_bias_per_layer else "T5"
    written = {name: getattr(config, name) for name in SHARED_FIELDS} | {
        "architectures": [f"{kind}ForConditionalGeneration"],
        "model_type": kind.lower(),
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }
    if has_byte_vocabulary(config):
        written["tokenizer_class"] = "ByT5Tokenizer"
    return dict(sorted(written.items()))


def deviations(config: MrT5Config, *, first_version: bool = False) -> list[str]:
    """Phrases about what the authors' code, or its first version, does differently from this model."""
    layout = _layout_of(config)
    without = {
        "learned_positions": not config.has_absolute_position_embeddings,
        "hard_delete_positions": config.delete_gate_layer > 0,
        "gumbel_noise_law": not config.use_gumbel_noise or first_version,
        "gate_layer_norm_type": first_version,
    }
    phrases = [
        phrase
        for name, (theirs, phrase) in NOT_THEIRS.items()
        if layout and name in layout.fixed and not without.get(name) and getattr(config, name) != theirs
    ]
    return [*phrases, "samples no gate noise"] if first_version and config.use_gumbel_noise else phrases


def _layout_of(config: MrT5Config) -> Reference | None:
    """The authors' representation of the model's shortener; None for a model without one.

    Raises:
        UserError: their code lacks the shortener.
    """
    shortener = SHORTENERS.get(config.deletion_type)
    if shortener is not None and shortener.reference is None:
        raise UserError(
            f"the authors' code has no shortener of deletion_type {config.deletion_type!r}",
            "use --to mrt5 or hub",
        )
    return None if shortener is None else shortener.reference


def _with_lost(config: MrT5Config, written: Json) -> Json:
    """`written`, sorted, with an object of those fields of ours that it would lose."""
    written = {name: value for name, value in sorted(written.items()) if name != TOOLKIT_KEY}
    back = MrT5Config(**fields_of(written, "")).to_dict()
    ignored = {*NOT_FIELDS, "tokenizer_class", "tie_word_embeddings", "_name_or_path", TOOLKIT_KEY}
    lost = {
        name: value
        for name, value in config.to_dict().items()
        if name not in ignored and back.get(name) != value
    }
    return written | {TOOLKIT_KEY: lost} if lost else written
