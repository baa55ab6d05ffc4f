"""Attention of packed rows on a GPU: softmax or softmax1, T5's bias, delete gate and score loss in one pass.

The Triton programs are in `tiles.py`; this file has their autograd function and launches. Nothing here reads
a value back from the device.

Legend: n positions of all rows laid end to end, B rows, N heads, H head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mrt5cli.models.fast.kernels import DTYPES, Packed, blocks_of, float32_is_exact, power_of_2
from mrt5cli.models.fast.kernels.randomness import draw_seed, threshold
from mrt5cli.models.fast.kernels.tiles import backward_keys, backward_queries, forward

REPLICAS = 16
"""Copies of the bias gradient that programs add to; they are summed at the end."""


class Tiles(NamedTuple):
    """A program's tiling: rows of its tiles (powers of 2 from 16), warps, pipeline stages of the loop over
    tiles (prefetches included), and a limit of registers per thread (None: the compiler decides)."""

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None


class Cut(NamedTuple):
    """The tiles of each program; those of `backward_queries` must not have more keys than queries."""

    forward: Tiles
    backward_queries: Tiles
    backward_keys: Tiles


def padded_width(width: int) -> int:
    """The next power of 2, and at least 16, the minimum of a matrix unit."""
    return max(16, power_of_2(width))


def tiles_for(width: int, dtype: torch.dtype) -> Cut:
    """The tiles for a head width.

    They have not been timed on a GPU yet; `python tests/benchmarks/tiles.py` does that. The reasons for them:
    tiles of 128 rows read the other side from the L2 cache half as often as tiles of 64; three stages load
    the next tile during computation, for which two have no room; nearly all values of a thread are in
    registers (`python tests/benchmarks/kernel_resources.py`); and two programs of forward, which spends more
    on lookups and exponentials than on products, fit on a multiprocessor.
    """
    narrow = padded_width(width) <= 64
    if dtype != torch.float32:
        if narrow:
            return Cut(Tiles(128, 64, 8, 3, 128), Tiles(128, 32, 8, 3), Tiles(64, 128, 8, 3))
        return Cut(Tiles(128, 32, 8, 3), Tiles(64, 32, 4, 3), Tiles(32, 64, 8, 3))
    if float32_is_exact():  # exact products do not use matrix units: operands are in registers
        # Without a limit, NVIDIA's assembler gives some of these 32 registers a thread and spills 1800 bytes.
        warps = 4 if narrow else 8
        return Cut(Tiles(32, 32, 8, 1, 255), Tiles(32, 16, warps, 1, 255), Tiles(16, 32, warps, 1, 255))
    if narrow:
        return Cut(Tiles(64, 64, 4, 2), Tiles(64, 32, 4, 2), Tiles(32, 64, 4, 2))
    return Cut(Tiles(64, 32, 8, 2), Tiles(32, 32, 4, 1), Tiles(32, 32, 4, 1))


class _Options(NamedTuple):
    """Arguments of `attend` other than tensors with gradients."""

    queries: Packed
    keys: Packed
    softmax1: bool
    causal: bool
    ceiling: float | None
    dropout: float
    cut: Cut


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
    causal: bool = False,
    score_ceiling: float | None = None,
    counted: Tensor | None = None,
    dropout: float = 0.0,
    cut: Cut | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Unscaled attention of each row's queries over the same row's keys.

    Args:
        query: (n_q, N, H) in one of `DTYPES`; the last stride is 1, the others are arbitrary.
        key, value: (n_k, N, H), likewise.
        queries, keys: where the rows lie, with positions if there is a `rel`. Cross-attention of a regular
            (B, T) grid has bounds 0, T, 2 T, ...
        rel: (N, 2 far + 1), added to the score of a key by its distance from the query, -far to far; larger
            distances count as +-far. -inf hides. None without position bias.
        gate: (n_k), added to all scores of a key, or None.
        causal: a query sees only the keys up to its own place in the row.
        score_ceiling: also sum the excess of scores, with bias and without gate, over this ceiling.
        counted: (n_q) bool, the queries in that sum; None for all.
        dropout: fraction of weights that is dropped, by `randomness.kept` of (head * n_q + query, place of
            the key in its row) and a seed drawn here.
        cut: overrides `tiles_for`.

    Returns:
        Output (n_q, N, H), zeros where a query sees no key; and the sum of max(score - ceiling, 0), a float32
        scalar, or None.
    """
    assert query.dtype == key.dtype == value.dtype and query.dtype in DTYPES
    assert not causal or queries is keys
    rel = None if rel is None else rel.float().contiguous()
    gate = None if gate is None else gate.float().contiguous()
    counted = None if counted is None else counted.contiguous().view(torch.uint8)
    seed = draw_seed(query.device) if dropout else None
    cut = cut or tiles_for(query.shape[-1], query.dtype)
    options = _Options(queries, keys, softmax1, causal, score_ceiling, dropout, cut)
    return _Attend.apply(query, key, value, rel, gate, counted, seed, options)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rel: Tensor | None,
        gate: Tensor | None,
        counted: Tensor | None,
        seed: Tensor | None,
        options: _Options,
    ) -> tuple[Tensor, Tensor | None]:
        count, heads, width = query.shape
        tile, ends = options.cut.forward, _ends(options)
        blocks = blocks_of(tile.queries, options.queries.longest)
        programs = (len(options.queries.bounds) - 1) * heads * blocks
        output = query.new_empty(count, heads, width)
        lse = query.new_empty(heads, count, dtype=torch.float32)
        # Programs past their row's end do not write their sum.
        excess = None if options.ceiling is None else query.new_zeros(programs, dtype=torch.float32)
        if programs:
            with torch.cuda.device_of(query):
                forward[(programs,)](
                    query, key, value, output, lse, excess, rel, gate, counted, seed, *ends,
                    *_strides(query, key, value, output), count, *_numbers(rel, options), heads, blocks,
                    SOFTMAX1=options.softmax1, **_constants(query, rel, gate, counted, options, tile),
                )  # fmt: skip
        ctx.save_for_backward(query, key, value, output, lse, rel, gate, counted, seed)
        ctx.options = options
        return output, None if excess is None else excess.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, d_excess: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse, rel, gate, counted, seed = ctx.saved_tensors
        options: _Options = ctx.options
        heads, rows, ends = query.shape[1], len(options.queries.bounds) - 1, _ends(options)
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        delta = torch.empty_like(lse)
        d_query, d_key, d_value = (tensor.new_empty(tensor.shape) for tensor in (query, key, value))
        d_rel = d_gate = None
        if rel is not None and ctx.needs_input_grad[3]:
            d_rel = rel.new_zeros(REPLICAS, *rel.shape)
        if gate is not None:
            d_gate = gate.new_empty(heads, len(gate))
        added = rel, gate, counted, seed
        numbers = _numbers(rel, options)

        with torch.cuda.device_of(query):
            tile = options.cut.backward_queries
            if blocks := blocks_of(tile.queries, options.queries.longest):
                backward_queries[(rows * heads * blocks,)](
                    query, key, value, output, grad, lse, delta, d_query, d_rel, d_excess, *added, *ends,
                    *_strides(query, key, value, output, grad), query.shape[0], *numbers, heads, blocks,
                    REPLICAS, REL_GRAD=d_rel is not None,
                    **_constants(query, rel, gate, counted, options, tile),
                )  # fmt: skip
            tile = options.cut.backward_keys
            if blocks := blocks_of(tile.keys, options.keys.longest):
                backward_keys[(rows * heads * blocks,)](
                    query, key, value, grad, lse, delta, d_key, d_value, d_gate, d_excess, *added, *ends,
                    *_strides(query, key, value, grad), query.shape[0], key.shape[0], *numbers, heads, blocks,
                    **_constants(query, rel, gate, counted, options, tile),
                )  # fmt: skip
        d_rel = None if d_rel is None else d_rel.sum(dim=0)
        d_gate = None if d_gate is None else d_gate.sum(dim=0)
        return (d_query, d_key, d_value, d_rel, d_gate, *(None,) * 3)


