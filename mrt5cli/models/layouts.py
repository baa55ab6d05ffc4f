"""Whose config.json this is, and what it says in the fields of ours.

Five writers are read: this toolkit, the authors' code (MrT5, and its two poolings, which call themselves
"t5"), the first version of that code, and plain T5 v1.1, ByT5, mT5 or umT5.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mrt5cli.errors import CheckpointError
from mrt5cli.json_files import parse
from mrt5cli.models.shorteners import SHORTENERS, Reference
from mrt5cli.stand_ins import but

TOOLKIT_KEY = "mrt5_toolkit"
"""Object in a config.json of the authors' layout with what only this toolkit has a field for."""


PLAIN = {"t5": "ByT5 or T5 v1.1", "mt5": "mT5", "umt5": "umT5"}

FIRST_VERSION_FIELD = "output_attn_logs"
"""Field of a config.json that only the authors' first version wrote."""

GATE_KEY = re.compile(r"encoder\.block\.(\d+)\.delete_gate\.")

NOT_FIELDS = ("model_type", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype")


def writer_of(raw: dict[str, Any], weights: Iterable[str] = ()) -> str:
    """Whose layout a checkpoint is in, for people; arguments as `is_first_version`."""
    if is_first_version(raw, weights):
        return "the authors' MrT5, first version"
    pooling = _pooling_of(raw)
    if pooling is not None:
        return f"the authors' {pooling[1].architecture.removesuffix('ForConditionalGeneration')}"
    if is_early(raw):
        return "the authors' MrT5"
    if raw.get("model_type") != "mrt5":
        return PLAIN.get(str(raw.get("model_type")), f"{raw.get('model_type')!r}")
    if "auto_map" in raw:
        return "MrT5, Hub layout"
    # Only ours knows this field.
    return "MrT5 toolkit" if "shortening_per" in raw else "the authors' MrT5"


def is_first_version(raw: dict[str, Any], weights: Iterable[str] = ()) -> bool:
    """Whether the authors' first version (October to December 2024) wrote a checkpoint.

    Its gate stands at the end of block `delete_gate_layer`, not at the entry, and normalises its input with
    a mean and a bias. It called its models "t5", as did the code that followed until April 2025, so it is
    told by the bias of that norm, or, for a gate without one, by a field of config.json that was dropped soon
    after. For two weeks in between, the authors' unreleased code wrote the same of a gate at the entry;
    nothing in such a checkpoint says so, and it is read as the first version's.

    Args:
        raw: the content of config.json.
        weights: names of the weights beside it, as far as they are known.
    """
    if not is_early(raw):
        return False
    return FIRST_VERSION_FIELD in raw or any(".delete_gate.layer_norm.bias" in name for name in weights)


def is_early(raw: dict[str, Any]) -> bool:
    """Whether the authors wrote an MrT5 before April 2025, when it got a name of its own."""
    return raw.get("model_type") == "t5" and _is_mrt5(raw)


def _is_mrt5(raw: dict[str, Any]) -> bool:
    return "MrT5ForConditionalGeneration" in _classes(raw)


def _classes(raw: dict[str, Any]) -> list[Any]:
    classes = raw.get("architectures")
    return classes if isinstance(classes, list) else []


def move_gate(name: str, blocks: int) -> str:
    """The name of a weight after its delete gate, if it belongs to one, has moved on by some blocks."""
    return GATE_KEY.sub(lambda found: f"encoder.block.{int(found[1]) + blocks}.delete_gate.", name)


def fields_of(raw: dict[str, Any], where: str, weights: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of `MrT5Config` that a config.json stands for.

    Args:
        raw: its content; left as it is.
        where: the checkpoint, for people.
        weights: names of the weights beside it, as far as they are known; see `is_first_version`.

    Raises:
        CheckpointError: another kind of model.
    """
    if raw.get("quantization_config") is not None:
        raise CheckpointError(
            f"{where} is quantised; expected weights in float32, bfloat16 or float16, from before that"
        )
    fields = {key: value for key, value in raw.items() if key not in NOT_FIELDS}
    kind, pooling = raw.get("model_type"), _pooling_of(raw)
    if not isinstance(kind, str):
        raise CheckpointError(f"{where}: config.json has no model_type, so its model is not known")
    if kind in PLAIN:
        _refuse_scaled(raw, where)
        fields.setdefault("deletion_type", "none")
        fields.setdefault("relative_bias_per_layer", kind == "umt5")
    elif kind != "mrt5":
        raise CheckpointError(f"{where} holds a {kind!r} model; expected an MrT5, ByT5 or T5 v1.1 checkpoint")
    if is_first_version(raw, weights):
        _move_first_gate(fields, where)
    if pooling is not None:
        fields["deletion_type"], layout = pooling
        for theirs, ours in layout.renamed.items():
            if theirs in fields:
                fields[ours] = fields.pop(theirs)
        if fields.get("has_absolute_position_embeddings"):
            fields.setdefault("learned_positions", "unused")
    if (pooling is not None or _is_mrt5(raw)) and fields.get("delete_gate_layer") == 0:
        # Only the authors' code leaves this field out, and at layer 0 it compacts positions.
        fields.setdefault("hard_delete_positions", "compacted")
    fields.pop("temperature", None)  # the authors' default for gate noise; nothing depends on it
    own = fields.pop(TOOLKIT_KEY, {})
    if not isinstance(own, dict):
        raise CheckpointError(f"{where}: {TOOLKIT_KEY} in config.json is not an object")
    return fields | own


def _move_first_gate(fields: dict[str, Any], where: str) -> None:
    """Say of a first version's gate, in place, what it is called now.

    Raises:
        CheckpointError: it stands after the last block, where nothing of ours can.
    """
    layer, last = fields.get("delete_gate_layer"), fields.get("num_layers")
    if not isinstance(layer, int):
        raise CheckpointError(f"{where}: config.json of the authors' first version has no delete_gate_layer")
    if isinstance(last, int) and layer + 1 >= last:
        raise CheckpointError(
            f"{where}: its delete gate stands after the last encoder block (delete_gate_layer {layer} of "
            f"{last} layers, counted from 0), so it shortens nothing but what the decoder reads; expected a "
            "gate before an encoder block"
        )
    fields["delete_gate_layer"] = layer + 1
    fields.setdefault("gate_layer_norm_type", "layer")
    fields.pop(FIRST_VERSION_FIELD, None)


def is_tied(raw: dict[str, Any]) -> bool:
    """Whether config.json says that the head is the embedding, so that files may leave it out.

    transformers 5 makes a plain T5 so, and says it; where nothing is said, ByT5 and T5 v1.1 have their own.
    """
    return raw.get("tie_word_embeddings") is True


def _pooling_of(raw: dict[str, Any]) -> tuple[str, Reference] | None:
    """The `deletion_type`, and the authors' layout, of a pooling model of theirs: a class under T5's name."""
    for deletion_type, shortener in SHORTENERS.items():
        layout = shortener.reference
        if layout is not None and layout.model_type != "mrt5" and layout.architecture in _classes(raw):
            return deletion_type, layout
    return None


def _refuse_scaled(raw: dict[str, Any], where: str) -> None:
    """Refuse T5 v1.0, whose head is the embedding and whose decoder output is scaled."""
    if raw["model_type"] != "t5" and str(raw.get("transformers_version")).split(".")[0] >= "5":
        # It says "tied" of every mT5 and umT5; a head of their own is in the weights.
        return
    tied_by_default = raw.get("model_type") == "t5" and not raw.get(
        "is_gated_act", "gated" in _activation(raw)
    )
    tied = raw.get("scale_decoder_outputs", raw.get("tie_word_embeddings", tied_by_default))
    if tied:
        raise CheckpointError(
            f"{where} is a T5 v1.0 checkpoint (scaled, tied output); MrT5 starts from ByT5 or T5 v1.1"
        )


def _activation(raw: dict[str, Any]) -> str:
    return str(raw.get("feed_forward_proj", "relu"))


def hub_name(folder: Path) -> str | None:
    """The Hub id of a model that lies in the Hub's cache, or None."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/")


def read_raw_config(file: Path, where: str | Path) -> dict[str, Any]:
    """The content of a config.json that is one of ours to read.

    Args:
        where: the checkpoint, for people.

    Raises:
        CheckpointError: it is no JSON object, or describes another kind of model.
    """
    try:
        raw = parse(file.read_bytes().removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise CheckpointError(f"{where}: config.json cannot be read: {error.strerror}") from error
    except ValueError as error:
        instead = but(file) or f": {error}"
        raise CheckpointError(f"{where}: config.json is not JSON{instead}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{where}: config.json is not a JSON object")
    fields_of(raw, str(where))
    return raw
