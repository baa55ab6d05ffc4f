"""Which batches are packed, and how."""

from __future__ import annotations

import torch

from mrt5cli.models.attention import IMPLEMENTATIONS
from mrt5cli.models.config import MrT5Config
from mrt5cli.models.fast.kernels import runs_on
from mrt5cli.models.fast.kernels.device_layout import device_layout
from mrt5cli.models.fast.packed_rows import packed_layout
from mrt5cli.models.fast.switch import fast_paths_are_on
from mrt5cli.models.layout import Layout
from mrt5cli.models.score_loss import ScorePenalty
from mrt5cli.models.shorteners.base import Sequences


def fast_layout(
    config: MrT5Config,
    source: Sequences,
    score_penalty: ScorePenalty | None,
    real_bytes: int | None,
    drops_weights: bool,
) -> Layout:
    """The packed layout of an input, or the padded one where there is none or it would save nothing.

    Args:
        real_bytes: how many positions hold input, if that is known.
        drops_weights: attention drops some of its weights, which our kernels cannot.
    """
    wanted, device = config._attn_implementation, source.padding.device
    # The rules of the reference look at padding.
    if not fast_paths_are_on() or torch.compiler.is_compiling() or config.shortening_per == "batch":
        return Layout()
    # On a GPU our kernels are for who asks for them, until they have been timed on one.
    if wanted == IMPLEMENTATIONS["triton"] and runs_on(device, config.d_kv):
        if drops_weights:
            return Layout()
        return device_layout(source.mask, source.padding, score_penalty, real_bytes)
    packs = wanted in (IMPLEMENTATIONS["packed"], IMPLEMENTATIONS["triton"])
    if packs and device.type == "cpu" and score_penalty is None:
        return packed_layout(source.mask, source.padding)
    return Layout()
