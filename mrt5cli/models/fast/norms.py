"""T5's norm, keeping less for backward and running in fewer passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.models.t5.modeling_t5 import T5LayerNorm

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
