"""LoRA (Hu et al. 2021, arXiv 2106.09685) by the package peft: small changes of some weight matrices are
trained, and the shortener as a whole; every other weight stays as it is.

The layers of peft take their places inside the model, which remains one of ours to all that trains it. What
is saved is a model without them, each weight with its change added in, so that every command takes a
checkpoint of such a run as it takes any other. To resume, a checkpoint also holds the changes, and the
weights that they were added to: subtracting would not bring those back to the last bit.
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
"""In a checkpoint, beside the model: what resuming needs of it."""


def add_lora(
    model: MrT5ForConditionalGeneration, settings: LoraSection, checkpoint: Path | None = None
) -> None:
    """Have changes of low rank trained, and the shortener, and nothing else of a model.

    Args:
        checkpoint: of a run with the same settings, which the model was loaded from; its changes are taken
            up. None begins with changes that change nothing.

    Raises:
        UserError: the checkpoint has no such changes, or damaged ones.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # it divides by the rank, and takes fractions
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        exclude_modules=[name for name, _ in model.named_modules() if of_a_shortener(name)],
    )
    with warnings.catch_warnings():
        # Read from the configuration, where transformers says "tied" of every T5: here the head is its own.
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        inject_adapter_in_model(config, model)
    for name, weight in model.named_parameters():
        if of_a_shortener(name):
            weight.requires_grad_(True)
    if checkpoint is not None:
        _restore(model, checkpoint)


@torch.no_grad()
def merged(model: MrT5ForConditionalGeneration) -> dict[str, Tensor]:
    """A model's weights by the names of one without LoRA, changes added in; those of the model stay."""
    from peft.tuners.lora import Linear

    state = model.state_dict()
    for name, layer in model.named_modules():
        if isinstance(layer, Linear):
            frozen = state.pop(f"{name}.base_layer.weight")
            [adapter] = layer.active_adapters
            state[f"{name}.weight"] = frozen + layer.get_delta_weight(adapter)
    return {name: weight for name, weight in state.items() if not _is_hidden(name)}


def save(model: MrT5ForConditionalGeneration, folder: Path) -> None:
    """Write what `merged` hides into the folder of a checkpoint."""
    save_file(_hidden(model), folder / FILE)


def _restore(model: MrT5ForConditionalGeneration, checkpoint: Path) -> None:
    if not (checkpoint / FILE).is_file():
        raise not_whole(checkpoint, f"it has no {FILE}")
    with broken_by(checkpoint, f"{FILE} is damaged, or of another model"):
        held, own = load_file(checkpoint / FILE), _hidden(model)
        if held.keys() != own.keys():
            raise ValueError(f"first {min(held.keys() ^ own.keys())}")
        model.load_state_dict(held, strict=False)


def _hidden(model: MrT5ForConditionalGeneration) -> dict[str, Tensor]:
    """What a merged model does not tell: by name, the changes and the weights that they are added to."""
    return {name: weight for name, weight in model.state_dict().items() if _is_hidden(name)}


def _is_hidden(name: str) -> bool:
    return ".lora_" in name or ".base_layer." in name
