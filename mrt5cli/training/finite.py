"""Detects training numbers that are no longer finite before they are saved, and suggests a remedy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mrt5cli.errors import RunFailed
from mrt5cli.text import listed
from mrt5cli.training.losses import PARTS

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from mrt5cli.recipe.schema import Controller as ControllerSection
    from mrt5cli.training.controller import Controller

FAR_ABOVE = 10.0
"""A part of the loss this many times the cross-entropy is blamed for the divergence."""
COEFFICIENTS = {
    "entropy": ("entropy terms", "lower loss.entropy_coefficient_1 and loss.entropy_coefficient_2"),
    "encoder_score": ("score loss", "lower loss.score_coefficient"),
    "cross_score": ("score loss", "lower loss.score_coefficient"),
}


def is_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers of all tensors are finite; synchronizes with each device once.

    Of sharded weights, only this process's shard is checked.
    """
    extremes: dict[torch.device, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if tensor.numel():  # the extremes of a tensor with a NaN are NaN
            extremes[tensor.device].append(torch.stack(tensor.detach().aminmax()).double())
    return all(bool(torch.stack(several).isfinite().all()) for several in extremes.values())


def in_any_process(found: bool, device: torch.device) -> bool:
    """Whether `found` is true in any process of the group; all processes must call this."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return found
    flag = torch.tensor(int(found), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def gains(section: ControllerSection, where: str = "controller.") -> str:
    """The settings that determine how strongly a controller moves alpha, with their values."""
    names = [name for name in type(section).model_fields if name.startswith(("k_", "alpha"))]
    return listed([f"{where}{name} ({getattr(section, name):g} now)" for name in names])


def stopped(
    what: str,
    step: int,
    controller: Controller,
    peaks: Tensor,
    args: TrainingArguments,
) -> RunFailed:
    """The error that ends a training with numbers that are not finite, and its likely remedy.

    Args:
        what: what is not finite, as text.
        step: optimizer steps completed.
        peaks: (6,), largest magnitude of each of `losses.PARTS` since the last line of metrics, coefficients
            included; possibly infinite, never NaN.
    """
    sizes = dict(zip(PARTS, peaks.tolist(), strict=True))
    usual = sizes["cross_entropy"]
    greatest = max(sizes, key=lambda part: sizes[part])
    cause = ""
    if not is_finite(controller.numbers()):
        change = f"lower the gains: {gains(controller.section)}"
    elif greatest in ("gate", *COEFFICIENTS) and sizes[greatest] > FAR_ABOVE * usual:
        of_gate = "gate loss, alpha included,", f"lower what sets alpha: {gains(controller.section)}"
        name, change = COEFFICIENTS.get(greatest, of_gate)
        cause = f"the {name} reached {sizes[greatest]:.3g}, with a cross-entropy of {usual:.3g}: "
    else:
        change = f"lower training.learning_rate ({args.learning_rate:g} now) or raise training.warmup_steps"
    return RunFailed(
        f"{what} stopped being finite at or before step {step}",
        cause + change + (", or set training.precision=fp32" if args.bf16 else ""),
    )
