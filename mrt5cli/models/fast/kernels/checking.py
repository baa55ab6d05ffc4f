"""The self-check of our attention kernels: a few short, ragged rows against written-out mathematics.

Compilers and drivers differ between GPUs, and a wrong gradient looks like bad luck for days. So the check
runs before the first batch, on the exact programs that will be used.

Legend: n positions of all rows laid end to end, N heads, H head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrt5cli.models.attention import softmax1 as softmax_1
from mrt5cli.models.fast.kernels import Packed, grid
from mrt5cli.models.fast.kernels.randomness import draw_seed, kept


class Work(NamedTuple):
    """The properties of a call that select its kernel programs: head width, softmax1, whether attention
    weights are dropped, the score loss is computed, gradients are required, float32 products are exact."""

    device: torch.device
    dtype: torch.dtype
    width: int
    softmax1: bool
    drops: bool
    scored: bool
    trains: bool
    exact: bool


Attend = Callable[..., tuple[Tensor, Tensor | None]]
KEYS, TARGETS = (70, 1, 0, 33), 5
"""Lengths of the rows, which are no multiples of a tile, and of the targets that attend to them."""
HEADS, FAR, CEILING, RATE = 2, 16, 1.0, 0.3


def fault(work: Work) -> str:
    """A description of what is wrong with the kernels, or ""; takes as long as compiling them."""
    try:
        from mrt5cli.models.fast.kernels.varlen import attend  # needs triton

        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(work.device.type, enabled=False),
        ):
            return next(_differences(work, attend), "")
    except Exception as error:  # a compiler or a driver may raise anything
        return f"{type(error).__name__}: {error}".strip().split("\n")[0]


def _differences(work: Work, attend: Attend) -> Iterator[str]:
    for place, (tensors, how) in _calls(work).items():
        found, wanted = (_results(core, tensors, how, work) for core in (attend, written_out))
        for what, due in wanted.items():
            difference = (found[what].float() - due.float()).abs().max().item()
            largest = due.float().abs().max().item()
            if not difference <= _limit(work) * largest + 1e-5:  # also if it is NaN
                yield f"{what} of {place} is off by {difference:.2g}, where the largest is {largest:.2g}"


def _limit(work: Work) -> float:
    """The largest error allowed, relative to the largest value."""
    if work.dtype != torch.float32:
        return 0.04
    return 1e-3 if work.exact else 0.02


def _calls(work: Work) -> dict[str, tuple[dict[str, Tensor], dict[str, Any]]]:
    """The calls that a model makes: tensors and options of each."""
    generator, count = torch.Generator().manual_seed(0), sum(KEYS)

    def normal(*shape: int) -> Tensor:
        return (0.7 * torch.randn(*shape, generator=generator)).to(work.device)

    def states(length: int) -> dict[str, Tensor]:
        # Views of one matrix, like the results of a joint projection.
        joint = normal(count, 2, HEADS, work.width).to(work.dtype)
        query = normal(length, HEADS, work.width).to(work.dtype)
        return {"query": query, "key": joint[:, 0], "value": joint[:, 1]}

    bounds = torch.tensor([0, *KEYS], device=work.device).cumsum(0).to(torch.int32)
    places = torch.cat([3 * torch.arange(length) for length in KEYS]).to(work.device, torch.int32)
    packed, targets = Packed(bounds, max(KEYS), places), grid(len(KEYS), TARGETS, work.device)
    rel, gate = normal(HEADS, 2 * FAR + 1), -5 * normal(count).abs()
    counted = torch.arange(len(KEYS) * TARGETS, device=work.device) % TARGETS < TARGETS - 1
    alone, over = {"queries": packed, "keys": packed}, {"queries": targets, "keys": packed}
    return {
        "self-attention": ({**states(count), "rel": rel}, alone),
        "gated self-attention": ({**states(count), "rel": rel, "gate": gate}, alone),
        "causal self-attention": ({**states(count), "rel": rel}, alone | {"causal": True}),
        "cross-attention": (
            {**states(len(KEYS) * TARGETS), "gate": gate},
            over | ({"counted": counted} if work.scored else {}),
        ),
    }


def _results(core: Attend, tensors: dict[str, Tensor], how: dict[str, Any], work: Work) -> dict[str, Tensor]:
    """Output, score loss and gradients by name; every core gets the same random numbers."""
    given = {name: part.detach().requires_grad_(work.trains) for name, part in tensors.items()}
    with torch.random.fork_rng([work.device] if work.device.type == "cuda" else []):
        output, excess = core(
            **{"rel": None, "gate": None, **given},
            **how,
            softmax1=work.softmax1,
            score_ceiling=CEILING if work.scored else None,
            dropout=RATE if work.drops else 0.0,
        )
    results = {"the output": output.detach()}
    total = (output.float() * torch.linspace(-1, 1, output.numel(), device=work.device).view_as(output)).sum()
    if excess is not None:
        results["the score loss"], total = excess.detach(), total + 0.1 * excess
    if work.trains:
        gradients = torch.autograd.grad(total, tuple(given.values()), materialize_grads=True)
        results |= {f"the gradient of the {name}": part for name, part in zip(given, gradients, strict=True)}
    return results


def written_out(
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
) -> tuple[Tensor, Tensor | None]:
    """`varlen.attend` written out: each row's attention step by step in float32."""
    outputs, excess = [], torch.zeros((), device=query.device)
    seed = draw_seed(query.device) if dropout else None
    spans = [pairwise(packed.bounds.tolist()) for packed in (queries, keys)]
    for (first, last), (start, stop) in zip(*spans, strict=True):
        q, k, v = (
            part.float().transpose(0, 1) for part in (query[first:last], key[start:stop], value[start:stop])
        )
        if stop == start:
            outputs.append(torch.zeros_like(q.transpose(0, 1)))
            continue
        scores = q @ k.transpose(-1, -2)  # [N, Q, K]
        if rel is not None:
            assert queries.positions is not None and keys.positions is not None
            far = rel.shape[1] // 2
            here, there = queries.positions[first:last].long(), keys.positions[start:stop].long()
            scores = scores + rel[:, (there[None, :] - here[:, None]).clamp(-far, far) + far]
        places = torch.arange(stop - start, device=query.device)
        if causal:
            scores = scores.masked_fill(places > places[:, None], float("-inf"))
        if score_ceiling is not None:
            above = (scores - score_ceiling).clamp(min=0)
            excess = excess + (above if counted is None else above * counted[first:last, None]).sum()
        if gate is not None:
            scores = scores + gate[start:stop]
        weights = softmax_1(scores) if softmax1 else scores.softmax(dim=-1)
        if seed is not None:
            lines = torch.arange(len(q), device=query.device)[:, None] * len(query)
            lines = (lines + torch.arange(first, last, device=query.device))[..., None]
            weights = weights * kept(seed, lines, places, dropout) / (1 - dropout)
        outputs.append((weights @ v).transpose(0, 1))
    return torch.cat(outputs).to(query.dtype), None if score_ceiling is None else excess
