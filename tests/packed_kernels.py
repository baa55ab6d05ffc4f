"""Cases of packed attention and the oracle they are held against, wherever the kernels run."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from mrt5cli.models.fast.kernels import Packed, grid
from mrt5cli.models.fast.kernels.checking import written_out

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
        gated, softmax1, ceiling: as `attend` takes them.
        dense: no position is left out between those of a row.
        causal, dropout: as `attend` takes them.
        counted: about half of the queries count for the score loss; else all.
        bias: standard deviation of the position bias.
        heads: their number.
    """

    keys: tuple[int, ...]
    queries: int | None
    width: int
    far: int | None
    gated: bool
    softmax1: bool
    ceiling: float | None
    seed: int
    dense: bool = False
    causal: bool = False
    dropout: float = 0.0
    counted: bool = False
    bias: float = 1.0
    heads: int = 2


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
        softmax1=draw(st.booleans()),
        ceiling=draw(st.none() | st.sampled_from([-1.0, 1.0])),
        seed=draw(st.integers(0, 99)),
        dense=draw(st.booleans()),
        causal=queries is None and draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.1, 0.6])),
        counted=draw(st.booleans()),
        heads=draw(st.sampled_from([1, 2, 3])),
    )


def compare(case: Case, device: str, dtype: torch.dtype = torch.float32, *, small: bool = True) -> None:
    """Outputs, excess and every gradient of `attend` against `written_out`.

    Args:
        case: the case.
        device: where the kernels run.
        dtype: of queries, keys and values.
        small: tiles of `SMALL` rows rather than those of a real launch.
    """
    from mrt5cli.models.fast.kernels.varlen import Cut, Tiles, attend

    heads, rows, count = case.heads, len(case.keys), sum(case.keys)
    query_count = count if case.queries is None else rows * case.queries
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(device)

    # Keys and values as columns of one matrix, as a joint projection gives them: strides of every kind.
    query = normal(query_count, heads, case.width, scale=0.7).to(dtype)
    key, value = normal(count, 2, heads, case.width, scale=0.7).to(dtype).unbind(1)
    rel = None if case.far is None else normal(heads, 2 * case.far + 1, scale=case.bias)
    gate = -5 * torch.rand(count, generator=generator).to(device) if case.gated else None
    inputs = [part for part in (query, key, value, rel, gate) if part is not None]
    for part in inputs:
        part.requires_grad_()

    reach = max(case.keys) + 17
    places = [torch.randperm(reach, generator=generator)[:length].sort().values for length in case.keys]
    if case.dense:
        places = [torch.arange(length) + 3 for length in case.keys]
    edges = torch.tensor([0, *case.keys], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    keys = Packed(edges.to(device), reach, torch.cat(places).int().to(device))
    queries = keys if case.queries is None else grid(rows, case.queries, torch.device(device))
    how = {"queries": queries, "keys": keys, "rel": rel, "gate": gate, "softmax1": case.softmax1}
    how |= {"causal": case.causal, "dropout": case.dropout, "score_ceiling": case.ceiling}
    if case.counted:
        how["counted"] = (torch.rand(query_count, generator=generator) < 0.5).to(device)
    cut = Cut(Tiles(2 * SMALL, SMALL, 4, 1), Tiles(SMALL, SMALL, 4, 1), Tiles(SMALL, 2 * SMALL, 4, 1))
    torch.manual_seed(case.seed)  # of dropout
    output, excess = attend(query, key, value, **how, cut=cut if small else None)
    torch.manual_seed(case.seed)
    wanted, wanted_excess = written_out(query, key, value, **how)
    assert output.dtype == dtype and (excess is None) == (case.ceiling is None)
    exact = dtype == torch.float32
    near = {"atol": 2e-4, "rtol": 1e-4} if exact else {"atol": 0.03, "rtol": 0.03}
    torch.testing.assert_close(output, wanted, **near)
    if excess is not None:
        torch.testing.assert_close(excess, wanted_excess, atol=1e-3, rtol=1e-4 if exact else 0.01)

    weight = normal(*output.shape)
    found = []
    for out, above in ((output, excess), (wanted, wanted_excess)):
        total = (out.float() * weight).sum() + (0 if above is None else 0.1 * above)
        found.append(torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True))
    for ours, theirs in zip(*found, strict=True):
        limit = 1e-5 + (1e-3 if exact else 0.03) * theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, atol=limit, rtol=0)
