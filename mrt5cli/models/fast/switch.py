"""The switch for everything in this folder.

`MRT5_FAST=0` in the environment or `fast_paths(False)` switches it off. A model is then transformers' T5 with
our attention, written out or by PyTorch's `scaled_dot_product_attention`, on padded batches. It is slower,
and results are equal up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_on = os.environ.get("MRT5_FAST", "1") != "0"


def fast_paths_are_on() -> bool:
    """Whether models use the fast paths."""
    return _on


def gpu_paths_are_on(tensor: Tensor) -> bool:
    """Whether calls on a tensor use the fast paths that are for GPUs only.

    They do not under a compiler, which fuses passes anyway, or if deterministic algorithms are requested.
    """
    return (
        tensor.device.type == "cuda"
        and _on
        and not torch.compiler.is_compiling()
        and not torch.are_deterministic_algorithms_enabled()
    )


@contextmanager
def fast_paths(on: bool) -> Iterator[None]:
    """Switch the fast paths on or off within the context, overriding the environment."""
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before
