"""Computing activations again in backward, instead of keeping them."""

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
"""What "selective" keeps: the products with weight matrices, and what attention kernels return. Norms, gated
activations and dropout are cheap to compute again. Products of scores are `bmm` and `addmm`, and not kept."""


def recompute(model: PreTrainedModel, what: Recompute) -> None:
    """Trade time for memory in the backward passes of a model, from now on.

    Args:
        model: of ours.
        what: "none"; "selective", all but the products with weight matrices; "blocks", everything inside each
            block.
    """
    if what == "none":
        _call(model, "disable")
        return
    how: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        how["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    _call(model, "enable", how)


def _call(model: PreTrainedModel, what: str, *arguments: object) -> None:
    """transformers 5.23 deprecates the names that 5.17 has."""
    new, old = f"activation_checkpointing_{what}", f"gradient_checkpointing_{what}"
    getattr(model, new if hasattr(model, new) else old)(*arguments)


def _policy(_: SelectiveCheckpointContext, op: OpOverload, *__: object, **___: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
