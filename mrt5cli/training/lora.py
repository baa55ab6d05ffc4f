"""LoRA (Hu et al. 2021, arXiv 2106.09685) with peft: trains low-rank changes and the whole shortener.

All other weights are frozen. peft's layers are inserted into our model, so nothing else changes in training.
Saved models contain no such layers: the changes are merged into the weights, and every command reads them.
For resuming, a checkpoint also stores the changes and the weights they were added to, because subtracting
the changes again would not be exact.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mrt5cli.models.checkpoint import of_a_shortener
from mrt5cli.training.whole import broken_by, not_whole

if TYPE_CHECKING:
    from mrt5cli.models import MrT5ForConditionalGeneration
    from mrt5cli.recipe import LoraSection

FILE = "lora.safetensors"
"""The file in a checkpoint with the changes and frozen weights that resuming needs."""


def add_lora(
    model: MrT5ForConditionalGeneration, settings: LoraSection, checkpoint: Path | None = None
) -> None:
    """Make low-rank changes and the shortener the only trainable parts of a model.

    Args:
        checkpoint: checkpoint of a run with the same settings, from which the model was loaded and whose
            changes are restored. None: the initial changes are zero.

    Raises:
        UserError: the checkpoint's changes are missing or damaged.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # annotated int, but only divided by the rank
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        exclude_modules=[name for name, _ in model.named_modules() if of_a_shortener(name)],
    )
    with warnings.catch_warnings():
        # transformers marks every T5 configuration as tied, but our head is not.
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        inject_adapter_in_model(config, model)
    for name, weight in model.named_parameters():
        if of_a_shortener(name):
            weight.requires_grad_(True)
    if checkpoint is not None:
        _restore(model, checkpoint)


@torch.no_grad()
def merged(model: MrT5ForConditionalGeneration) -> dict[str, Tensor]:
    """A copy of the model's weights with the changes merged, under the names of a model without LoRA."""
    from peft.tuners.lora import Linear

    state = model.state_dict()
    for name, layer in model.named_modules():
        if isinstance(layer, Linear):
            frozen = state.pop(f"{name}.base_layer.weight")
            [adapter] = layer.active_adapters
            state[f"{name}.weight"] = frozen + layer.get_delta_weight(adapter)
    return {name: weight for name, weight in state.items() if not _is_hidden(name)}


def save(model: MrT5ForConditionalGeneration, folder: Path) -> None:
    """Write what `merged` leaves out into the folder of a checkpoint."""
    save_file(_hidden(model), folder / FILE)


def _restore(model: MrT5ForConditionalGeneration, checkpoint: Path) -> None:
    if not (checkpoint / FILE).is_file():
        raise not_whole(checkpoint, f"it has no {FILE}")
    with broken_by(checkpoint, f"{FILE} is damaged or belongs to another model"):
        held, own = load_file(checkpoint / FILE), _hidden(model)
        if held.keys() != own.keys():
            raise ValueError(f"first {min(held.keys() ^ own.keys())}")
        model.load_state_dict(held, strict=False)


def _hidden(model: MrT5ForConditionalGeneration) -> dict[str, Tensor]:
    """The weights that `merged` leaves out: the changes and the frozen weights they are added to."""
    return {name: weight for name, weight in model.state_dict().items() if _is_hidden(name)}


def _is_hidden(name: str) -> bool:
    return ".lora_" in name or ".base_layer." in name
