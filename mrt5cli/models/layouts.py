"""Recognises who wrote a config.json, and translates it into fields of `MrT5Config`.

Four writers are supported: this toolkit; the authors' code (MrT5, and its two poolings, whose model_type is
"t5"); the first version of that code; and plain T5 v1.1, ByT5, mT5 or umT5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mrt5cli.errors import CheckpointError, UserError
from mrt5cli.json_files import read_object
from mrt5cli.models.shorteners import SHORTENERS, Reference
from mrt5cli.text import shortened

TOOLKIT_KEY = "mrt5_toolkit"
"""Object in a config.json of the authors' layout, for fields that only this toolkit has."""
PLAIN = {"t5": "ByT5 or T5 v1.1", "mt5": "mT5", "umt5": "umT5"}
FIRST_VERSION_FIELD = "output_attn_logs"
"""Field that only the authors' first version wrote."""
NOT_FIELDS = ("model_type", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype")
OF_OTHERS = re.compile(
    "num_labels|id2label|label2id|problem_type|base_model_.*|return_dict|is_encoder_decoder"
)
"""Fields that transformers acts on without checking them: a table of a billion labels, a parallelism plan,
tuples instead of named outputs."""


def writer_of(raw: dict[str, Any], weights: Iterable[str] = ()) -> str:
    """The writer of a checkpoint, for messages; arguments as for `fields_of`."""
    kind, pooling = raw.get("model_type"), _pooling_of(raw)
    if is_first_version(raw, weights):
        return "the authors' MrT5, first version"
    if pooling is not None:
        return f"the authors' {pooling[1].architecture.removesuffix('ForConditionalGeneration')}"
    if kind != "mrt5" and not is_early(raw):
        return PLAIN.get(str(kind), repr(kind))
    if "auto_map" in raw:
        return "MrT5, Hub layout"
    # Only this toolkit writes this field.
    return "MrT5 toolkit" if "shortening_per" in raw else "the authors' MrT5"


def is_first_version(raw: dict[str, Any], weights: Iterable[str] = ()) -> bool:
    """Whether the authors' first version (October to December 2024) wrote a checkpoint.

    Its gate sits at the end of block `delete_gate_layer`, not at the entry, and normalizes its input with a
    mean and a bias. Its model_type is "t5", like that of later code until April 2025, so it is recognized by
    the bias of that norm or, for a gate without one, by a field of config.json that was dropped soon after.
    For two weeks in between, the authors' unreleased code wrote the same for a gate at the entry; nothing in
    such a checkpoint reveals it, and it is read as the first version's.
    """
    named = any(".delete_gate.layer_norm.bias" in name for name in weights)
    return is_early(raw) and (FIRST_VERSION_FIELD in raw or named)


def is_early(raw: dict[str, Any]) -> bool:
    """Whether this is an MrT5 by the authors from before April 2025, when it got its own model_type."""
    return raw.get("model_type") == "t5" and _is_of(raw, "MrT5ForConditionalGeneration")


def _is_of(raw: dict[str, Any], architecture: str) -> bool:
    classes = raw.get("architectures")
    return isinstance(classes, list) and architecture in classes


def _pooling_of(raw: dict[str, Any]) -> tuple[str, Reference] | None:
    """The `deletion_type` and layout of one of the authors' pooling models, whose model_type is T5's."""
    for deletion_type, shortener in SHORTENERS.items():
        layout = shortener.reference
        if layout is not None and layout.model_type != "mrt5" and _is_of(raw, layout.architecture):
            return deletion_type, layout
    return None


def move_gate(name: str, blocks: int) -> str:
    """The name of a weight after moving the delete gate by some blocks; others are unchanged."""
    gate = r"encoder\.block\.(\d+)\.delete_gate\."
    return re.sub(gate, lambda found: f"encoder.block.{int(found[1]) + blocks}.delete_gate.", name)


def fields_of(raw: dict[str, Any], where: str, weights: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of `MrT5Config` that a config.json translates to.

    Args:
        raw: its content, which is not modified.
        where: the checkpoint, for messages.
        weights: names of the checkpoint's weights, if known, for `is_first_version`.

    Raises:
        CheckpointError: an unsupported kind of model.
    """
    kind, pooling = raw.get("model_type"), _pooling_of(raw)
    if not isinstance(kind, str) or kind not in ("mrt5", *PLAIN):
        what = "a model without a model_type" if kind is None else f"a {shortened(repr(kind))} model"
        hint = "start from a supported model, such as google/byt5-small"
        raise CheckpointError(f"{where} is {what}; expected an MrT5, ByT5 or T5 v1.1 checkpoint", hint)
    if raw.get("quantization_config") is not None:
        raise CheckpointError(f"{where} is quantized; expected the original weights")
    fields = {
        key: value for key, value in raw.items() if key not in NOT_FIELDS and not OF_OTHERS.fullmatch(key)
    }
    if kind in PLAIN:
        _refuse_scaled(raw, where)
        fields.setdefault("deletion_type", "none")
        fields.setdefault("relative_bias_per_layer", kind == "umt5")
    if is_first_version(raw, weights):
        _move_first_gate(fields, where)
    if pooling is not None:
        fields["deletion_type"], layout = pooling
        for name, ours in layout.renamed.items():
            if name in fields:
                fields[ours] = fields.pop(name)
        if fields.get("has_absolute_position_embeddings"):
            fields.setdefault("learned_positions", "unused")
    theirs = pooling is not None or _is_of(raw, "MrT5ForConditionalGeneration")
    if theirs and fields.get("delete_gate_layer") == 0:
        # Only the authors' code omits this field, and at layer 0 it compacts positions.
        fields.setdefault("hard_delete_positions", "compacted")
    fields.pop("temperature", None)  # the authors' default for gate noise; nothing depends on it
    own = fields.pop(TOOLKIT_KEY, {})
    if not isinstance(own, dict):
        raise CheckpointError(f"{where}: {TOOLKIT_KEY} in config.json is not an object")
    return fields | own


def _move_first_gate(fields: dict[str, Any], where: str) -> None:
    """Translate, in place, the layer and the norm of a first version's gate."""
    layer, last = fields.get("delete_gate_layer"), fields.get("num_layers")
    if not isinstance(layer, int) or (isinstance(last, int) and layer + 1 >= last):
        raise CheckpointError(
            f"{where}: its delete gate follows the last encoder block (delete_gate_layer {layer} of {last} "
            "layers, counted from 0), so it shortens only what the decoder reads; expected a gate before an "
            "encoder block"
        )
    fields["delete_gate_layer"] = layer + 1
    fields.setdefault("gate_layer_norm_type", "layer")
    fields.pop(FIRST_VERSION_FIELD, None)


def _refuse_scaled(raw: dict[str, Any], where: str) -> None:
    """Refuse T5 v1.0, which ties its head to the embedding and scales the decoder's output."""
    if raw["model_type"] != "t5" and str(raw.get("transformers_version")).split(".")[0] >= "5":
        return  # transformers 5 marks every mT5 and umT5 as tied, though their weights include a head
    gated = raw.get("is_gated_act", "gated" in str(raw.get("feed_forward_proj", "relu")))
    tied = raw.get("tie_word_embeddings", raw["model_type"] == "t5" and not gated)
    if raw.get("scale_decoder_outputs", tied):
        raise CheckpointError(
            f"{where} is a T5 v1.0 checkpoint (scaled, tied output); expected ByT5 or T5 v1.1",
            "start from google/byt5-small or google/t5-v1_1-small",
        )


def shown(folder: Path) -> str:
    """A checkpoint's directory for messages: its Hub id if it is in the Hub's cache, else the path."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return str(folder)
    return repository.removeprefix("models--").replace("--", "/")


def read_raw_config(file: Path, where: str | Path) -> dict[str, Any]:
    """The content of a config.json.

    Raises:
        CheckpointError: it is not a JSON object, or describes an unsupported kind of model.
    """
    try:
        raw = read_object(file)
    except UserError as error:
        raise CheckpointError(error.message, error.hint) from error
    fields_of(raw, str(where))
    return raw
