"""Triton kernels of our own, for a GPU.

Packed attention: `device_layout.py` is what the model calls, `varlen.py` holds the autograd function, and
`tiles.py` the kernels. What is around it: functions in `around_attention.py`, kernels in `elementwise.py`.
All but the first import triton: ask `runs_on` or `rows_run_on` before.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mrt5cli.models.fast.switch import gpu_paths_are_on

WIDEST_HEAD = 128
"""Tiles of wider heads would not fit the registers of a program."""
WIDEST_ROW = 2**14
"""Nor would longer rows of a norm, with sixteen warps."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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


def float32_is_exact() -> bool:
    """Whether PyTorch multiplies float32 matrices exactly on a GPU, as our kernels then do."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except (
        RuntimeError
    ):  # once a program used the newer of PyTorch's two switches, the older is not to be read
        return torch.backends.cuda.matmul.fp32_precision != "tf32"


def obstacle(device: torch.device, head_width: int, dtype: torch.dtype = torch.float32) -> str | None:
    """Why the kernels do not run there; None where they do. Without them a CPU packs row by row, and a GPU
    computes padding too.

    They add to the gradient of the position bias in no fixed order, so a program that asked PyTorch for
    deterministic algorithms does not get them.
    """
    if device.type != "cuda":
        return "our kernels are for a GPU"
    if head_width > WIDEST_HEAD:
        return f"heads are {head_width} wide, and our kernels are for {WIDEST_HEAD} at most"
    if dtype not in DTYPES:
        return f"our kernels are not for {str(dtype).removeprefix('torch.')}"
    if torch.are_deterministic_algorithms_enabled():
        return "deterministic algorithms are asked for"
    return None if _has_triton() else "triton is not installed"


def runs_on(device: torch.device, head_width: int) -> bool:
    """Whether the kernels run there."""
    return obstacle(device, head_width) is None


def rows_run_on(states: Tensor, *weights: Tensor) -> bool:
    """Whether the kernels around attention take (R, D) and weights of the layer, and are right where these
    lie."""
    if not gpu_paths_are_on(states) or not _has_triton() or states.shape[-1] > WIDEST_ROW:
        return False
    if any(type(part.data) is not Tensor or part.dtype not in DTYPES for part in (states, *weights)):
        return False
    from mrt5cli.models.fast.kernels.around_attention import right_on  # needs triton

    return right_on(states.device)
