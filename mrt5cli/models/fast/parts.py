"""The parts of transformers' T5 that have a faster twin here, and how a model gets them.

A twin has the same parameters and computes the same, so that a module changes its class and nothing else.
Those of the norm and of the feed-forward layer keep less for backward and run in fewer passes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import NewGELUActivation
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense, T5LayerNorm

from mrt5cli.models.fast.products import Linear, gated_product, is_its_weight, linear, suits_onednn
from mrt5cli.models.fast.switch import fast_paths_are_on


class _Normalize(torch.autograd.Function):
    """weight * x / rms(x) over the last dimension. Backward finds x and a number a row, and makes the
    normalised x again."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        output, inverse = _normalized(states, weight, epsilon)
        ctx.save_for_backward(states, inverse, weight)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, inverse, weight = ctx.saved_tensors
        to_weight = None
        if ctx.needs_input_grad[1]:
            rows = tuple(range(grad.dim() - 1))
            to_weight = _divided(states, inverse, weight).mul_(grad).sum(rows)
        to_divided = (grad * weight).to(torch.promote_types(states.dtype, inverse.dtype))
        to_inverse = (to_divided * states).sum(-1, keepdim=True)
        to_square = to_inverse * -0.5 * inverse.pow(3) / states.shape[-1]
        to_states = to_divided.mul_(inverse).add_(2 * states * to_square)
        return to_states.to(states.dtype), to_weight, None


def _normalized(states: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """weight * x / rms(x), and 1 / rms(x)."""
    inverse = torch.rsqrt(states.float().pow(2).mean(-1, keepdim=True) + epsilon)
    return _divided(states, inverse, weight).mul_(weight), inverse


def _divided(states: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """x / rms(x) in float32, rounded where the weight is half as wide."""
    divided = states * inverse
    return divided.to(weight.dtype) if weight.dtype in (torch.float16, torch.bfloat16) else divided


class RMSNorm(T5LayerNorm):
    """The norm on (..., D); its parameter is that of transformers' class, whose forward this computes."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not fast_paths_are_on():  # a compiler fuses the passes itself
            output: Tensor = super().forward(hidden_states)
            return output
        if not torch.is_grad_enabled():
            return _normalized(hidden_states, self.weight, self.variance_epsilon)[0]
        return _Normalize.apply(hidden_states, self.weight, self.variance_epsilon)


class _GatedOutput(torch.autograd.Function):
    """dropout(gelu(gate) * factor) @ weight.T, with tanh's approximation of gelu.

    Of four tensors as wide as the layer, backward finds two (and dropout's mask), and makes the others again:
    elementwise, between matrix products that take twenty times as long.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, factor: Tensor, weight: Tensor, rate: float) -> Tensor:
        hidden, mask = F.gelu(gate, approximate="tanh").mul_(factor), None
        if rate > 0:
            hidden, mask = torch.native_dropout(hidden, rate, True)
        ctx.rate = rate
        ctx.save_for_backward(gate, factor, weight, mask)
        return linear(hidden.to(weight.dtype), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, factor, weight, mask = ctx.saved_tensors

        def drop(of_hidden: Tensor) -> Tensor:
            return of_hidden if mask is None else of_hidden.mul_(mask).mul_(1 / (1 - ctx.rate))

        active = F.gelu(gate, approximate="tanh")
        to_weight = None
        if ctx.needs_input_grad[2]:
            hidden = drop(active * factor).to(weight.dtype)
            to_weight = grad.flatten(0, -2).t() @ hidden.flatten(0, -2)
            del hidden
        to_hidden = drop(linear(grad, weight.t()).to(gate.dtype))
        to_factor = active.mul_(to_hidden)
        to_gate = torch.ops.aten.gelu_backward(to_hidden.mul_(factor), gate, approximate="tanh")
        return to_gate, to_factor, to_weight, None


class GatedFeedForward(T5DenseGatedActDense):
    """wo(dropout(gelu(wi_0(x)) * wi_1(x))) on (..., D); parameters are those of transformers' class.

    Its own forward computes `gelu_new` in eight passes over (..., d_ff); this is the same function in two,
    or, where no gradient is needed and oneDNN multiplies, within the products.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not fast_paths_are_on():
            plain: Tensor = super().forward(hidden_states)
            return plain
        weight = self.wo.weight
        if self._activates_within_products(hidden_states):
            hidden = gated_product(hidden_states, self.wi_0.weight, self.wi_1.weight)
            output: Tensor = self.wo(hidden.to(weight.dtype))
            return output
        gate, factor = self.wi_0(hidden_states), self.wi_1(hidden_states)
        if torch.compiler.is_compiling() or not is_its_weight(self.wo):
            hidden = F.gelu(gate, approximate="tanh") * factor
            hidden = F.dropout(hidden, self.dropout.p, self.training)
            if hidden.dtype != weight.dtype and not torch.is_autocast_enabled(hidden.device.type):
                hidden = hidden.to(weight.dtype)
            output = self.wo(hidden)
            return output
        if torch.is_autocast_enabled(gate.device.type):
            weight = weight.to(gate.dtype)
        return _GatedOutput.apply(gate, factor, weight, self.dropout.p if self.training else 0.0)

    def _activates_within_products(self, states: Tensor) -> bool:
        if torch.is_grad_enabled() or (self.training and self.dropout.p > 0):
            return False
        if not suits_onednn(states, self.wi_0.weight, (torch.float32, torch.bfloat16)):
            return False
        return is_its_weight(self.wi_0) and is_its_weight(self.wi_1)


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
