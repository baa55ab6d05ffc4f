"""The models a benchmark sets against each other: one set of weights under several implementations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from mrt5cli.analysis.compute import Sizes
from mrt5cli.errors import UserError
from mrt5cli.models import BYT5_SHAPES, MrT5Config, MrT5ForConditionalGeneration, load, read_config

TINY = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 4, "num_decoder_layers": 2}
SIZES: dict[str, dict[str, int]] = {
    "tiny": TINY,
    **{name.removeprefix("google/"): shape for name, shape in BYT5_SHAPES.items()},
}


def base_model(model: str | None, size: str, device: torch.device) -> MrT5ForConditionalGeneration:
    """The weights to run: a checkpoint's, or random ones of a published size; with a gate to steer."""
    if model is None:
        torch.manual_seed(0)
        fields: dict[str, Any] = {**SIZES[size], "use_softmax1": True}
        return MrT5ForConditionalGeneration(MrT5Config(**fields)).to(device)
    kind = read_config(model).deletion_type
    if kind not in (MrT5Config.deletion_type, "none"):
        raise UserError(
            f"{model} shortens by {kind!r}; the benchmark steers a delete gate",
            "give a ByT5 or an MrT5, or leave the model out",
        )
    gate: dict[str, Any] = {"deletion_type": MrT5Config.deletion_type, "use_softmax1": True}
    return load(model, **(gate if kind == "none" else {})).to(device)


def ours(base: MrT5ForConditionalGeneration, attention: str, **fields: Any) -> MrT5ForConditionalGeneration:
    """Another model of the same weights, not copied."""
    config = MrT5Config(**{**base.config.to_diff_dict(), "deletion_threshold": None, **fields})
    with torch.device("meta"):
        model = MrT5ForConditionalGeneration(config)
    model.load_state_dict(base.state_dict(), strict=False, assign=True)
    model.tie_weights()
    model.set_attn_implementation(attention)
    return model.train(False)


def plain(base: MrT5ForConditionalGeneration, attention: str) -> T5ForConditionalGeneration:
    """transformers' own T5 of the same weights, not copied; it computes softmax."""
    with torch.device("meta"):
        model = T5ForConditionalGeneration(
            T5Config.from_dict({**base.config.to_dict(), "model_type": "t5", "scale_decoder_outputs": False})
        )
    model.config.tie_word_embeddings = False  # to older versions this says whether to scale
    model.lm_head.weight = torch.nn.Parameter(base.lm_head.weight)  # its own: built, it is the embedding's
    model.load_state_dict(base.state_dict(), strict=False, assign=True)
    model.set_attn_implementation(attention)
    return model.train(False)


def sizes_of(base: MrT5ForConditionalGeneration) -> Sizes:
    """What its multiply-accumulates depend on."""
    config: Any = base.config
    return Sizes.of(config)


def steer(model: PreTrainedModel, kept: Sequence[int], length: int) -> None:
    """Make the model's gate keep so many positions of each row, spread evenly over the row."""
    weight = model.lm_head.weight
    values = _gate_values(tuple(kept), length, float(model.config.sigmoid_mask_scale), weight.device)

    def score(states: Tensor, padding: Tensor, input_ids: Tensor | None) -> tuple[Tensor, None]:
        return values, None

    gate: Any = model.get_encoder().shortener
    gate.score = score


@lru_cache(maxsize=128)
def _gate_values(kept: tuple[int, ...], length: int, scale: float, device: torch.device) -> Tensor:
    """(rows, length) gate values, 0 to keep and `scale` to delete; made once: no call pays for them."""
    with torch.inference_mode(False):
        values = torch.full((len(kept), length), scale)
        for row, count in enumerate(kept):
            values[row, torch.linspace(0, length - 1, count).round().long()] = 0.0
        return values.to(device)
