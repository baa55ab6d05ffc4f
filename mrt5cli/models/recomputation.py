"""Activation checkpointing: recomputing activations in backward instead of storing them."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch._ops import OpOverload
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    create_selective_checkpoint_contexts,
)
from transformers import PreTrainedModel

Recompute = Literal["none", "selective", "blocks"]

aten = torch.ops.aten
KERNELS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
KEPT = {aten.mm.default} | {getattr(aten, name).default for name in KERNELS if hasattr(aten, name)}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # fast/products.py
    KEPT.add(torch.ops.mkldnn._linear_pointwise.default)
"""Operations whose results "selective" stores: products with weight matrices, and attention kernels. Norms,
gated activations and dropout are cheap to recompute. Products of scores are `bmm` and `addmm`, not stored."""


def recompute(model: PreTrainedModel, what: Recompute) -> None:
    """Trade time for memory in the backward passes of a model, from now on.

    Args:
        model: one of ours.
        what: recompute "none"; "selective", everything but products with weight matrices and attention; or
            "blocks", everything inside each block.
    """
    if what == "none":
        _call(model, "disable")
        return
    how: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        how["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    _call(model, "enable", how)


def _call(model: PreTrainedModel, what: str, *arguments: object) -> None:
    """Call a method by its current name, or by the one of transformers 5.17, which 5.23 deprecates."""
    new, old = f"activation_checkpointing_{what}", f"gradient_checkpointing_{what}"
    getattr(model, new if hasattr(model, new) else old)(*arguments)


def _policy(_: SelectiveCheckpointContext, op: OpOverload, *__: object, **___: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
