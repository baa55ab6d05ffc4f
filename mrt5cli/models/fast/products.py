"""Products with weight matrices: by the faster of two libraries on a CPU, merged on a GPU.

On x86, PyTorch multiplies float32 matrices with MKL. oneDNN, which PyTorch ships for its compiler, is faster
for T5's wide weights (`python tests/benchmarks/targets.py --what products`) and applies the gated activation
while a product is in the cache. Its operators are not a public interface, so they are tested before use.

Narrow weights stay with MKL: oneDNN generates a kernel for every new number of rows, which packed batches
change constantly, and for small products that takes as long as the product.

On a GPU in training, products of the same states with several weights, q|k|v and wi_0|wi_1, are merged
(`joint`). The joint weight is built in every call, which under autocast costs no more than autocast's casts.
One product then gives the gradient of the states, and one all gradients of weights.

Legend: R rows (of any number of dimensions), D input width, E output width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mrt5cli.models.fast.switch import fast_paths_are_on, gpu_paths_are_on

WIDE = 2**19
"""Smallest weight, in numbers, that oneDNN multiplies; byt5-small's smallest has 1472 x 384."""


class Linear(nn.Linear):
    """PyTorch's linear layer, by the faster library if it has no bias."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.bias is not None else linear(input, self.weight)


def is_its_weight(layer: nn.Module) -> bool:
    """Whether a layer only multiplies by its weight: no bias, adapter, quantized weight or hook."""
    if type(layer) not in (nn.Linear, Linear) or layer.bias is not None or "forward" in vars(layer):
        return False
    hooks = (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks)
    return not any(hooks)


def linear(states: Tensor, weight: Tensor) -> Tensor:
    """states (R, D) @ weight (E, D).T -> (R, E), by the faster library."""
    if not suits_onednn(states, weight):
        return F.linear(states, weight)
    if torch.is_grad_enabled():
        product: Tensor = _Product.apply(states, weight)
        return product
    return multiply(states, weight)


def gated_product(states: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """gelu(states @ gate.T) * (states @ weight.T), (R, E), with the tanh approximation; has no gradient.

    In bfloat16 there is no rounding between product and activation.
    """
    active = torch.ops.mkldnn._linear_pointwise(states, gate, None, "gelu", [], "tanh")
    product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(states, active, weight, None, "mul")
    return product


def multiply(states: Tensor, weight: Tensor) -> Tensor:
    """states (R, D) @ weight (E, D).T by oneDNN, which also reads transposed weights; has no gradient."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, None, "none", [], "")
    return product


class _Product(torch.autograd.Function):
    """states @ weight.T and the gradient of the states by oneDNN, which is not faster for the weight's."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(states, weight)
        return multiply(states, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        states, weight = ctx.saved_tensors
        to_states = multiply(grad, weight.t()) if ctx.needs_input_grad[0] else None
        to_weight = grad.flatten(0, -2).t() @ states.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return to_states, to_weight


def joins(states: Tensor, layers: Sequence[nn.Module]) -> bool:
    """Whether to merge the products of states (R, D) with the weights (E, D) of several layers.

    It pays on a GPU in training: under autocast always; otherwise if copying the weights, 2 E D numbers to
    read and write, costs less than adding the gradients of the states, 3 R D for each product but the first.
    """
    if not gpu_paths_are_on(states) or not torch.is_grad_enabled() or not all(map(is_its_weight, layers)):
        return False
    weights = [layer.get_parameter("weight") for layer in layers]
    if any(type(part.data) is not Tensor or part.dtype == torch.float64 for part in (states, *weights)):
        return False
    if torch.is_autocast_enabled(states.device.type):
        return True
    rows, outputs = states.numel() // states.shape[-1], sum(map(len, weights))
    return all(weight.dtype == states.dtype for weight in weights) and (
        3 * rows * (len(weights) - 1) >= 2 * outputs
    )


def joint(states: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    """states (R, D) @ weight.T of several layers side by side, (R, sum of E), if `joins` is True."""
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    weights = [layer.get_parameter("weight") for layer in layers]
    product: Tensor = _JointProduct.apply(states, dtype, *weights)
    return product


class _JointProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        ctx.of_states, ctx.of_weights = states.dtype, [weight.dtype for weight in weights]
        ctx.sizes = [len(weight) for weight in weights]
        states = states.to(dtype)
        whole = states.new_empty(sum(ctx.sizes), states.shape[-1])
        for part, weight in zip(whole.split(ctx.sizes), weights, strict=True):
            part.copy_(weight)
        ctx.save_for_backward(states, whole)
        return F.linear(states, whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, whole = ctx.saved_tensors
        to_states = F.linear(grad, whole.t()).to(ctx.of_states) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[2:]):
            return to_states, None, *(None for _ in ctx.sizes)
        parts = (grad.flatten(0, -2).t() @ states.flatten(0, -2)).split(ctx.sizes)
        return (
            to_states,
            None,
            *(
                part.to(dtype) if needed else None
                for part, dtype, needed in zip(parts, ctx.of_weights, ctx.needs_input_grad[2:], strict=True)
            ),
        )


def suits_onednn(states: Tensor, weight: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> bool:
    """Whether oneDNN should and can multiply (R, D) by (E, D).

    Autocast, the compiler and tensor subclasses (sharded, quantized) bring their own products.
    `torch.backends.mkldnn.enabled = False` switches it off.
    """
    return (
        fast_paths_are_on()
        and weight.numel() >= WIDE
        and states.dtype == weight.dtype
        and weight.dtype in dtypes
        and states.device.type == weight.device.type == "cpu"
        and states.numel() > 0
        and type(states.data) is type(weight.data) is Tensor
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.mkl.is_available()  # other builds use oneDNN or something as good already
        and works(weight.dtype)
    )


@cache
def works(dtype: torch.dtype) -> bool:
    """Whether this build and processor support the operators, and compute correct results."""
    generator = torch.Generator().manual_seed(0)
    states, gate, weight = (torch.randn(n, 40, generator=generator).to(dtype) for n in (3, 48, 48))
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            found = multiply(states, gate), multiply(states, weight.t().contiguous().t())
            gated = gated_product(states, gate, weight)
            expected = F.linear(states, gate), F.linear(states, weight)
            activated = F.gelu(expected[0].float(), approximate="tanh") * expected[1].float()
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        # Semi-private operators: a build may lack one, or its arguments or dtypes may differ.
        return False
    relative, absolute = (1e-3, 1e-4) if dtype == torch.float32 else (3e-2, 0.3)
    pairs = zip((*found, gated), (*expected, activated), strict=True)
    return all(torch.allclose(one.float(), other.float(), relative, absolute) for one, other in pairs)
