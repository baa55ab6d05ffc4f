"""Sustained training speed by device, in FLOP/s: the table behind every estimate of hours.

No GPU has been measured yet. Until then a GPU's entry is a share of its maker's rate for dense matrix
products, and every text with hours states that. A measurement replaces the entry, with its command, machine
and date.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from mrt5cli.runtime import Precision

SHARES: Mapping[Precision, float] = {"fp32": 0.6, "bf16": 0.32}
"""Assumed share of the stated rate. In bf16 it is 40 % of what large products reach, the aim for a training
step: PyTorch's product of two 8192 x 8192 matrices reached 790 of the 989 TFLOP/s stated for an H200. In
fp32, exact products come closer to the stated rate."""


class Rate(NamedTuple):
    """The sustained speed of a kind of device.

    Attributes:
        flops: floating-point operations per second; a multiply-accumulate counts as two.
        measured: command, machine and date of the measurement; empty if the rate comes from arithmetic.
    """

    flops: float
    measured: str = ""

    @property
    def origin(self) -> str:
        """The origin of the rate, as text."""
        return f"measured with {self.measured}" if self.measured else "from arithmetic, not measured"

    def __str__(self) -> str:
        if self.flops >= 1e12:
            return f"{self.flops / 1e12:.3g} TFLOP/s"
        return f"{self.flops / 1e9:.3g} GFLOP/s"


def _stated(fp32: float, bf16: float) -> dict[Precision, Rate]:
    """Rates derived from a data sheet's TFLOP/s, without tf32 and sparsity."""
    return {"fp32": Rate(SHARES["fp32"] * fp32 * 1e12), "bf16": Rate(SHARES["bf16"] * bf16 * 1e12)}


GPUS: Mapping[str, Mapping[Precision, Rate]] = {
    "H200": _stated(67, 989),
    "H100": _stated(67, 989),
    "A100": _stated(19.5, 312),
    "L40S": _stated(91.6, 362),
    "RTX 4090": _stated(82.6, 165),
    "RTX 3090": _stated(35.6, 71),
}
"""Rates by a part of the name that torch.cuda.get_device_name returns."""
ASSUMED = "A100"
"""The kind assumed without a GPU and for an unknown GPU."""

NARROW = Rate(34e9, "`make quickstart` on an AMD EPYC, 2026-11-28")
NARROW_SHARED = Rate(39e9, "`mrt5 reproduce miniature`, two jobs at a time on an AMD EPYC, 2026-11-29")
WIDE = Rate(95e9, "`python tests/benchmarks/targets.py --batch 2` on an AMD EPYC, 2026-11-26")
"""One CPU core in either precision: small models in the quickstart, with other work on the machine (800 steps
of ByT5 in 119 s); small models in suites, two at a time (99 runs in 117 min); and a forward pass of
byt5-small."""
STEP_SECONDS, BLOCK_SECONDS = 2e-3, 1.5e-3
"""Overhead of Python and PyTorch per optimizer step, and per block in each of its forward and backward
passes, however small the model."""
LEAST = (
    f"{1e3 * STEP_SECONDS:g} ms a step and {1e3 * BLOCK_SECONDS:g} ms for each block in each pass, measured "
    "with `mrt5 pretrain quickstart_byt5 --smoke` and 2 to 24 blocks on an AMD EPYC, 2026-11-29"
)
"""The same as text. Median core time per step, with other jobs running: 6, 11, 21 and 38 ms for 2, 5, 14 and
24 blocks. Also used for GPUs, whose work the same Python code launches."""
WIDE_MODEL = 1024
"""Least d_model of a wide model."""


def kind_of(gpu: str) -> str | None:
    """The key in `GPUS` of a GPU's name; None for an unknown kind."""
    return next((kind for kind in GPUS if re.search(rf"\bG?{kind}\b", gpu)), None)


def gpu_rate(precision: Precision, gpu: str = "") -> Rate:
    """The sustained speed of a GPU by name; an unknown one has the speed of `ASSUMED`."""
    return GPUS[kind_of(gpu) or ASSUMED][precision]


def core_rate(d_model: int, *, shared: bool = False) -> Rate:
    """The sustained speed of one CPU core for a model of width `d_model`.

    Args:
        shared: whether other jobs run at the same time.
    """
    if d_model >= WIDE_MODEL:
        return WIDE
    return NARROW_SHARED if shared else NARROW


def described(gpu: str) -> str:
    """A GPU's name for texts, with the assumed kind if it is unknown; an empty name means no GPU."""
    if kind_of(gpu):
        return gpu
    return f"{gpu} (unknown kind, estimated as an {ASSUMED})" if gpu else f"NVIDIA {ASSUMED}"
