"""The one switch of everything in this folder.

Off, by MRT5_FAST=0 in the environment or within `fast_paths(False)`, a model is transformers' T5 with our
attention written out or by PyTorch's `scaled_dot_product_attention`, on padded batches: slower, and equal to
rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_on = os.environ.get("MRT5_FAST", "1") != "0"


def fast_paths_are_on() -> bool:
    """Whether calls of a model take the fast paths."""
    return _on


def gpu_paths_are_on(tensor: Tensor) -> bool:
    """Whether calls take what is faster on a GPU alone, where a tensor lies on one.

    A compiler fuses passes itself, and a program that asked for deterministic algorithms gets PyTorch's.
    """
    return (
        tensor.device.type == "cuda"
        and _on
        and not torch.compiler.is_compiling()
        and not torch.are_deterministic_algorithms_enabled()
    )


@contextmanager
def fast_paths(on: bool) -> Iterator[None]:
    """Calls within take the fast paths, or do not, whatever the environment says."""
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before
