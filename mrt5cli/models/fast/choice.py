"""Which implementation of attention serves a model where it is: the one asked for, or `auto`'s choice."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import torch

from mrt5cli.models.attention import DEFAULT, IMPLEMENTATIONS
from mrt5cli.models.config import MrT5Config
from mrt5cli.models.fast.kernels import obstacle
from mrt5cli.models.fast.kernels.checking import Work, fault
from mrt5cli.models.fast.switch import fast_paths_are_on

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A name of `attention.IMPLEMENTATIONS`, never "auto", and why it is that one."""

    implementation: str
    reason: str

    def __str__(self) -> str:
        return f"{self.implementation} ({self.reason})"


def choose(
    config: MrT5Config, device: torch.device, dtype: torch.dtype, *, drops: bool, scored: bool, trains: bool
) -> Choice:
    """What attention runs by; the arguments are those of `Work`.

    On a GPU, the first call of a kind with "auto" compiles our kernels and checks their numbers; if these are
    wrong, a warning says so, and PyTorch's kernel is used.
    """
    registered = config._attn_implementation or IMPLEMENTATIONS[DEFAULT]
    # Another name is somebody's own attention function.
    name = next((name for name in IMPLEMENTATIONS if IMPLEMENTATIONS[name] == registered), registered)
    if not fast_paths_are_on():
        return Choice("eager" if name == "eager" else "sdpa", "fast paths are switched off")
    if name not in ("auto", "packed", "triton"):
        return Choice(name, "as asked for")
    hindered = obstacle(device, config.d_kv)
    if name == "packed" or hindered is not None:
        if device.type == "cpu":
            return Choice("packed", "on a CPU")
        return Choice("sdpa", hindered or "rows are packed so on a CPU alone")
    if name == "triton":
        return Choice(name, "as asked for")
    return _checked(Work(device, dtype, config.d_kv, config.use_softmax1, drops, scored, trains))


@cache
def _checked(work: Work) -> Choice:
    wrong = fault(work)
    if not wrong:
        return Choice("triton", "its numbers were checked on this device")
    logger.warning(
        "the self-check of our attention kernels failed on %s in %s: %s; attention runs by PyTorch's kernel, "
        "slower and with the same results",
        work.device, str(work.dtype).removeprefix("torch."), wrong,
    )  # fmt: skip
    return Choice("sdpa", f"the self-check of our kernels failed: {wrong}")
