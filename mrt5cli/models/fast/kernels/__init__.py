"""Packed attention on a GPU, by Triton kernels of our own.

`device_layout.py` is what the model calls, `varlen.py` the autograd function, and `tiles.py` the kernels. The
last two import triton: ask `runs_on` first.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

WIDEST_HEAD = 128
"""Tiles of wider heads would not fit the registers of a program."""


@dataclass(frozen=True)
class Packed:
    """Rows laid end to end.

    Attributes:
        bounds: (B + 1) int32, offsets of the rows.
        longest: no row is longer; a bound known on the host. Rows may be far shorter at little cost.
        positions: (n) int32, original position of each, ascending within a row; within +-2^30.
    """

    bounds: Tensor
    longest: int
    positions: Tensor | None = None


def grid(rows: int, columns: int, device: torch.device) -> Packed:
    """The rows of a regular (rows, columns) batch, as the queries of cross-attention are."""
    return Packed(torch.arange(rows + 1, dtype=torch.int32, device=device) * columns, columns)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def obstacle(device: torch.device, head_width: int) -> str | None:
    """Why the kernels do not run there; None where they do. Without them a CPU packs row by row, and a GPU
    computes padding too.

    They add to the gradient of the position bias in no fixed order, so a program that asked PyTorch for
    deterministic algorithms does not get them.
    """
    if device.type != "cuda":
        return "our kernels are for a GPU"
    if head_width > WIDEST_HEAD:
        return f"heads are {head_width} wide, and our kernels are for {WIDEST_HEAD} at most"
    if torch.are_deterministic_algorithms_enabled():
        return "deterministic algorithms are asked for"
    return None if _has_triton() else "triton is not installed"


def runs_on(device: torch.device, head_width: int) -> bool:
    """Whether the kernels run there."""
    return obstacle(device, head_width) is None
