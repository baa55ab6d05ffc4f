"""Shards weights, gradients and Adam's moments over processes with PyTorch's FSDP2 (`fully_shard`).

accelerate's plugin does not suit this model: it shards whole blocks, but the encoder reads weights of blocks
from outside of them (the first block's relative bias, the shortener, the norm before it); it shards the
embedding separately from the two stacks that share it; and it does not shard over processes on CPUs at all.
So the model is sharded here, by halves of blocks, without accelerate's knowledge.

Checkpoints have the layout of unsharded ones, and any number of processes resumes them, sharded or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from mrt5cli.models import MrT5ForConditionalGeneration


class Sharded(nn.Module):
    """A wrapper around a sharded model, so that transformers' Trainer does not wrap it again.

    Gradients are reduced and sharded after every micro-batch, instead of being held unsharded until the last.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


def shard(model: MrT5ForConditionalGeneration) -> None:
    """Shard a model in place; all processes of the group call this with the same model.

    Half a block is gathered for its own forward and backward pass. Weights that are read from outside their
    block, small, or in constant use are gathered for the whole step: embeddings, head, shortener, norms, and
    the self-attention with the relative bias.
    """
    # The views are outputs and inputs passed through (the position bias); nothing writes to either.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(model.device.type, (torch.distributed.get_world_size(),))
    for stack in (model.encoder, model.decoder):
        for block in stack.block:
            for half in cast(nn.ModuleList, block.get_submodule("layer")):
                if not any("relative_attention_bias" in name for name, _ in half.named_parameters()):
                    fully_shard(half, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather all weights of a sharded model in every process, so that one can compute alone.

    All processes call this. It has no effect on an unsharded model.
    """
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            # The root keeps its weights between the forward and the backward pass.
            part.set_reshard_after_forward(part is not model, recurse=False)


def whole_weights(model: nn.Module, keeps: bool) -> dict[str, Tensor]:
    """The unsharded weights of a sharded model by name, on the CPU; all processes call this.

    Args:
        keeps: return them in this process; otherwise they are discarded one at a time.
    """
    wholes: dict[int, Tensor] = {}
    names = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if id(weight) not in wholes:  # tied weights are gathered once, and stay tied
            wholes[id(weight)] = _kept(weight, keeps)
        names[name] = wholes[id(weight)]
    return names if keeps else {}


def whole_state(optimizer: Optimizer, keeps: bool) -> dict[str, Any]:
    """An optimizer's state with unsharded tensors on the CPU; all processes call this.

    Args:
        keeps: as in `whole_weights`.
    """
    state = optimizer.state_dict()
    return {**state, "state": _each(state["state"], lambda _, value: _kept(value, keeps))}


def shares_of(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """This process's shards of an optimizer state returned by `whole_state`."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def share(number: int, value: Tensor) -> Tensor:
        weight = weights[number]
        if not isinstance(weight, DTensor) or value.shape != weight.shape:
            return value  # the step counter
        on_device = value.to(weight.device)
        # Every process has the complete tensor, and needs no communication.
        return distribute_tensor(on_device, weight.device_mesh, weight.placements, src_data_rank=None)

    return {**state, "state": _each(state["state"], share)}


def _each(
    state: dict[int, dict[str, Tensor]], change: Callable[[int, Tensor], Tensor]
) -> dict[int, dict[str, Tensor]]:
    return {
        number: {name: change(number, value) for name, value in of_weight.items()}
        for number, of_weight in state.items()
    }


def whole(tensor: Tensor) -> Tensor:
    """The unsharded tensor; all processes call this. An unsharded tensor is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _kept(tensor: Tensor, keeps: bool) -> Tensor:
    found = whole(tensor.detach())
    return found.cpu() if keeps else found.new_empty(0)
