"""softmax1: a softmax with one more logit, fixed at 0, whose share goes to nobody."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Softmax1(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        # The implicit extra logit is 0, so the stabilising maximum is never below 0.
        peak = scores.amax(dim=-1, keepdim=True).clamp_(min=0)
        weights = (scores - peak).exp_()
        weights.div_(weights.sum(dim=-1, keepdim=True) + (-peak).exp_())
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # softmax1 is a softmax with one more logit held at 0, so the Jacobian among the others is the
        # softmax's.
        (weights,) = ctx.saved_tensors
        weighted = grad * weights
        return weighted.sub_(weights * weighted.sum(dim=-1, keepdim=True))


def softmax1(scores: Tensor) -> Tensor:
    """exp(x_i) / (1 + sum_j exp(x_j)) over the last dimension; sums to 0 where nothing is visible."""
    return _Softmax1.apply(scores)
