"""Which batches are packed, and how."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mrt5cli.models.attention import IMPLEMENTATIONS
from mrt5cli.models.config import MrT5Config
from mrt5cli.models.fast.kernels import runs_on
from mrt5cli.models.fast.kernels.device_layout import device_layout
from mrt5cli.models.fast.packed_rows import packed_layout
from mrt5cli.models.fast.switch import fast_paths_are_on
from mrt5cli.models.layout import Layout
from mrt5cli.models.score_loss import ScorePenalty


def fast_layout(
    config: MrT5Config,
    attention_mask: Tensor | None,
    padding: Tensor,
    *,
    score_penalty: ScorePenalty | None = None,
    real_bytes: int | None = None,
    drops_weights: bool = False,
) -> Layout | None:
    """A packed layout of an input, or None where there is none or it would save nothing.

    Args:
        attention_mask: (B, L), or None.
        padding: (B, L) bool, positions that hold no input.
        real_bytes: how many do, if that is known.
        drops_weights: attention drops some of its weights, which our kernels cannot.
    """
    by = _packs(config, padding.device)
    if by == "kernels" and not drops_weights:
        return device_layout(attention_mask, padding, score_penalty, real_bytes)
    if by == "rows" and score_penalty is None:
        return packed_layout(attention_mask, padding)
    return None


def _packs(config: MrT5Config, device: torch.device) -> Literal["kernels", "rows"] | None:
    wanted = config._attn_implementation
    if not fast_paths_are_on() or torch.compiler.is_compiling():
        return None
    if config.shortening_per == "batch":  # the reference's rules look at padding
        return None
    # On a GPU our kernels are for who asks for them, until they have been timed on one.
    if wanted == IMPLEMENTATIONS["triton"] and runs_on(device, config.d_kv):
        return "kernels"
    packs = wanted in (IMPLEMENTATIONS["packed"], IMPLEMENTATIONS["triton"])
    return "rows" if packs and device.type == "cpu" else None
