"""Floating-point operations a second that training sustains, by kind of device: the one table behind every
estimate of hours.

No GPU has been measured yet. Until one is, its entry is a share of what its maker states for dense matrix
products, and every text that shows hours says so; a measurement replaces the entry, with its command, machine
and date.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from mrt5cli.runtime import Precision

SHARES: Mapping[Precision, float] = {"fp32": 0.6, "bf16": 0.32}
"""Of the stated rate. In bf16, 40 % of what large products reach, which is the aim for a training step: of
the 989 TFLOP/s that are stated of an H200, PyTorch's product of two 8192 x 8192 matrices reached 790. In
fp32, exact products are nearer to what is stated."""


class Rate(NamedTuple):
    """What a kind of device sustains.

    Attributes:
        flops: a second; a multiply-accumulate is two.
        measured: by which command, on what and when; empty where the rate comes from arithmetic.
    """

    flops: float
    measured: str = ""

    @property
    def origin(self) -> str:
        """Where the number is from, in words."""
        return f"measured with {self.measured}" if self.measured else "from arithmetic, not measured"

    def __str__(self) -> str:
        if self.flops >= 1e12:
            return f"{self.flops / 1e12:.3g} TFLOP/s"
        return f"{self.flops / 1e9:.3g} GFLOP/s"


def _stated(fp32: float, bf16: float) -> dict[Precision, Rate]:
    """Rates from those of a data sheet, in TFLOP/s; no tf32, no sparsity."""
    return {"fp32": Rate(SHARES["fp32"] * fp32 * 1e12), "bf16": Rate(SHARES["bf16"] * bf16 * 1e12)}


GPUS: Mapping[str, Mapping[Precision, Rate]] = {
    "H200": _stated(67, 989),
    "H100": _stated(67, 989),
    "A100": _stated(19.5, 312),
    "L40S": _stated(91.6, 362),
    "RTX 4090": _stated(82.6, 165),
    "RTX 3090": _stated(35.6, 71),
}
"""By what torch.cuda.get_device_name has in it."""
ASSUMED = "A100"
"""The kind that is assumed where there is no GPU to ask, or one of another kind."""

NARROW = Rate(34e9, "`make quickstart` on an AMD EPYC, 2026-11-28")
NARROW_SHARED = Rate(39e9, "`mrt5 reproduce miniature`, two jobs at a time on an AMD EPYC, 2026-11-29")
WIDE = Rate(95e9, "`python tests/benchmarks/targets.py --batch 2` on an AMD EPYC, 2026-11-26")
"""One core of a CPU, in either precision: small models by the quickstart, beside other work (800 steps of
ByT5 in 119 s), and in suites, two at a time (99 runs in 117 min), and a forward pass of byt5-small."""
STEP_SECONDS, BLOCK_SECONDS = 2e-3, 1.5e-3
"""What Python and PyTorch take for an optimizer step, and for each block in each forward and backward pass of
it, however small they are."""
LEAST = (
    f"{1e3 * STEP_SECONDS:g} ms a step and {1e3 * BLOCK_SECONDS:g} ms for each block in each pass, measured "
    "with `mrt5 pretrain quickstart_byt5 --smoke` and 2 to 24 blocks on an AMD EPYC, 2026-11-29"
)
"""The same in words. Medians of a core's time a step, other jobs beside: 6, 11, 21, 38 ms with 2, 5, 14 and
24 blocks. Taken for GPUs as well, whose work the same Python launches."""
WIDE_MODEL = 1024
"""The d_model from which a model counts as wide."""


def kind_of(gpu: str) -> str | None:
    """The kind of GPU that has such a name, a key of `GPUS`; None where it is none of them."""
    return next((kind for kind in GPUS if re.search(rf"\bG?{kind}\b", gpu)), None)


def gpu_rate(precision: Precision, gpu: str = "") -> Rate:
    """What a GPU of this name sustains, or one of the assumed kind."""
    return GPUS[kind_of(gpu) or ASSUMED][precision]


def core_rate(d_model: int, *, shared: bool = False) -> Rate:
    """What one core of a CPU sustains with a model so wide.

    Args:
        shared: other jobs run beside.
    """
    if d_model >= WIDE_MODEL:
        return WIDE
    return NARROW_SHARED if shared else NARROW


def described(gpu: str) -> str:
    """A GPU's name, and what it is taken for where that is another kind; an empty name is that of none."""
    if kind_of(gpu):
        return gpu
    return f"{gpu} (unknown kind: assumed as an {ASSUMED})" if gpu else f"NVIDIA {ASSUMED}"
