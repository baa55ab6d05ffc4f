"""Packed attention on a GPU, by Triton kernels of our own.

`rows.py` is what the model calls, `plan.py` says where rows lie, `varlen.py` is the autograd function and
`tiles.py` the kernels. The last two import triton: ask `runs_on` first.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch

WIDEST_HEAD = 128
"""Tiles of wider heads would not fit the registers of a program."""


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def runs_on(device: torch.device, head_width: int) -> bool:
    """Whether the kernels run there. Without them a CPU packs row by row, and a GPU computes padding too.

    They add to the gradient of the position bias in no fixed order, so a program that asked PyTorch for
    deterministic algorithms does not get them.
    """
    if device.type != "cuda" or head_width > WIDEST_HEAD or torch.are_deterministic_algorithms_enabled():
        return False
    return _has_triton()
