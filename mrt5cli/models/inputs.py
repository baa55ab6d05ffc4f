"""Moves a batch to a model's device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def on_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Any]:
    """A model's keyword arguments: the batch on a device, and the number of its non-pad bytes.

    The bytes are counted here, on the CPU, because a model that packs its input would wait for the GPU to
    count them.

    Args:
        batch: tensors on the CPU; pinned ones are copied without waiting. attention_mask (B, L) must hide
            padding and nothing else; without one nothing is counted.
    """
    inputs: dict[str, Any] = {name: part.to(device, non_blocking=True) for name, part in batch.items()}
    if "attention_mask" in batch:
        inputs["real_bytes"] = int(batch["attention_mask"].sum())
    return inputs
