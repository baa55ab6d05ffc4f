"""Detects training numbers that are no longer finite before they are saved, and suggests a remedy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mrt5cli.errors import RunFailed
from mrt5cli.text import listed

if TYPE_CHECKING:
    from mrt5cli.recipe import ConstantController
    from mrt5cli.recipe.schema import Controller

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


def gains(section: Controller | ConstantController, where: str = "controller.") -> str:
    """The settings that determine how strongly a controller moves alpha, with their values."""
    names = [name for name in type(section).model_fields if name.startswith(("k_", "alpha"))]
    return listed([f"{where}{name} ({getattr(section, name):g} now)" for name in names])


def stopped(
    what: str,
    step: int,
    *,
    section: Controller | ConstantController,
    peaks: Mapping[str, float],
    steered: bool,
    learning_rate: float,
    bf16: bool,
) -> RunFailed:
    """The error that ends a training with numbers that are not finite, and its likely remedy.

    Args:
        what: what is not finite, as text.
        step: optimizer steps completed.
        section: the recipe's controller section.
        peaks: largest magnitude of each part of the loss since the last line of metrics, by its name in
            `losses.PARTS`, coefficients included; possibly infinite, never NaN.
        steered: whether the controller's state is still finite.
        learning_rate: the recipe's peak learning rate.
        bf16: whether the run computes in bf16.
    """
    usual = peaks["cross_entropy"]
    greatest = max(peaks, key=lambda part: peaks[part])
    cause = ""
    if not steered:
        change = f"lower the gains: {gains(section)}"
    elif greatest in ("gate", *COEFFICIENTS) and peaks[greatest] > FAR_ABOVE * usual:
        name, change = COEFFICIENTS.get(
            greatest, ("gate loss, alpha included,", f"lower what sets alpha: {gains(section)}")
        )
        cause = f"the {name} reached {peaks[greatest]:.3g}, with a cross-entropy of {usual:.3g}: "
    else:
        change = f"lower training.learning_rate ({learning_rate:g} now) or raise training.warmup_steps"
    return RunFailed(
        f"{what} stopped being finite at or before step {step}",
        cause + change + (", or set training.precision=fp32" if bf16 else ""),
    )
