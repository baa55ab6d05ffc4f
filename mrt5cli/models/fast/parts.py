"""Faster twins of the parts of transformers' T5, and how a model gets them.

A twin has the same parameters and computes the same function, so a module only changes its class. The norm
and the feed-forward layer store less for backward and make fewer passes over memory. On a GPU each is one
Triton kernel per direction (kernels/around_attention.py), and products of the same states are merged.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.t5.modeling_t5 import (
    T5Attention,
    T5DenseGatedActDense,
    T5LayerCrossAttention,
    T5LayerFF,
    T5LayerNorm,
    T5LayerSelfAttention,
    eager_attention_forward,
)

from mrt5cli.models.fast.kernels import rows_run_on
from mrt5cli.models.fast.products import (
    Linear,
    gated_product,
    is_its_weight,
    joins,
    joint,
    linear,
    suits_onednn,
)
from mrt5cli.models.fast.switch import fast_paths_are_on


class _Normalize(torch.autograd.Function):
    """weight * x / rms(x) over the last dimension; saves x and one number per row for backward."""

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
    """x / rms(x) in float32, rounded to the weight's precision if that is a half precision."""
    divided = states * inverse
    return divided.to(weight.dtype) if weight.dtype in (torch.float16, torch.bfloat16) else divided


class RMSNorm(T5LayerNorm):
    """T5's norm on (..., D).

    Attributes:
        feeds_products: every consumer of the result multiplies it by weights. Under autocast on a GPU the
            result then already has the precision that autocast would convert it to.
    """

    feeds_products = False

    def forward(self, hidden_states: Tensor) -> Tensor:
        if rows_run_on(hidden_states, self.weight):
            from mrt5cli.models.fast.kernels.around_attention import normalize  # needs triton

            return normalize(hidden_states, self.weight, self.variance_epsilon, self._dtype(hidden_states))
        if torch.compiler.is_compiling() or not fast_paths_are_on():  # a compiler fuses these passes anyway
            output: Tensor = super().forward(hidden_states)
            return output
        if not torch.is_grad_enabled():
            return _normalized(hidden_states, self.weight, self.variance_epsilon)[0]
        return _Normalize.apply(hidden_states, self.weight, self.variance_epsilon)

    def _dtype(self, states: Tensor) -> torch.dtype:
        if self.feeds_products and torch.is_autocast_enabled(states.device.type):
            return torch.get_autocast_dtype(states.device.type)
        return self.weight.dtype  # as in transformers


class _GatedOutput(torch.autograd.Function):
    """dropout(gelu(gate) * factor) @ weight.T, with gelu's tanh approximation.

    It saves two of the four tensors of the layer's width, and dropout's mask. Backward recomputes the others,
    which is elementwise work between matrix products that take twenty times as long.
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
    """wo(dropout(gelu(wi_0(x)) * wi_1(x))) on (..., D).

    transformers computes `gelu_new` in eight passes over (..., d_ff). This makes two passes or, without
    gradients and with oneDNN, applies the activation within the products.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not fast_paths_are_on():
            plain: Tensor = super().forward(hidden_states)
            return plain
        weight = self.wo.weight
        if rows_run_on(hidden_states, weight) and is_its_weight(self.wo) and self.dropout.p < 1:
            return self._by_kernels(hidden_states)
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

    def _by_kernels(self, states: Tensor) -> Tensor:
        from mrt5cli.models.fast.kernels.around_attention import gated_output  # needs triton

        weight, factor = self.wo.weight, None
        if joins(states, (self.wi_0, self.wi_1)):
            gate = joint(states, (self.wi_0, self.wi_1))
        else:
            gate, factor = self.wi_0(states), self.wi_1(states)
        if torch.is_autocast_enabled(gate.device.type):
            weight = weight.to(gate.dtype)
        return gated_output(gate, factor, weight, self.dropout.p if self.training else 0.0)

    def _activates_within_products(self, states: Tensor) -> bool:
        if torch.is_grad_enabled() or (self.training and self.dropout.p > 0):
            return False
        if not suits_onednn(states, self.wi_0.weight, (torch.float32, torch.bfloat16)):
            return False
        return is_its_weight(self.wi_0) and is_its_weight(self.wi_1)


Attended = tuple[Tensor, Tensor | None, Tensor | None]
"""A layer's update, or the updated states; position bias; attention weights."""