def _ends(options: _Options) -> tuple[Tensor | None, ...]:
    queries, keys = options.queries, options.keys
    return queries.positions, keys.positions, queries.bounds, keys.bounds


def _numbers(rel: Tensor | None, options: _Options) -> tuple[int, float, int, float]:
    """far, ceiling, threshold and scale, the numeric arguments of the programs."""
    far, rate = 0 if rel is None else rel.shape[1] // 2, options.dropout
    return far, options.ceiling or 0.0, threshold(rate), 1 / (1 - rate)


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _constants(
    query: Tensor,
    rel: Tensor | None,
    gate: Tensor | None,
    counted: Tensor | None,
    options: _Options,
    tile: Tiles,
) -> dict[str, Any]:
    chosen = {
        "HAS_REL": rel is not None,
        "HAS_GATE": gate is not None,
        "HAS_CEILING": options.ceiling is not None,
        "HAS_COUNTED": counted is not None,
        "HAS_DROPOUT": options.dropout > 0,
        "CAUSAL": options.causal,
        "PRECISION": "ieee" if float32_is_exact() else "tf32",
        "WIDTH": query.shape[-1],
        "PADDED": padded_width(query.shape[-1]),
        "BLOCK_Q": tile.queries,
        "BLOCK_K": tile.keys,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
    return chosen if tile.registers is None else chosen | {"maxnreg": tile.registers}
