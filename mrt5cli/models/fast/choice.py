"""Selects the attention implementation of a call: the requested one, or `auto`'s choice."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch

from mrt5cli.models.attention import DEFAULT, IMPLEMENTATIONS
from mrt5cli.models.config import MrT5Config
from mrt5cli.models.fast.kernels import float32_is_exact, obstacle
from mrt5cli.models.fast.kernels.checking import Work, fault
from mrt5cli.models.fast.switch import fast_paths_are_on

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A name in `attention.IMPLEMENTATIONS`, never "auto", and the reason for it."""

    implementation: str
    reason: str

    def __str__(self) -> str:
        return f"{self.implementation} ({self.reason})"


def choose(
    config: MrT5Config,
    device: torch.device,
    dtype: torch.dtype,
    *,
    drops: bool,
    score_per: Literal["row", "batch"] | None,
    trains: bool,
) -> Choice:
    """The attention implementation of the encoder.

    `drops` and `trains` are as in `Work`; `score_per` is `per` of the score loss, or None without one. On a
    GPU, the first call of each kind with "auto" compiles our kernels and checks their numbers; if they are
    wrong, it logs a warning and PyTorch's kernel is used.
    """
    registered = config._attn_implementation or IMPLEMENTATIONS[DEFAULT]
    # Any other name is a custom attention function.
    name = next((name for name in IMPLEMENTATIONS if IMPLEMENTATIONS[name] == registered), registered)
    if not fast_paths_are_on():
        return Choice("eager" if name == "eager" else "sdpa", "fast paths are switched off")
    if name not in ("auto", "packed", "triton"):
        return Choice(name, "as requested")
    if config.shortening_per == "batch":
        return Choice("sdpa", "shortening per batch reads padding, which packed rows do not have")
    hindered = obstacle(device, config.d_kv, dtype)
    if name == "packed" or hindered is not None:
        if device.type == "cpu":
            return Choice("sdpa", "with a score loss") if score_per else Choice("packed", "on a CPU")
        return Choice("sdpa", hindered or "this packing is for CPUs only")
    found = Choice(name, "as requested")
    if name == "auto":
        scored, exact = score_per is not None, float32_is_exact()
        work = Work(device, dtype, config.d_kv, config.use_softmax1, drops, scored, trains, exact)
        found = _checked(work)
    if found.implementation == "triton" and score_per == "batch":
        padded = "sdpa for batches with padding, which the score loss counts"
        return replace(found, reason=f"{found.reason}; {padded}")
    return found


@cache
def _checked(work: Work) -> Choice:
    wrong = fault(work)
    if not wrong:
        return Choice("triton", "its numbers were checked on this device")
    logger.warning(
        "the self-check of our attention kernels failed on %s in %s: %s; attention uses PyTorch's kernel, "
        "which is slower, and dropout drops other weights",
        work.device, str(work.dtype).removeprefix("torch."), wrong,
    )  # fmt: skip
    return Choice("sdpa", f"the self-check of our kernels failed: {wrong}")
