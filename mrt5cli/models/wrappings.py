"""What stands around the weights in files: names that wrappers add, one embedding under several names."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mrt5cli.errors import CheckpointError
from mrt5cli.text import listed

ROOTS = ("shared", "encoder", "decoder", "lm_head")
"""What the names of a T5's weights begin with."""
WRAPPERS = {
    "module": "DistributedDataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""The part of a name that a wrapper adds to the names of what it wraps, the model or a part of it."""
HOLDERS = ("model",)
"""What a class calls a model that it holds."""

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
    adapters = [name for name in state if ".lora_" in name]
    if adapters:
        raise CheckpointError(
            f"{where} holds a LoRA adapter ({adapters[0]}), not a whole model; merge it into its model and "
            "save that (merge_and_unload in PEFT)"
        )
    names = {name: _taken_apart(name) for name in state}
    prefixes = list(dict.fromkeys(name.prefix for name in names.values() if name.prefix is not None))
    if len(prefixes) > 1 and "" not in prefixes:
        raise CheckpointError(
            f"{where} holds the weights of {len(prefixes)} models, whose names begin with "
            f"{listed([f'{prefix}.' for prefix in prefixes])}; save the one that is meant by itself"
        )
    alone = prefixes[0] if len(prefixes) == 1 else ""
    found: dict[str, Tensor] = {}
    came_from: dict[str, str] = {}
    taken: dict[str, None] = {}
    for name, tensor in state.items():
        ours = names[name].prefix == alone
        bare = names[name].bare if ours else name
        if bare in found:
            raise CheckpointError(
                f"{where} holds {bare} twice, as {came_from[bare]} and as {name}; expected one model"
            )
        found[bare], came_from[bare] = tensor, name
        taken |= dict.fromkeys(names[name].taken if ours else ())
    whose = ", ".join(f"{part!r}{f' ({WRAPPERS[part]})' if part in WRAPPERS else ''}" for part in taken)
    note = f"what a wrapper put into the names of its weights is left off: {whose}" if taken else None
    return found, note


class _Name(NamedTuple):
    """The name of a weight in a file."""

    bare: str
    """From the root of a T5 on, without the parts of wrappers."""
    prefix: str | None
    """What stands before the root beside wrappers and holders; None where there is no root."""
    taken: list[str]
    """The parts that are not in the bare name."""


def _taken_apart(name: str) -> _Name:
    parts = name.split(".")
    root = next((place for place, part in enumerate(parts) if part in ROOTS), None)
    if root is None:
        return _Name(name, None, [])
    prefix = [part for part in parts[:root] if part not in WRAPPERS and part not in HOLDERS]
    bare = [part for part in parts[root:] if part not in WRAPPERS]
    taken = parts[:root] + [part for part in parts[root:] if part in WRAPPERS]
    return _Name(".".join(bare), ".".join(prefix), taken)


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
        _check_equal(names[0], state[names[0]], other, state[other], where)
    found = {name: tensor for name, tensor in state.items() if name not in EMBEDDINGS}
    if names:
        found[EMBEDDING] = state[names[0]]
    if tied and EMBEDDING in found:
        # Equal now, and each its own from here on.
        found.setdefault(HEAD, found[EMBEDDING].clone())
    elif tied and HEAD in found:
        found[EMBEDDING] = found[HEAD].clone()
    return found


def _check_equal(name: str, tensor: Tensor, other: str, its: Tensor, where: str) -> None:
    if tensor.shape != its.shape:
        how = f"{list(tensor.shape)} and {list(its.shape)}"
    elif torch.equal(tensor.to(its.dtype), its) or torch.equal(tensor, its.to(tensor.dtype)):
        # The second time, one of them is the other, rounded to fewer bits.
        return
    else:
        apart = (tensor.float() - its.float()).abs()
        rows = int(apart.amax(dim=-1).count_nonzero())
        how = f"they differ in {rows:,} of {len(tensor):,} rows, by up to {apart.max().item():.3g}"
    raise CheckpointError(
        f"{where}: {name} and {other} are not the same ({how}); this model has one embedding for encoder and "
        "decoder, so one of them would be lost"
    )
