"""Cases of packed attention and the oracle they are held against, wherever the kernels run."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor

from mrt5cli.models.attention import softmax1

HAS_TRITON = importlib.util.find_spec("triton") is not None
NEEDS_TRITON = "needs triton, which comes with PyTorch for CUDA"
SMALL = 16
"""Rows of the smallest tile: short rows then have several."""


@dataclass(frozen=True)
class Case:
    """One call of the kernels.

    Attributes:
        keys: length of each row; with `queries`, of its keys alone.
        queries: of each row of cross-attention, a regular grid; None for self-attention.
        width: of a head.
        far: distances at which the position bias ends; None without one.
        gated, one, ceiling: as `attend` takes them.
    """

    keys: tuple[int, ...]
    queries: int | None
    width: int
    far: int | None
    gated: bool
    one: bool
    ceiling: float | None
    seed: int


@st.composite
def cases(draw: st.DrawFn, longest: int = 37) -> Case:
    """Rows of length 0 and 1, lengths beside every tile, one-row batches, everything on and off."""
    lengths = st.sampled_from([0, 1, 15, 16, 17, 33]) | st.integers(0, longest)
    keys = draw(st.lists(lengths, min_size=1, max_size=3).filter(any))
    queries = draw(st.none() | st.sampled_from([1, 7, 18]))
    return Case(
        keys=tuple(keys),
        queries=queries,
        width=draw(st.sampled_from([6, 10, 16, 64])),
        far=None if queries is not None else draw(st.none() | st.sampled_from([0, 1, 9, 200])),
        gated=draw(st.booleans()),
        one=draw(st.booleans()),
        ceiling=draw(st.none() | st.sampled_from([-1.0, 1.0])),
        seed=draw(st.integers(0, 99)),
    )


def compare(case: Case, device: str, dtype: torch.dtype = torch.float32, *, small: bool = True) -> None:
    """Outputs, excess and every gradient of `attend` against each row's attention written out in float32.

    Args:
        case: the case.
        device: where the kernels run.
        dtype: of queries, keys and values.
        small: tiles of `SMALL` rows rather than those of a real launch.
    """
    from mrt5cli.models.kernels.plan import Packed, grid
    from mrt5cli.models.kernels.varlen import Tiles, attend

    heads, count = 2, sum(case.keys)
    rows = len(case.keys)
    query_count = count if case.queries is None else rows * case.queries
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(device)

    # Heads side by side and one matrix for keys and values, as projections give them: strides of every kind.
    query = normal(query_count, heads, case.width, scale=0.7).to(dtype)
    key, value = normal(count, 2, heads, case.width, scale=0.7).to(dtype).unbind(1)
    rel = None if case.far is None else normal(heads, 2 * case.far + 1)
    gate = -5 * torch.rand(count, generator=generator).to(device) if case.gated else None
    inputs = [part for part in (query, key, value, rel, gate) if part is not None]
    for part in inputs:
        part.requires_grad_()

    reach = max(case.keys) + 17
    places = [torch.randperm(reach, generator=generator)[:length].sort().values for length in case.keys]
    positions = torch.cat(places).int().to(device)
    edges = [0, *torch.tensor(case.keys).cumsum(0).tolist()]
    at = Packed(torch.tensor(edges, dtype=torch.int32, device=device), reach, positions)
    of_queries = at if case.queries is None else grid(rows, case.queries, torch.device(device))
    output, excess = attend(
        query,
        key,
        value,
        queries=of_queries,
        keys=at,
        rel=rel,
        gate=gate,
        one=case.one,
        score_ceiling=case.ceiling,
        cut=(Tiles(SMALL, SMALL, 4, 1),) * 2 if small else None,
    )
    assert output.dtype == dtype and (excess is None) == (case.ceiling is None)

    expected, expected_excess = [], torch.zeros((), device=device)
    for row, (start, stop) in enumerate(pairwise(edges)):
        first = start if case.queries is None else row * case.queries
        last = stop if case.queries is None else first + case.queries
        q, k, v = (
            part.float().transpose(0, 1) for part in (query[first:last], key[start:stop], value[start:stop])
        )
        if stop == start:
            expected.append(torch.zeros_like(q.transpose(0, 1)))
            continue
        scores = q @ k.transpose(-1, -2)  # [N, Q, K]
        if rel is not None:
            there = positions[start:stop].long()
            distance = (there[None, :] - there[:, None]).clamp(-case.far, case.far) + case.far
            scores = scores + rel[:, distance]
        if case.ceiling is not None:
            expected_excess = expected_excess + (scores - case.ceiling).clamp(min=0).sum()
        if gate is not None:
            scores = scores + gate[start:stop]
        weights = softmax1(scores) if case.one else scores.softmax(dim=-1)
        expected.append((weights @ v).transpose(0, 1))
    wanted = torch.cat(expected)

    exact = dtype == torch.float32
    torch.testing.assert_close(
        output.float(), wanted, atol=2e-4 if exact else 0.03, rtol=1e-4 if exact else 0.03
    )
    if excess is not None:
        torch.testing.assert_close(excess, expected_excess, atol=1e-3, rtol=1e-4 if exact else 0.01)

    weight = normal(*output.shape)
    ours = (output.float() * weight).sum() + (0 if excess is None else 0.1 * excess)
    theirs = (wanted * weight).sum() + 0.1 * expected_excess
    got = torch.autograd.grad(ours, inputs)
    due = torch.autograd.grad(theirs, inputs, allow_unused=True)
    for part, other in zip(got, due, strict=True):
        other = torch.zeros_like(part) if other is None else other
        limit = 1e-5 + (1e-3 if exact else 0.03) * other.abs().max().item()
        torch.testing.assert_close(part, other, atol=limit, rtol=0)
