"""Our Triton kernels, for GPUs.

Packed attention: the model uses `device_layout.py`; `varlen.py` has the autograd function and `tiles.py` the
kernels. Around attention: functions in `around_attention.py`, kernels in `elementwise.py`. All of them except
`device_layout.py` import triton, so check `runs_on` or `rows_run_on` first.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mrt5cli.models.fast.switch import gpu_paths_are_on

WIDEST_HEAD = 128
"""Tiles of wider heads do not fit into a program's registers."""
WIDEST_ROW = 2**14
"""Wider rows of a norm do not fit into a program's registers, with sixteen warps."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Packed:
    """Rows laid end to end.

    Attributes:
        bounds: (B + 1) int32, offsets of the rows.
        longest: upper bound of the row lengths, known on the host; a loose bound costs little.
        positions: (n) int32, original positions, ascending within a row, within +-2^30.
    """

    bounds: Tensor
    longest: int
    positions: Tensor | None = None


def grid(rows: int, columns: int, device: torch.device) -> Packed:
    """The rows of a regular (rows, columns) batch, as the queries of cross-attention are."""
    return Packed(torch.arange(rows + 1, dtype=torch.int32, device=device) * columns, columns)


def power_of_2(number: int) -> int:
    """The smallest power of 2 that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


def blocks_of(size: int, number: int) -> int:
    """How many blocks of a size cover a number."""
    return -(-number // size)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def float32_is_exact() -> bool:
    """Whether float32 products on a GPU are exact (not TF32), in PyTorch and so in our kernels."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # the older of PyTorch's two switches cannot be read once the newer one was used
        return torch.backends.cuda.matmul.fp32_precision != "tf32"


def obstacle(device: torch.device, head_width: int, dtype: torch.dtype = torch.float32) -> str | None:
    """The reason why the attention kernels do not run there, or None.

    They add to the gradient of the position bias in no fixed order, and so do not run if PyTorch is set to
    deterministic algorithms.
    """
    if device.type != "cuda":
        return "our kernels need a GPU"
    if head_width > WIDEST_HEAD:
        return f"heads are {head_width} wide, and our kernels support at most {WIDEST_HEAD}"
    if dtype not in DTYPES:
        return f"our kernels do not support {str(dtype).removeprefix('torch.')}"
    if torch.are_deterministic_algorithms_enabled():
        return "deterministic algorithms are requested"
    return None if _has_triton() else "triton is not installed"


def runs_on(device: torch.device, head_width: int) -> bool:
    """Whether the attention kernels run there."""
    return obstacle(device, head_width) is None


def rows_run_on(states: Tensor, *weights: Tensor) -> bool:
    """Whether the kernels around attention support states (R, D) and weights, and pass their self-check."""
    if not gpu_paths_are_on(states) or not _has_triton() or states.shape[-1] > WIDEST_ROW:
        return False
    if any(type(part.data) is not Tensor or part.dtype not in DTYPES for part in (states, *weights)):
        return False
    from mrt5cli.models.fast.kernels.around_attention import right_on  # needs triton

    return right_on(states.device)
