"""Cases of the kernels around attention, held against transformers' modules, wherever the kernels run."""

from __future__ import annotations

from dataclasses import dataclass
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.models.t5.modeling_t5 import T5LayerNorm

from mrt5cli.models.fast.kernels.randomness import kept

SHAPES = st.sampled_from([(0,), (1,), (1, 3), (7,), (2, 0), (33,)])
"""Of everything but the last dimension."""
WIDTHS = st.sampled_from([1, 6, 16, 72, 130])
LAUNCHED = "mrt5cli.models.fast.kernels.around_attention"


@dataclass(frozen=True)
class Near:
    """How near a result is to be, in shares of the largest number."""

    share: float

    def check(self, found: Tensor, wanted: Tensor) -> None:
        assert found.shape == wanted.shape
        limit = 1e-6 + self.share * (wanted.abs().max().item() if wanted.numel() else 0.0)
        torch.testing.assert_close(found.float(), wanted.float(), atol=limit, rtol=0)


def near(*dtypes: torch.dtype) -> Near:
    return Near(
        max({torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[kind] for kind in dtypes)
    )


def normal(*shape: int, device: str, dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator)).to(device, dtype)


def compare_norm(
    shape: tuple[int, ...],
    of_states: torch.dtype,
    of_weight: torch.dtype,
    of_output: torch.dtype | None,
    device: str,
    scale: float = 1.0,
) -> None:
    """`normalize` against T5LayerNorm, values and gradients.

    Args:
        of_output: what autocast would make of the result; None for what T5 returns.
    """
    from mrt5cli.models.fast.kernels.around_attention import normalize

    theirs = T5LayerNorm(shape[-1]).to(device, of_weight)
    theirs.weight.data = normal(shape[-1], device=device, dtype=of_weight, seed=1) + 1
    weight = theirs.weight.detach().clone().requires_grad_()
    states = normal(*shape, device=device, dtype=of_states, seed=2, scale=scale).requires_grad_()
    again = states.detach().clone().requires_grad_()

    wanted = theirs(again)
    wanted = wanted if of_output is None else wanted.to(of_output)
    found = normalize(states, weight, theirs.variance_epsilon, wanted.dtype)
    grad = normal(*shape, device=device, dtype=wanted.dtype, seed=3)
    wanted.backward(grad)
    found.backward(grad)

    limit = near(of_states, of_weight, wanted.dtype)
    assert found.dtype == wanted.dtype
    pairs = ((found, wanted), (states.grad, again.grad), (weight.grad, theirs.weight.grad))
    for ours, due in pairs:
        assert ours is not None and due is not None and ours.dtype == due.dtype
        limit.check(ours, due)


@dataclass(frozen=True)
class Gated:
    """One call of the gated activation.

    Attributes:
        joint: gate and factor side by side in one tensor.
        rate: share that is dropped.
        of_weight: of the last product's weight; None for that of the gate.
    """

    shape: tuple[int, ...]
    joint: bool
    rate: float
    dtype: torch.dtype
    of_weight: torch.dtype | None = None


def compare_gated(case: Gated, device: str) -> None:
    """`gated_output` against transformers' activation, with dropout's mask, values and gradients."""
    from mrt5cli.models.fast.kernels.around_attention import gated_output

    *rows, width = case.shape
    seed = torch.tensor(-(2**62) + 12345, device=device)
    of_weight = case.of_weight or case.dtype
    weight = normal(5, width, device=device, dtype=of_weight, seed=1).requires_grad_()
    both = normal(*rows, 2 * width, device=device, dtype=case.dtype, seed=2, scale=2).requires_grad_()
    copies = [part.detach().clone().requires_grad_() for part in (both, weight)]

    gate, factor = (both, None) if case.joint else both.chunk(2, dim=-1)
    with patch(f"{LAUNCHED}.draw_seed", lambda device: seed):
        found = gated_output(gate, factor, weight, case.rate)
    wanted = written_out(copies[0].float(), copies[1].float(), case.rate, seed)
    grad = normal(*found.shape, device=device, dtype=found.dtype, seed=3)
    found.backward(grad)
    wanted.backward(grad.float())

    limit = near(case.dtype, of_weight)
    assert found.dtype == of_weight
    limit.check(found, wanted)
    limit.check(both.grad, copies[0].grad)
    limit.check(weight.grad, copies[1].grad)


def compare_added(
    shape: tuple[int, ...], of_states: torch.dtype, of_update: torch.dtype, rate: float, device: str
) -> None:
    """`added` against PyTorch's sum, with the same mask, values and gradients."""
    from mrt5cli.models.fast.kernels.around_attention import added

    seed = torch.tensor(2**61 + 7, device=device)
    states = normal(*shape, device=device, dtype=of_states, seed=1).requires_grad_()
    update = normal(*shape, device=device, dtype=of_update, seed=2).requires_grad_()
    copies = [part.detach().clone().requires_grad_() for part in (states, update)]
    with patch(f"{LAUNCHED}.draw_seed", lambda device: seed):
        found = added(states, update, rate)
    wanted = copies[0] + dropped(copies[1], rate, seed)
    grad = normal(*shape, device=device, dtype=found.dtype, seed=3)
    found.backward(grad)
    wanted.backward(grad)
    assert found.dtype == wanted.dtype
    limit = near(of_states, of_update)
    for ours, due in ((found, wanted), (states.grad, copies[0].grad), (update.grad, copies[1].grad)):
        assert ours is not None and due is not None and ours.dtype == due.dtype
        limit.check(ours, due)


def written_out(both: Tensor, weight: Tensor, rate: float, seed: Tensor) -> Tensor:
    gate, factor = both.chunk(2, dim=-1)
    hidden = dropped(NewGELUActivation()(gate) * factor, rate, seed)
    return nn.functional.linear(hidden, weight)


def dropped(states: Tensor, rate: float, seed: Tensor) -> Tensor:
    """Dropout with the kernels' mask."""
    matrix = states.reshape(-1, states.shape[-1])
    lines, columns = (torch.arange(size, device=states.device) for size in matrix.shape)
    keep = kept(seed, lines[:, None], columns, rate).view(states.shape)
    return states * keep / (1 - rate)
