"""Linear layers that read the same input, laid out once for many calls with few rows.

A decoding step multiplies a handful of rows by every weight of the decoder, and takes as long as reading the
weights does, if the kernel is good. PyTorch's default on CPUs copies the weights into another order within
every call; oneDNN can be given them in its own order once.

Legend: R rows, D input width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mrt5cli.models.fast.products import linear, multiply

ROWS = 32
"""Rows the order is made for. It serves fewer just as well; only a single row in float32 does not gain."""


class StackedLinear:
    """Weights (out_i, D) without biases, all applied to one input.

    Holds the weights themselves as long as nothing asks for another dtype or order: until then it follows
    their changes, and takes no memory.
    """

    def __init__(self, weights: Sequence[Tensor], dtype: torch.dtype | None = None) -> None:
        self.dtype = weights[0].dtype if dtype is None else dtype
        self._weights = [weight.detach().to(self.dtype) for weight in weights]
        self._packed: Tensor | None = None

    @property
    def is_packed(self) -> bool:
        """Whether the weights are a copy in the kernel's order."""
        return self._packed is not None

    def pack(self) -> None:
        """Copy the weights into the kernel's order, where there is such a kernel."""
        if self._packed is None and can_pack(self.dtype, self._weights[0].device.type):
            stacked = torch.cat(self._weights)
            self._packed = torch.ops.mkldnn._reorder_linear_weight(stacked, ROWS)

    def __call__(self, states: Tensor) -> tuple[Tensor, ...]:
        """states (R, D) -> one (R, out_i) for each weight, in the weights' dtype."""
        states = states.to(self.dtype)
        if self._packed is None:
            return tuple(linear(states, weight) for weight in self._weights)
        joined = multiply(states, self._packed)
        return joined.split([len(weight) for weight in self._weights], dim=-1)


@cache
def can_pack(dtype: torch.dtype, device: str) -> bool:
    """Whether this build and processor multiply by packed weights, and rightly.

    The operators are those of PyTorch's own compiler, and no public interface: they are tried.
    """
    if device != "cpu" or dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.enabled:
        return False
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 40, generator=generator).to(dtype)
    states = torch.randn(3, 40, generator=generator).to(dtype)
    try:
        found = multiply(states, torch.ops.mkldnn._reorder_linear_weight(weight, ROWS))
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    return bool(torch.allclose(found.float(), F.linear(states, weight).float(), rtol=2e-2, atol=1e-3))
