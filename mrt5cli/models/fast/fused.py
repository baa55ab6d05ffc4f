"""Fused attention on PyTorch's kernels: softmax1, exact gradients and the score loss without stored scores.

It runs on CPUs and, where our own kernels cannot run, on GPUs.

Forward is PyTorch's kernel, which also returns each query's log-sum-exp: softmax1(s) is softmax(s) times
sigmoid(lse(s)), and its own log-sum-exp is softplus(lse(s)). Appending a key with score and value 0 would be
exact too, but K + 1 keys are not a multiple of 8, and CUDA's kernel would need a copy of the bias. Whatever
is added to all scores of a key, gate and padding, becomes one more feature of the key against a query feature
of 1, so that all rows of a batch can share one bias.

Backward is ours, because PyTorch's gives the bias no gradient, or a separate one for every row. It recomputes
the scores one tile at a time. A tile is one head of one row, or several of short rows, which would otherwise
take thousands of calls per step. The score loss needs the same scores: its sum is computed by tiles in
forward, and its gradient is added to that of the scores in backward. PyTorch's kernel does not report which
weights it dropped, so with dropout forward uses tiles too, and backward draws the same random numbers again.

Legend: B batch, N heads, Q queries, K keys, H head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mrt5cli.models.deletion import HIDES
from mrt5cli.models.fast.switch import fast_paths_are_on

# Both return (output, log-sum-exp, ...) of softmax attention with an additive bias and a given scale.
_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_EFFICIENT = getattr(torch.ops.aten, "_scaled_dot_product_efficient_attention", None)
TILES = {"cpu": 2**20, "cuda": 2**25}
"""Scores in a tile, unless one head of one row has more: a CPU's cache size, or enough to keep a GPU busy."""
STEP = 8
"""Alignment of head widths with extra features, and of the rows of the bias: kernels are slower at other
values, or refuse them."""


def has_fused(tensor: Tensor) -> bool:
    """Whether `fused` is switched on and supports a tensor's device and precision."""
    known = tensor.dtype in (torch.float32, torch.bfloat16)
    kernel = {"cpu": _FLASH, "cuda": _EFFICIENT}.get(tensor.device.type)
    return fast_paths_are_on() and kernel is not None and known


def precision(states: Tensor) -> torch.dtype:
    """The precision of queries, keys and values in blocks that run on `states`."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def bias_dtype(states: Tensor) -> torch.dtype | None:
    """The precision that the kernel requires of the bias in blocks that run on `states`; None for any."""
    if not has_fused(states) or _KERNELS[states.device.type] is _flash:
        return None
    return precision(states)


class How(NamedTuple):
    """Arguments of `_Fused` that are not tensors, as in `fused`; `seed` is that of this call's dropout."""

    softmax1: bool
    ceiling: float | None = None
    dropout: float = 0.0
    seed: int = 0

    def numbers(self, device: torch.device) -> torch.Generator | None:
        """A new generator for this call's dropout; None without dropout."""
        return torch.Generator(device).manual_seed(self.seed) if self.dropout else None

    def kept(self, weights: Tensor, numbers: torch.Generator | None) -> Tensor:
        """Factors for the weights of a tile. Forward and backward process tiles in the same order."""
        kept = torch.empty_like(weights).bernoulli_(1 - self.dropout, generator=numbers)
        return kept.div_(1 - self.dropout)


def fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    softmax1: bool,
    *,
    gate: Tensor | None = None,
    hidden: Tensor | None = None,
    ceiling: float | None = None,
    queries: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Unscaled attention, and the sum by which scores exceed a ceiling.

    Args:
        query: (B, N, Q, H), float32 or bfloat16; `key` and `value` (B, N, K, H) likewise.
        bias: added to the scores, (1 or B, 1 or N, 1 or Q, 1 or K); may be a strided view.
        gate: (B, K), added to every score of a key.
        hidden: (1 or B, K), likewise: 0, or so low that nothing attends to the key; has no gradient.
        ceiling: also sum max(score - ceiling, 0) over all pairs, of scores with bias and without gate.
        queries: (B, Q) bool, the queries in that sum; None for all.
        dropout: probability of dropping an attention weight, below 1. It depends on the state of PyTorch's
            CPU generator, on a GPU too, because reading the GPU's state would wait for it.

    Returns:
        (B, N, Q, H), and that sum in float32, 0 without a ceiling.
    """
    if bias is not None and _KERNELS[query.device.type] is not _flash:
        bias = bias.to(query.dtype)  # so that backward recomputes exactly forward's scores
    if hidden is not None:
        hidden = hidden.expand(len(query), key.shape[2])
    if ceiling is None and not dropout and not torch.is_grad_enabled():
        return _attention(query, key, value, bias, gate, hidden, softmax1)[0], query.new_zeros(())
    how = How(softmax1, ceiling, dropout, _seed() if dropout else 0)
    result: tuple[Tensor, Tensor] = _Fused.apply(query, key, value, bias, gate, hidden, queries, how)
    return result


def _seed() -> int:
    """A seed for one call's dropout, from the CPU's generator, so that no GPU is waited for."""
    return int(torch.randint(2**63 - 1, (), device="cpu"))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        gate: Tensor | None,
        hidden: Tensor | None,
        queries: Tensor | None,
        how: How,
    ) -> tuple[Tensor, Tensor]:
        excess = torch.zeros((), device=query.device)
        with torch.autocast(query.device.type, enabled=False):
            if how.dropout:
                output, lse = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
            else:
                output, lse = _attention(query, key, value, bias, gate, hidden, how.softmax1)
            numbers = how.numbers(query.device)
            for tile in tiles(query, key) if how.dropout or how.ceiling is not None else ():
                scores = _scores(query, key, bias, hidden, tile)
                if how.ceiling is not None:
                    above = (scores.clone() if how.dropout else scores).sub_(how.ceiling).clamp_(min=0)
                    excess += (above if queries is None else above.mul_(_of_rows(queries, tile))).sum()
                if how.dropout:
                    weights, lse[tile] = _softmax(_gated(scores, gate, tile), how.softmax1)
                    output[tile] = _product(weights.mul_(how.kept(weights, numbers)), value[tile])
        ctx.save_for_backward(query, key, value, bias, gate, hidden, output, lse, queries)
        ctx.how = how
        return output, excess

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, excess_grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            return _Fused._gradients(ctx, grad, excess_grad)

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor, excess_grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, gate, hidden, output, lse, queries = ctx.saved_tensors
        how: How = ctx.how
        query_grad, key_grad, value_grad = (torch.empty_like(part) for part in (query, key, value))
        bias_grad = _zeros(bias) if ctx.needs_input_grad[3] else None
        gate_grad = _zeros(gate) if ctx.needs_input_grad[4] else None
        numbers = how.numbers(query.device)
        for tile in tiles(query, key):
            q, k, v, g, o = (part[tile] for part in (query, key, value, grad, output))
            scores = _scores(query, key, bias, hidden, tile)
            above = None
            if how.ceiling is not None:
                above = (scores > how.ceiling).to(scores.dtype).mul_(excess_grad)
                if queries is not None:
                    above.mul_(_of_rows(queries, tile))
            weights = _gated(scores, gate, tile).sub_(lse[tile][..., None]).exp_()
            through = _product(g, v.mT)
            if how.dropout:
                kept = how.kept(weights, numbers)
                through.mul_(kept)
                value_grad[tile] = _product(kept.mul_(weights).mT, g)
            else:
                value_grad[tile] = _product(weights.mT, g)
            through.sub_((g.float() * o).sum(dim=-1, keepdim=True)).mul_(weights)
            if gate_grad is not None:
                gate_grad[tile[0]] += through.sum(dim=(1, 2))
            if above is not None:
                through += above
            query_grad[tile] = _product(through, k)
            key_grad[tile] = _product(through.mT, q)
            if bias_grad is not None:
                of_tile = _shared(bias_grad, tile)
                of_tile += through.sum_to_size(of_tile.shape)
        bias_grad = None if bias_grad is None else bias_grad.to(bias.dtype)
        gate_grad = None if gate_grad is None else gate_grad.to(gate.dtype)
        return query_grad, key_grad, value_grad, bias_grad, gate_grad, None, None, None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    hidden: Tensor | None,
    softmax1: bool,
) -> tuple[Tensor, Tensor]:
    """Attention, and each query's log-sum-exp (B, N, Q), which includes softmax1's fixed logit."""
    width = query.shape[-1]
    if bias is None and hidden is not None:
        bias, hidden = hidden[:, None, None, :], None  # avoids copying keys for a feature
    added = [part.float() for part in (gate, hidden) if part is not None]
    if added:
        query, key, value = _with_feature(query, key, value, sum(added[1:], added[0]).clamp(min=HIDES))
    output, lse = _KERNELS[query.device.type](query, key, value, bias)
    output = output[..., :width]
    if not softmax1:
        return output, lse
    return output * torch.sigmoid(lse)[..., None].to(output.dtype), F.softplus(lse)


def _with_feature(query: Tensor, key: Tensor, value: Tensor, added: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values with (B, K) added to the scores: one more key feature, against 1 in queries;
    in bfloat16 a second one contains the rounding error of the first."""
    features = [added.to(key.dtype)]
    if key.dtype != added.dtype:
        features.append((added - features[0]).to(key.dtype))
    room = -(query.shape[-1] + len(features)) % STEP
    shape = (*key.shape[:-1], len(features))
    key = torch.cat([key, torch.stack(features, dim=-1)[:, None].expand(shape)], dim=-1)
    key, value = F.pad(key, (0, room)), F.pad(value, (0, len(features) + room))
    return F.pad(F.pad(query, (0, len(features)), value=1.0), (0, room)), key, value


