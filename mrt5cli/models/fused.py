"""The fused attention core of a CPU: softmax1 from the stock kernel, exact gradients, no stored scores.

Forward is PyTorch's flash kernel, which also gives each query's log-sum-exp: softmax1(s) is softmax(s) times
sigmoid(lse(s)), and as a softmax its log-sum-exp is softplus(lse(s)). Backward is ours, because the stock one
gives the bias no gradient: it recomputes the scores of one row and head at a time, which stay in the cache.
The score loss looks at the same scores, and so lives here: its sum is taken tile by tile in forward, and its
gradient joins that of the scores in backward.

Legend: B batch, N heads, Q queries, K keys, H head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Returns (output, log-sum-exp) of softmax attention with an additive bias and a given scale.
_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
WIDTH_STEP = 8
"""Head widths are padded to a multiple of this when a gate joins; the kernel is slower at odd widths."""


def has_fused(tensor: Tensor) -> bool:
    """Whether `fused` runs where a tensor lies, in its precision."""
    known = tensor.dtype in (torch.float32, torch.bfloat16)
    return _FLASH is not None and tensor.device.type == "cpu" and known


def fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    one: bool,
    *,
    gate: Tensor | None = None,
    ceiling: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention, unscaled, and what the scores exceed a ceiling by.

    Args:
        query: (B, N, Q, H), float32 or bfloat16.
        key, value: (B, N, K, H).
        bias: added to the scores, (1 or B, 1 or N, Q, K); a strided view will do, it is never copied whole.
        one: softmax1 instead of softmax.
        gate: (B, K), added to every score of a key.
        ceiling: ask for the sum of max(score - ceiling, 0) over all pairs, scores with bias and before the
            gate.

    Returns:
        (B, N, Q, H), and the excess in float32 or None.
    """
    output, excess = _Fused.apply(query, key, value, bias, gate, one, ceiling)
    return output, excess if ceiling is not None else None


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        gate: Tensor | None,
        one: bool,
        ceiling: float | None,
    ) -> tuple[Tensor, Tensor]:
        output, lse = _flash(query, key, value, bias, gate)
        if one:
            output = output * torch.sigmoid(lse)[..., None].to(output.dtype)
            lse = F.softplus(lse)
        excess = torch.zeros((), device=query.device)
        if ceiling is not None:
            for row, head in _tiles(query):
                scores = _scores(query, key, bias, row, head)
                excess += scores.sub_(ceiling).clamp_(min=0).sum()
        ctx.save_for_backward(query, key, value, bias, gate, output, lse)
        ctx.ceiling = ceiling
        return output, excess

    @staticmethod
    def backward(ctx: Any, grad: Tensor, excess_grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, gate, output, lse = ctx.saved_tensors
        query_grad, key_grad, value_grad = (torch.empty_like(part) for part in (query, key, value))
        bias_grad = _zeros(bias) if ctx.needs_input_grad[3] else None
        gate_grad = _zeros(gate) if ctx.needs_input_grad[4] else None
        gates = None if gate is None else gate.float()
        for row, head in _tiles(query):
            q, k, v, g, o = (part[row, head].float() for part in (query, key, value, grad, output))
            scores = _scores(query, key, bias, row, head)
            above = None
            if ctx.ceiling is not None:
                above = (scores > ctx.ceiling).to(scores.dtype).mul_(excess_grad)
            if gates is not None:
                scores += gates[row]
            weights = scores.sub_(lse[row, head, :, None]).exp_()
            value_grad[row, head] = weights.t() @ g
            through = torch.addmm((g * o).sum(dim=-1, keepdim=True), g, v.t(), beta=-1).mul_(weights)
            if gate_grad is not None:
                gate_grad[row] += through.sum(dim=0)
            if above is not None:
                through += above
            query_grad[row, head] = through @ k
            key_grad[row, head] = through.t() @ q
            if bias_grad is not None:
                bias_grad[row % len(bias_grad), head % bias_grad.shape[1]] += through
        bias_grad = None if bias_grad is None else bias_grad.to(bias.dtype)
        gate_grad = None if gate_grad is None else gate_grad.to(gate.dtype)
        return query_grad, key_grad, value_grad, bias_grad, gate_grad, None, None


def _flash(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, gate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Softmax attention and each query's log-sum-exp (B, N, Q)."""
    width = query.shape[-1]
    if gate is not None:
        # The gate depends on the key alone, so it rides as one more key feature against a query feature of 1:
        # the bias stays shared by the batch. In bfloat16 a second feature carries what rounding lost.
        features = [gate.to(key.dtype)]
        if key.dtype != gate.dtype:
            features.append((gate - features[0]).to(key.dtype))
        room = -(width + len(features)) % WIDTH_STEP
        shape = (*key.shape[:-1], len(features))
        key = torch.cat([key, torch.stack(features, dim=-1)[:, None].expand(shape)], dim=-1)
        key, value = F.pad(key, (0, room)), F.pad(value, (0, len(features) + room))
        query = F.pad(F.pad(query, (0, len(features)), value=1.0), (0, room))
    output, lse = _FLASH(query, key, value, 0.0, False, attn_mask=bias, scale=1.0)
    return output[..., :width], lse


def _tiles(query: Tensor) -> list[tuple[int, int]]:
    return [(row, head) for row in range(query.shape[0]) for head in range(query.shape[1])]


def _scores(query: Tensor, key: Tensor, bias: Tensor | None, row: int, head: int) -> Tensor:
    """(Q, K) of one row and head in float32, with bias, before the gate; the caller may overwrite them."""
    q, k = query[row, head].float(), key[row, head].float()
    if bias is None:
        # Not a plain product: selective recomputation would take it for one with weights, and keep it.
        return torch.addmm(q.new_zeros(()), q, k.t(), beta=0)
    return torch.addmm(bias[row % len(bias), head % bias.shape[1]].float(), q, k.t())


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=torch.float32, device=like.device)
