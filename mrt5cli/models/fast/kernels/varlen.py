"""Attention of packed rows on a GPU: softmax or softmax1, T5's bias, delete gate and score loss in one pass.

The Triton programs are in `tiles.py`; this file is their autograd function and their launches. Nothing here
reads a value back from the device.

Legend: n positions of all rows laid end to end, B rows, N heads, H head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mrt5cli.models.fast.kernels import Packed
from mrt5cli.models.fast.kernels.tiles import backward_keys, backward_queries, forward

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

REPLICAS = 16
"""Copies of the bias gradient that programs add to, summed at the end."""


class Tiles(NamedTuple):
    """How a program is cut: rows of a tile, powers of 2 from 16 on; warps of a program; stages of the loop
    over tiles, loads ahead included."""

    queries: int
    keys: int
    warps: int
    stages: int


def padded_width(width: int) -> int:
    """The next power of 2 from 16, the least a matrix unit takes."""
    return max(16, 1 << (width - 1).bit_length())


def tiles_for(width: int, dtype: torch.dtype) -> tuple[Tiles, Tiles]:
    """Tiles of forward and of backward.

    Triton 3.9 says of sm_80 and sm_90, with everything switched on: at most 57 KiB of shared memory, and all
    values in registers, but for 300 bytes a thread in float32's backward at head width 128. They are not
    tuned: nobody has timed them on a GPU yet.
    """
    wide = padded_width(width) > 64
    if dtype == torch.float32:  # exact products are no work for matrix units: operands lie in registers
        return (Tiles(32, 32, 8, 1), Tiles(16, 32, 4, 1))
    if wide:
        return (Tiles(64, 32, 8, 2), Tiles(32, 32, 4, 1))
    return (Tiles(64, 64, 4, 2), Tiles(64, 32, 4, 1))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    queries: Packed,
    keys: Packed,
    rel: Tensor | None,
    gate: Tensor | None,
    softmax1: bool,
    score_ceiling: float | None = None,
    cut: tuple[Tiles, Tiles] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of each row's queries over the same row's keys, unscaled.

    Args:
        query: (n_q, N, H) of one of `DTYPES`, any strides but the last, which is 1.
        key, value: (n_k, N, H), likewise.
        queries, keys: where the rows lie, with positions where there is a `rel`. Cross-attention of a regular
            (B, T) grid has bounds 0, T, 2 T, ...
        rel: (N, 2 far + 1), what is added to the score of a key at each distance from its query, from -far
            to far; what lies further counts as at +-far. None without position bias.
        gate: (n_k), added to all scores of a key, or None.
        softmax1: in place of softmax.
        score_ceiling: also sum what scores, with bias and before the gate, exceed.
        cut: replaces `tiles_for`.

    Returns:
        Output (n_q, N, H), zeros in rows without keys; and the sum of max(score - ceiling, 0), a float32
        scalar, or None.
    """
    assert query.dtype == key.dtype == value.dtype and query.dtype in DTYPES
    rel = None if rel is None else rel.float().contiguous()
    gate = None if gate is None else gate.float().contiguous()
    cut = cut or tiles_for(query.shape[-1], query.dtype)
    return _Attend.apply(query, key, value, rel, gate, queries, keys, softmax1, score_ceiling, cut)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rel: Tensor | None,
        gate: Tensor | None,
        queries: Packed,
        keys: Packed,
        softmax1: bool,
        ceiling: float | None,
        cut: tuple[Tiles, Tiles],
    ) -> tuple[Tensor, Tensor | None]:
        count, heads, width = query.shape
        tile = cut[0]
        blocks = _blocks(queries.longest, tile.queries)
        programs = (len(queries.bounds) - 1) * heads * blocks
        output = query.new_empty(count, heads, width)
        lse = query.new_empty(heads, count, dtype=torch.float32)
        # Programs past their row's end leave their sum as it is.
        excess = None if ceiling is None else query.new_zeros(programs, dtype=torch.float32)
        if programs:
            with torch.cuda.device_of(query):
                forward[(programs,)](
                    query, key, value, output, lse, excess, rel, gate, queries.positions, keys.positions,
                    queries.bounds, keys.bounds,
                    *_strides(query, key, value, output), count, _far(rel), ceiling or 0.0, heads, blocks,
                    SOFTMAX1=softmax1, **_constants(query, rel, gate, ceiling, tile),
                )  # fmt: skip
        ctx.save_for_backward(query, key, value, output, lse, rel, gate)
        ctx.rest = queries, keys, ceiling, cut[1]
        return output, None if excess is None else excess.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, d_excess: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse, rel, gate = ctx.saved_tensors
        queries, keys, ceiling, tile = ctx.rest
        heads = query.shape[1]
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        delta = torch.empty_like(lse)
        d_query, d_key, d_value = (tensor.new_empty(tensor.shape) for tensor in (query, key, value))
        d_rel = d_gate = None
        if rel is not None and ctx.needs_input_grad[3]:
            d_rel = rel.new_zeros(REPLICAS, *rel.shape)
        if gate is not None:
            d_gate = gate.new_empty(heads, len(gate))
        rows = len(queries.bounds) - 1
        ends = queries.positions, keys.positions, queries.bounds, keys.bounds
        constants = _constants(query, rel, gate, ceiling, tile)

        with torch.cuda.device_of(query):
            if blocks := _blocks(queries.longest, tile.queries):
                backward_queries[(rows * heads * blocks,)](
                    query, key, value, output, grad, lse, delta, d_query, d_rel, d_excess, rel, gate, *ends,
                    *_strides(query, key, value, output, grad), query.shape[0], _far(rel), ceiling or 0.0,
                    heads, blocks, REPLICAS, REL_GRAD=d_rel is not None, **constants,
                )  # fmt: skip
            if blocks := _blocks(keys.longest, tile.keys):
                backward_keys[(rows * heads * blocks,)](
                    query, key, value, grad, lse, delta, d_key, d_value, d_gate, d_excess, rel, gate, *ends,
                    *_strides(query, key, value, grad), query.shape[0], key.shape[0], _far(rel),
                    ceiling or 0.0, heads, blocks, **constants,
                )  # fmt: skip
        d_rel = None if d_rel is None else d_rel.sum(dim=0)
        d_gate = None if d_gate is None else d_gate.sum(dim=0)
        return (d_query, d_key, d_value, d_rel, d_gate, *(None,) * 5)


def _blocks(longest: int, size: int) -> int:
    return -(-longest // size)


def _far(rel: Tensor | None) -> int:
    return 0 if rel is None else rel.shape[1] // 2


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _constants(
    query: Tensor, rel: Tensor | None, gate: Tensor | None, ceiling: float | None, tile: Tiles
) -> dict[str, Any]:
    # float32 products are exact unless PyTorch's own would not be either.
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "HAS_REL": rel is not None,
        "HAS_GATE": gate is not None,
        "HAS_CEILING": ceiling is not None,
        "PRECISION": "ieee" if exact else "tf32",
        "WIDTH": query.shape[-1],
        "PADDED": padded_width(query.shape[-1]),
        "BLOCK_Q": tile.queries,
        "BLOCK_K": tile.keys,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