def _flash(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax attention on a CPU, and each query's log-sum-exp (B, N, Q)."""
    assert _FLASH is not None  # see `has_fused`
    if bias is not None:
        bias = bias.expand(*bias.shape[:2], query.shape[2], key.shape[2])
    output, lse = _FLASH(query, key, value, 0.0, False, attn_mask=bias, scale=1.0)
    return output, lse


def _efficient(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same on a GPU. PyTorch's automatic choice could be a kernel without a bias."""
    assert _EFFICIENT is not None  # see `has_fused`
    if bias is not None:
        bias = _in_steps(bias.expand(*bias.shape[:3], key.shape[2]), query.dtype)
        bias = bias.expand(*query.shape[:-1], key.shape[2])
    output, lse, *_ = _EFFICIENT(query, key, value, bias, True, scale=1.0)
    return output, lse[..., : query.shape[2]]  # the kernel rounds its length up


_KERNELS = {"cpu": _flash, "cuda": _efficient}


def _in_steps(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """A bias (..., K), converted if necessary to a precision and to rows at multiples of `STEP`."""
    steps = [step for step, size in zip(bias.stride(), bias.shape, strict=True) if size > 1]
    apart = any(step % STEP for step in (bias.storage_offset(), *steps[:-1]))
    if bias.dtype == dtype and steps[-1:] in ([], [1]) and not apart:
        return bias
    room = -bias.shape[-1] % STEP
    wide = bias.new_empty((*bias.shape[:-1], bias.shape[-1] + room), dtype=dtype)[..., : bias.shape[-1]]
    return wide.copy_(bias)


Tile = tuple[slice, slice]
"""Slices of rows and of heads."""


def tiles(query: Tensor, key: Tensor) -> Iterator[Tile]:
    """Tiles that cover all rows and heads of (B, N, Q, H) and (B, N, K, H) once."""
    rows, heads, queries = query.shape[:3]
    at_once = max(1, TILES[query.device.type] // (queries * key.shape[2]))
    of_heads = min(heads, at_once)
    of_rows = max(1, at_once // heads)
    for row in range(0, rows, of_rows):
        for head in range(0, heads, of_heads):
            yield slice(row, row + of_rows), slice(head, head + of_heads)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The product of (r, h, m, n) and (r, h, n, o) in float32; on a GPU both factors are rounded to the half
    precision of either, as its kernels do."""
    # Always batched: selective recomputation would take a plain product for one with weights, and store it.
    half = left.dtype if left.dtype != torch.float32 else right.dtype
    if _KERNELS[left.device.type] is _flash or half == torch.float32:
        return torch.matmul(left.float(), right.float())
    first, second = (part.to(half).flatten(0, 1) for part in (left, right))
    return torch.bmm(first, second, out_dtype=torch.float32).unflatten(0, left.shape[:2])


def _scores(query: Tensor, key: Tensor, bias: Tensor | None, hidden: Tensor | None, tile: Tile) -> Tensor:
    """A tile's scores (rows, heads, Q, K) in float32, with bias, without gate; may be overwritten."""
    scores = _product(query[tile], key[tile].mT)
    if bias is not None:
        scores.add_(_shared(bias, tile))
    return _gated(scores, hidden, tile)


def _gated(scores: Tensor, gate: Tensor | None, tile: Tile) -> Tensor:
    """Add a tile's part of (B, K) to its scores, in place."""
    return scores if gate is None else scores.add_(gate[tile[0], None, None])


def _softmax(scores: Tensor, softmax1: bool) -> tuple[Tensor, Tensor]:
    """Weights, computed in place from scores (..., K), and their log-sum-exp (...)."""
    peak = scores.amax(dim=-1, keepdim=True)
    if softmax1:
        peak.clamp_(min=0)  # the fixed logit
    weights = scores.sub_(peak).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    if softmax1:
        total += (-peak).exp_()
    return weights.div_(total), (total.log() + peak)[..., 0]


def _of_rows(queries: Tensor, tile: Tile) -> Tensor:
    """A tile's part of (B, Q), as (rows, 1, Q, 1)."""
    return queries[tile[0], None, :, None]


def _shared(bias: Tensor, tile: Tile) -> Tensor:
    """A tile's part of (1 or B, 1 or N, Q, K)."""
    return bias[tuple(part if size > 1 else slice(1) for part, size in zip(tile, bias.shape, strict=False))]


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=torch.float32, device=like.device)
