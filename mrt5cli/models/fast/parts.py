"""The parts of transformers' T5 that have a faster twin here, and how a model gets them.

A twin has the same parameters and computes the same, so that a module changes its class and nothing else.
"""

from __future__ import annotations

from torch import nn
from transformers.activations import NewGELUActivation
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense, T5LayerNorm

from mrt5cli.models.fast.feed_forward import GatedFeedForward
from mrt5cli.models.fast.norms import RMSNorm
from mrt5cli.models.fast.products import Linear

FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear,
    T5LayerNorm: RMSNorm,
    T5DenseGatedActDense: GatedFeedForward,
}


def use_fast(model: nn.Module) -> None:
    """Give a model the fast twins of its parts, of those that are transformers' and PyTorch's own and not
    what another package put there. They do nothing else than these while the switch is off."""
    for module in model.modules():
        twin = FAST.get(type(module))
        if twin is not None and _suits(module):
            module.__class__ = twin


def _suits(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return module.bias is None
    return not isinstance(module, T5DenseGatedActDense) or isinstance(module.act, NewGELUActivation)
