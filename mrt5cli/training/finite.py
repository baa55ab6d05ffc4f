"""Numbers of a training that stop being finite: seen before anything is kept of them, with what to change."""

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
"""A part of the loss this many times the cross-entropy is what drove the weights away."""
COEFFICIENTS = {
    "entropy": ("entropy terms", "lower loss.entropy_coefficient_1 and loss.entropy_coefficient_2"),
    "encoder_score": ("score loss", "lower loss.score_coefficient"),
    "cross_score": ("score loss", "lower loss.score_coefficient"),
}


def is_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers of all tensors are finite; waits for each of their devices once."""
    extremes: dict[torch.device, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        # Of weights that are spread over processes, this one's.
        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if tensor.numel():  # those of a tensor with a NaN are NaN
            extremes[tensor.device].append(torch.stack(tensor.detach().aminmax()).double())
    return all(bool(torch.stack(several).isfinite().all()) for several in extremes.values())


def in_any_process(found: bool, device: torch.device) -> bool:
    """Whether it is so in one of the processes that train together, which all ask at the same point."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return found
    flag = torch.tensor(int(found), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def gains(section: Controller | ConstantController, where: str = "controller.") -> str:
    """The settings that decide how far a controller takes alpha, with their values."""
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
    """The end of a training whose numbers are not finite any more.

    Args:
        what: is not finite, in words.
        step: optimizer steps done.
        section: of the recipe's controller.
        peaks: the greatest that each part of the loss was since the last line of metrics, by its name in
            `losses.PARTS`, coefficients included; infinite, but never NaN.
        steered: the controller's own numbers are still finite.
        learning_rate: the recipe's.
    """
    usual = peaks["cross_entropy"]
    greatest = max(peaks, key=lambda part: peaks[part])
    told = ""
    if not steered:
        change = f"lower the gains: {gains(section)}"
    elif greatest in ("gate", *COEFFICIENTS) and peaks[greatest] > FAR_ABOVE * usual:
        name, change = COEFFICIENTS.get(
            greatest, ("gate loss, alpha included,", f"lower what sets alpha: {gains(section)}")
        )
        told = f"the {name} came to {peaks[greatest]:.3g} beside a cross-entropy of {usual:.3g}: "
    else:
        change = f"lower training.learning_rate, {learning_rate:g} now, or raise training.warmup_steps"
    return RunFailed(
        f"{what} stopped being finite at or before step {step}",
        told + change + (", or training.precision: fp32" if bf16 else ""),
    )
