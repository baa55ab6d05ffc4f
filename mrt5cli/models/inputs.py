"""A batch on its way to a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def on_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Any]:
    """What a model is called with: the batch on a device, and how many of its bytes are no padding.

    They are counted here, where it costs nothing: a model that packs its input would wait for a GPU to say.

    Args:
        batch: tensors on the CPU; pinned ones are copied without waiting. attention_mask (B, L) hides the
            padding and nothing else; without one nothing is counted.
    """
    inputs: dict[str, Any] = {name: part.to(device, non_blocking=True) for name, part in batch.items()}
    if "attention_mask" in batch:
        inputs["real_bytes"] = int(batch["attention_mask"].sum())
    return inputs