class Attention(T5Attention):
    """T5's attention. In training on a GPU, q|k|v are views of one product, or k|v in cross-attention."""

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Attended:
        cache = past_key_values if cache is None else cache
        cross = key_value_states is not None
        source = hidden_states if key_value_states is None else key_value_states
        layers = (self.k, self.v) if cross else (self.q, self.k, self.v)
        # transformers handles caches, and a decoder's first block, which computes the bias for all blocks.
        if cache is not None or position_bias is None or not joins(source, layers):
            attended: Attended = super().forward(
                hidden_states, mask, key_value_states, position_bias, cache, **kwargs
            )
            return attended
        # [B, n, parts, N, H] -> parts of [B, N, n, H]
        parts = joint(source, layers).unflatten(-1, (len(layers), self.n_heads, -1)).unbind(-3)
        if cross:
            parts = (self.q(hidden_states).unflatten(-1, (self.n_heads, -1)), *parts)
        query, key, value = (part.transpose(-3, -2) for part in parts)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.dropout if self.training else 0.0
        output, weights = attend(
            self, query, key, value, mask,
            dropout=dropout, scaling=self.scaling, position_bias=position_bias, **kwargs,
        )  # fmt: skip
        return self.o(output.flatten(-2)), position_bias, weights


class _Half(nn.Module):
    """Half of a block: a residual update. On a GPU, dropout and addition are one kernel without a mask."""

    dropout: nn.Dropout

    def _drops_by_kernel(self, states: Tensor) -> bool:
        return self.training and 0 < self.dropout.p < 1 and rows_run_on(states)

    def _added(self, states: Tensor, update: Tensor) -> Tensor:
        from mrt5cli.models.fast.kernels.around_attention import added  # needs triton

        return added(states, update, self.dropout.p)


class FeedForwardHalf(_Half, T5LayerFF):
    """The norm, the feed-forward layer and the residual."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not self._drops_by_kernel(hidden_states):
            output: Tensor = super().forward(hidden_states)
            return output
        return self._added(hidden_states, self.DenseReluDense(self.layer_norm(hidden_states)))


class SelfAttentionHalf(_Half, T5LayerSelfAttention):
    """The norm, self-attention and the residual."""

    def forward(  # type: ignore[override]  # a block passes the rest by keyword
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Attended:
        if not self._drops_by_kernel(hidden_states):
            attended: Attended = super().forward(hidden_states, attention_mask, **kwargs)
            return attended
        update, *rest = self.SelfAttention(self.layer_norm(hidden_states), mask=attention_mask, **kwargs)
        return self._added(hidden_states, update), *rest


class CrossAttentionHalf(_Half, T5LayerCrossAttention):
    """The norm, cross-attention and the residual."""

    def forward(  # type: ignore[override]  # a block passes the rest by keyword
        self,
        hidden_states: Tensor,
        key_value_states: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Attended:
        if not self._drops_by_kernel(hidden_states):
            attended: Attended = super().forward(hidden_states, key_value_states, attention_mask, **kwargs)
            return attended
        normed = self.layer_norm(hidden_states)
        update, *rest = self.EncDecAttention(
            normed, mask=attention_mask, key_value_states=key_value_states, **kwargs
        )
        return self._added(hidden_states, update), *rest


FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear,
    T5Attention: Attention,
    T5LayerCrossAttention: CrossAttentionHalf,
    T5LayerFF: FeedForwardHalf,
    T5LayerSelfAttention: SelfAttentionHalf,
    T5LayerNorm: RMSNorm,
    T5DenseGatedActDense: GatedFeedForward,
}


def use_fast(model: nn.Module) -> None:
    """Give a model's modules the classes of their fast twins, if they are exactly transformers' or PyTorch's.

    While the switch is off, twins run the original forward.
    """
    for module in model.modules():
        twin = FAST.get(type(module))
        if twin is not None and _suits(module):
            module.__class__ = twin
    for module in model.modules():
        if isinstance(module, T5LayerSelfAttention | T5LayerCrossAttention | T5LayerFF):
            norm = module.layer_norm
            if isinstance(norm, RMSNorm):
                norm.feeds_products = True


def _suits(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return module.bias is None
    return not isinstance(module, T5DenseGatedActDense) or isinstance(module.act, NewGELUActivation)
