"""Whose config.json this is, and what it says in the fields of ours.

Four writers are read: this toolkit, the authors' code (MrT5, and its two poolings, which call themselves
"t5"), and plain T5 v1.1, ByT5, mT5 or umT5.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOOLKIT_KEY = "mrt5_toolkit"
"""Object in a config.json of the authors' layout with what only this toolkit has a field for."""


class CheckpointError(ValueError):
    """A path or Hub id that is not a checkpoint we can load; the message says what it is and what to do."""


@dataclass(frozen=True)
class Pooling:
    """How the authors' code saves a pooling model: a class of its own under the name of T5.

    Attributes:
        architecture: its class.
        deletion_type: ours.
        renamed: their field -> ours.
    """

    architecture: str
    deletion_type: str
    renamed: dict[str, str]


POOLINGS = (
    Pooling(
        "BPT5ForConditionalGeneration",
        "boundary_predictor",
        # transformers takes a field called `temperature` for a setting of generation.
        {"boundary_predictor_layer": "delete_gate_layer", "temperature": "boundary_temperature"},
    ),
    Pooling("CanineT5ForConditionalGeneration", "convolution", {"downsampling_layer": "delete_gate_layer"}),
)

PLAIN = {"t5": "ByT5 or T5 v1.1", "mt5": "mT5", "umt5": "umT5"}

NOT_FIELDS = ("model_type", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype")


def writer_of(raw: dict[str, Any]) -> str:
    """Whose layout a config.json is in, for people."""
    pooling = _pooling_of(raw)
    if pooling is not None:
        return f"the authors' {pooling.architecture.removesuffix('ForConditionalGeneration')}"
    if raw.get("model_type") != "mrt5":
        return PLAIN.get(str(raw.get("model_type")), f"{raw.get('model_type')!r}")
    if "auto_map" in raw:
        return "MrT5, Hub layout"
    # Only ours knows this field.
    return "MrT5 toolkit" if "shortening_per" in raw else "the authors' MrT5"


def fields_of(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of `MrT5Config` that a config.json stands for.

    Args:
        raw: its content; left as it is.
        where: the checkpoint, for people.

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
    elif raw.get("delete_gate_layer") == 0:
        # Only the authors' code leaves this field out, and at layer 0 it compacts positions.
        fields.setdefault("hard_delete_positions", "compacted")
    if pooling is not None:
        fields["deletion_type"] = pooling.deletion_type
        for theirs, ours in pooling.renamed.items():
            if theirs in fields:
                fields[ours] = fields.pop(theirs)
    fields.pop("temperature", None)  # the authors' default for gate noise; nothing depends on it
    own = fields.pop(TOOLKIT_KEY, {})
    if not isinstance(own, dict):
        raise CheckpointError(f"{where}: {TOOLKIT_KEY} in config.json is not an object")
    return fields | own


def _pooling_of(raw: dict[str, Any]) -> Pooling | None:
    classes = raw.get("architectures") or []
    return next((pooling for pooling in POOLINGS if pooling.architecture in classes), None)


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


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    # A strict configuration wraps what is wrong in a line that names its own validator.
    lines = str(error.__cause__ or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{where}: config.json is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{where}: config.json is not a JSON object")
    fields_of(raw, str(where))
    return raw
