"""Weights, gradients and Adam's moments in shards, one a process, by PyTorch's FSDP2 (`fully_shard`).

accelerate's plugin does not fit: it shards whole blocks, and the encoder reads weights of blocks from outside
of them (the first block's relative bias, the shortener, the norm before it); it shards the embedding apart
from the two stacks that share it; and among processes on CPUs it does not shard at all. So the model is
sharded here, by the halves of its blocks, and accelerate is not told.

Checkpoints are whole: weights and optimizer state lie in them as one process writes them, and any number of
processes resumes them, sharded or not.
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
    """A sharded model under a name of its own, which transformers' Trainer takes for wrapped already.

    Its gradients are in shards after every micro-batch: they are summed over processes each time, in place of
    being held whole until the last one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


def shard(model: MrT5ForConditionalGeneration) -> None:
    """Leave a process its share of a model, in place; all processes of the group call it with the same one.

    A half of a block is gathered for its own forward and backward pass. What is read from outside of its
    block, or small, or in use all the time, is gathered for the whole step: embeddings, head, shortener,
    norms, the self-attention with the relative bias.
    """
    # Views that a half hands on as it got them (the position bias), and outputs: nothing writes into either.
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
    """Have all weights of a sharded model in every process, so that one can compute alone; all processes call
    it. To another model nothing happens."""
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            # The root keeps its own between forward and backward pass.
            part.set_reshard_after_forward(part is not model, recurse=False)


def whole_weights(model: nn.Module, keeps: bool) -> dict[str, Tensor]:
    """The weights of a sharded model by their names, on the CPU; all processes call it.

    Args:
        keeps: this process wants them; else they are let go of one by one, and nothing is returned.
    """
    wholes: dict[int, Tensor] = {}
    names = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if id(weight) not in wholes:  # what is shared is gathered once, and stays shared
            wholes[id(weight)] = _kept(weight, keeps)
        names[name] = wholes[id(weight)]
    return names if keeps else {}


def whole_state(optimizer: Optimizer, keeps: bool) -> dict[str, Any]:
    """An optimizer's state as it is without shards, with those gathered on the CPU; all processes call it.

    Args:
        keeps: as in `whole_weights`.
    """
    state = optimizer.state_dict()
    return {**state, "state": _each(state["state"], lambda _, value: _kept(value, keeps))}


def shares_of(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """What a process of a sharded model loads of an optimizer's state that `whole_state` gave."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def share(number: int, value: Tensor) -> Tensor:
        weight = weights[number]
        if not isinstance(weight, DTensor) or value.shape != weight.shape:
            return value  # how many steps it has seen
        on_device = value.to(weight.device)
        # Every process has the whole, and takes its part without asking others.
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
    """What a tensor's shards are together; all processes call it. Any other tensor stays as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _kept(tensor: Tensor, keeps: bool) -> Tensor:
    found = whole(tensor.detach())
    return found.cpu() if keeps else found.new_empty(0)
