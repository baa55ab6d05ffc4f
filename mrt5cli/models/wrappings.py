"""What stands around the weights in files: names that wrappers add, one embedding under several names."""

from __future__ import annotations

import torch
from torch import Tensor

from mrt5cli.errors import CheckpointError

ROOTS = ("shared", "encoder", "decoder", "lm_head")
"""What the names of a T5's weights begin with; what stands before them is not part of the model."""
WRAPPERS = {
    "module": "DistributedDataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""The part of a name that a wrapper adds to the names of what it wraps, the model or a part of it."""

EMBEDDING, HEAD = "shared.weight", "lm_head.weight"
EMBEDDINGS = (EMBEDDING, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""One tensor, which T5 files hold under one of these names or more."""


def unwrapped(state: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], str | None]:
    """The weights under the names that they have in a model of ours.

    Args:
        state: tensors by name, as a file holds them.
        where: the checkpoint, for people.

    Returns:
        The same tensors; a sentence about what was taken off their names, or None.

    Raises:
        CheckpointError: they are those of several models, or an adapter's.
    """
    found: dict[str, Tensor] = {}
    came_from: dict[str, str] = {}
    taken: dict[str, None] = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            raise CheckpointError(
                f"{where} holds a LoRA adapter ({name}), not a whole model; merge it into its model and save "
                "that (merge_and_unload in PEFT)"
            )
        parts = name.split(".")
        root = next((place for place, part in enumerate(parts) if part in ROOTS), 0)
        bare = ".".join(part for part in parts[root:] if part not in WRAPPERS)
        if bare in found:
            raise CheckpointError(
                f"{where} holds {bare} twice, as {came_from[bare]} and as {name}; expected one model"
            )
        found[bare], came_from[bare] = tensor, name
        taken |= dict.fromkeys([*parts[:root], *(part for part in parts[root:] if part in WRAPPERS)])
    whose = ", ".join(f"{part!r}{f' ({WRAPPERS[part]})' if part in WRAPPERS else ''}" for part in taken)
    note = f"what a wrapper put into the names of its weights is left off: {whose}" if taken else None
    return found, note


def with_one_embedding(state: dict[str, Tensor], where: str, *, tied: bool) -> dict[str, Tensor]:
    """The weights with the embedding under one name, and with a head if it is the embedding.

    Args:
        state: tensors by their own names.
        where: the checkpoint, for people.
        tied: whether config.json says that the head is the embedding; then files may hold only one of them. A
            head that is there is taken as it is: transformers 5 says "tied" of every T5.

    Raises:
        CheckpointError: it is there under several names, and they do not agree.
    """
    names = [name for name in EMBEDDINGS if name in state]
    for other in names[1:]:
        one, its = state[names[0]], state[other]
        # In two precisions, one is the other, rounded.
        if not (torch.equal(one.to(its.dtype), its) or torch.equal(one, its.to(one.dtype))):
            raise CheckpointError(
                f"{where}: {names[0]} and {other} are not the same; this model has one embedding, so "
                "one of them would be lost"
            )
    found = {name: tensor for name, tensor in state.items() if name not in EMBEDDINGS}
    if names:
        found[EMBEDDING] = state[names[0]]
    if tied and EMBEDDING in found:
        # Equal now, and each its own from here on.
        found.setdefault(HEAD, found[EMBEDDING].clone())
    elif tied and HEAD in found:
        found[EMBEDDING] = found[HEAD].clone()
    return found
