"""The fused attention core of a CPU: softmax1 from the stock kernel, exact gradients, no stored scores.

Forward is PyTorch's flash kernel, which also gives each query's log-sum-exp: softmax1(s) is softmax(s) times
sigmoid(lse(s)), and as a softmax its log-sum-exp is softplus(lse(s)). Backward is ours, because the stock one
gives the bias no gradient: it recomputes the scores of a tile at a time, which stay in the cache. A tile is
one head of one row, or of short rows as many as have no more scores: one by one they would be thousands of
calls a step. The score loss looks at the same scores, and so lives here: its sum is taken tile by tile in
forward, and its gradient joins that of the scores in backward.

Legend: B batch, N heads, Q queries, K keys, H head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mrt5cli.models.fast.switch import fast_paths_are_on

# Returns (output, log-sum-exp) of softmax attention with an additive bias and a given scale.
_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
TILE = 2**20
"""Scores of a tile, unless one head of one row has more."""
WIDTH_STEP = 8
"""Head widths are padded to a multiple of this when a gate joins; the kernel is slower at odd widths."""


def has_fused(tensor: Tensor) -> bool:
    """Whether `fused` runs where a tensor lies, in its precision, and is wanted."""
    known = tensor.dtype in (torch.float32, torch.bfloat16)
    return fast_paths_are_on() and _FLASH is not None and tensor.device.type == "cpu" and known


def fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    softmax1: bool,
    *,
    gate: Tensor | None = None,
    ceiling: float | None = None,
    queries: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention, unscaled, and what the scores exceed a ceiling by.

    Args:
        query: (B, N, Q, H), float32 or bfloat16; `key` and `value` (B, N, K, H) likewise.
        bias: added to the scores, (1 or B, 1 or N, Q, K); a strided view will do, it is never copied whole.
        gate: (B, K), added to every score of a key.
        ceiling: sum max(score - ceiling, 0) over all pairs, scores with bias and before the gate.
        queries: (B, Q) bool, those whose scores are in that sum; None for all.

    Returns:
        (B, N, Q, H), and that sum in float32, 0 without a ceiling.
    """
    if ceiling is None and not torch.is_grad_enabled():
        return _attention(query, key, value, bias, gate, softmax1)[0], query.new_zeros(())
    result: tuple[Tensor, Tensor] = _Fused.apply(query, key, value, bias, gate, softmax1, ceiling, queries)
    return result


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        gate: Tensor | None,
        softmax1: bool,
        ceiling: float | None,
        queries: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        output, lse = _attention(query, key, value, bias, gate, softmax1)
        excess = torch.zeros((), device=query.device)
        if ceiling is not None:
            for tile in tiles(query, key):
                above = _scores(query, key, bias, tile).sub_(ceiling).clamp_(min=0)
                excess += (above if queries is None else above.mul_(_of_rows(queries, tile))).sum()
        ctx.save_for_backward(query, key, value, bias, gate, output, lse, queries)
        ctx.ceiling = ceiling
        return output, excess

    @staticmethod
    def backward(ctx: Any, grad: Tensor, excess_grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, gate, output, lse, queries = ctx.saved_tensors
        query_grad, key_grad, value_grad = (torch.empty_like(part) for part in (query, key, value))
        bias_grad = _zeros(bias) if ctx.needs_input_grad[3] else None
        gate_grad = _zeros(gate) if ctx.needs_input_grad[4] else None
        gates = None if gate is None else gate.float()
        for tile in tiles(query, key):
            q, k, v, g, o = (part[tile].float() for part in (query, key, value, grad, output))
            scores = _scores(query, key, bias, tile)
            above = None
            if ctx.ceiling is not None:
                above = (scores > ctx.ceiling).to(scores.dtype).mul_(excess_grad)
                if queries is not None:
                    above.mul_(_of_rows(queries, tile))
            if gates is not None:
                scores += gates[tile[0], None, None]
            weights = scores.sub_(lse[tile][..., None]).exp_()
            value_grad[tile] = weights.mT @ g
            through = torch.matmul(g, v.mT).sub_((g * o).sum(dim=-1, keepdim=True)).mul_(weights)
            if gate_grad is not None:
                gate_grad[tile[0]] += through.sum(dim=(1, 2))
            if above is not None:
                through += above
            query_grad[tile] = through @ k
            key_grad[tile] = through.mT @ q
            if bias_grad is not None:
                of_tile = _shared(bias_grad, tile)
                of_tile += through.sum_to_size(of_tile.shape)
        bias_grad = None if bias_grad is None else bias_grad.to(bias.dtype)
        gate_grad = None if gate_grad is None else gate_grad.to(gate.dtype)
        return query_grad, key_grad, value_grad, bias_grad, gate_grad, None, None, None


def _attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, gate: Tensor | None, softmax1: bool
) -> tuple[Tensor, Tensor]:
    """Attention, and each query's log-sum-exp (B, N, Q), with softmax1's fixed logit if it is that."""
    output, lse = _flash(query, key, value, bias, gate)
    if not softmax1:
        return output, lse
    return output * torch.sigmoid(lse)[..., None].to(output.dtype), F.softplus(lse)


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
    assert _FLASH is not None  # see `has_fused`
    output, lse = _FLASH(query, key, value, 0.0, False, attn_mask=bias, scale=1.0)
    return output[..., :width], lse


Tile = tuple[slice, slice]
"""Rows and heads."""


def tiles(query: Tensor, key: Tensor) -> Iterator[Tile]:
    """All rows and heads of (B, N, Q, H) and (B, N, K, H), once each."""
    rows, heads, queries = query.shape[:3]
    at_once = max(1, TILE // (queries * key.shape[2]))
    of_heads = min(heads, at_once)
    of_rows = max(1, at_once // heads)
    for row in range(0, rows, of_rows):
        for head in range(0, heads, of_heads):
            yield slice(row, row + of_rows), slice(head, head + of_heads)


def _scores(query: Tensor, key: Tensor, bias: Tensor | None, tile: Tile) -> Tensor:
    """(rows, heads, Q, K) of a tile in float32, with bias, before the gate; the caller may overwrite them."""
    # Never a plain product: selective recomputation would take it for one with weights, and keep it.
    scores = torch.matmul(query[tile].float(), key[tile].float().mT)
    return scores if bias is None else scores.add_(_shared(bias, tile))


def _of_rows(queries: Tensor, tile: Tile) -> Tensor:
    """(rows, 1, Q, 1), what a tile has of (B, Q)."""
    return queries[tile[0], None, :, None]


def _shared(bias: Tensor, tile: Tile) -> Tensor:
    """What a tile has of (1 or B, 1 or N, Q, K)."""
    return bias[tuple(part if size > 1 else slice(1) for part, size in zip(tile, bias.shape, strict=False))]


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=torch.float32, device=like.device)
