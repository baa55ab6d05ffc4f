"""Normalizes weight names: removes what wrappers add, and merges the names of the one embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from mrt5cli.errors import CheckpointError

ROOTS = ("shared", "encoder", "decoder", "lm_head")
"""First parts of a T5's weight names; anything in front of them is not part of the model."""
WRAPPERS = {
    "module": "DistributedDataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""Name part that a wrapper adds to the weights of the module it wraps -> the wrapper."""

EMBEDDING, HEAD = "shared.weight", "lm_head.weight"
EMBEDDINGS = (EMBEDDING, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""One tensor, which T5 files store under one or more of these names."""


def unwrapped(state: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], str | None]:
    """The weights under the names of our model.

    Args:
        state: tensors by name, as stored in the file.
        where: the checkpoint, for messages.

    Returns:
        The same tensors, and a note about the parts removed from their names, or None.

    Raises:
        CheckpointError: the file contains several models, or an adapter.
    """
    found: dict[str, Tensor] = {}
    came_from: dict[str, str] = {}
    taken: dict[str, None] = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            raise CheckpointError(
                f"{where} is a LoRA adapter ({name}), not a complete model",
                "merge it into its model with PEFT's merge_and_unload, and save the result",
            )
        parts = name.split(".")
        root = next((place for place, part in enumerate(parts) if part in ROOTS), 0)
        bare = ".".join(part for part in parts[root:] if part not in WRAPPERS)
        if bare in found:
            raise CheckpointError(
                f"{where} contains {bare} twice, as {came_from[bare]} and as {name}; expected one model"
            )
        found[bare], came_from[bare] = tensor, name
        taken |= dict.fromkeys([*parts[:root], *(part for part in parts[root:] if part in WRAPPERS)])
    whose = ", ".join(f"{part!r}{f' ({WRAPPERS[part]})' if part in WRAPPERS else ''}" for part in taken)
    note = f"parts of its weight names that a wrapper added were removed: {whose}" if taken else None
    return found, note


def with_one_embedding(state: dict[str, Tensor], where: str, *, tied: bool) -> dict[str, Tensor]:
    """The weights with the embedding under one name, and a copy of it as the head if the two are tied.

    Args:
        state: tensors by name.
        where: the checkpoint, for messages.
        tied: whether config.json ties the head to the embedding; files may then omit one of them. A head in
            the file is always used, because transformers 5 marks every T5 as tied.

    Raises:
        CheckpointError: the embedding has several names with different contents.
    """
    names = [name for name in EMBEDDINGS if name in state]
    for other in names[1:]:
        one, its = state[names[0]], state[other]
        # Copies in two precisions are equal after rounding.
        if not (torch.equal(one.to(its.dtype), its) or torch.equal(one, its.to(one.dtype))):
            raise CheckpointError(
                f"{where}: {names[0]} and {other} differ; expected one embedding, which encoder and decoder "
                "share"
            )
    found = {name: tensor for name, tensor in state.items() if name not in EMBEDDINGS}
    if names:
        found[EMBEDDING] = state[names[0]]
    if tied and EMBEDDING in found:
        # Equal now, but trained separately from here on.
        found.setdefault(HEAD, found[EMBEDDING].clone())
    elif tied and HEAD in found:
        found[EMBEDDING] = found[HEAD].clone()
    return found
