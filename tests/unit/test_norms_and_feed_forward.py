"""Norm and feed-forward layer compute what transformers' do, and keep less for backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5LayerNorm

from mrt5cli.models.fast.parts import GatedFeedForward, RMSNorm

pytestmark = [pytest.mark.drawn, pytest.mark.usefixtures("fast")]

WIDTH, INNER = 12, 20
DTYPES = [torch.float32, torch.bfloat16]
shapes = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(lambda sizes: (*sizes, WIDTH))


def theirs_and_ours(
    kind: type[nn.Module], dropout: float = 0.0, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """transformers' module and ours with the same weights."""
    torch.manual_seed(1)
    modules = []
    for of in kind.__mro__[1], kind:
        module: Any
        if issubclass(of, T5LayerNorm):
            module = of(WIDTH)
            module.weight.data = torch.linspace(0.3, 1.7, WIDTH)
        else:
            module = of(
                T5Config(d_model=WIDTH, d_ff=INNER, dropout_rate=dropout, feed_forward_proj="gated-gelu")
            )
        modules.append(module.to(dtype).train())
    modules[1].load_state_dict(modules[0].state_dict())
    return modules[0], modules[1]


def run(module: Any, states: Tensor, *, autocast: bool = False) -> list[Tensor]:
    """Output, and gradients of input and weights."""
    given_ = states.detach().requires_grad_()
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = module(given_)
    slopes = torch.linspace(-1, 2, output.numel()).view(output.shape)
    module.zero_grad()
    (output.float() * slopes).sum().backward()
    return [output, given_.grad, *(weight.grad for weight in module.parameters())]


def kept(call: Callable[[], Tensor], beside: list[Tensor]) -> int:
    """Numbers that are kept between forward and backward, without `beside`."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = call()
    for tensor in beside:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    del output
    return sum(sizes.values())


# --- the norm ---------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(shape=shapes, scale=st.sampled_from([1e-4, 1.0, 1e4]))
def test_the_norm_is_theirs_to_the_last_bit(shape: tuple[int, ...], scale: float) -> None:
    theirs, ours = theirs_and_ours(RMSNorm)
    states = scale * torch.randn(shape)

    for expected, found in zip(run(theirs, states), run(ours, states), strict=True):
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("of_states", DTYPES)
@pytest.mark.parametrize("of_weight", DTYPES)
def test_the_norm_rounds_where_theirs_does(of_states: torch.dtype, of_weight: torch.dtype) -> None:
    theirs, ours = theirs_and_ours(RMSNorm, dtype=of_weight)
    states = torch.randn(3, 5, WIDTH).to(of_states)

    expected, found = run(theirs, states), run(ours, states)

    assert torch.equal(found[0], expected[0])
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=0.03, rtol=0.03)


def test_the_norm_keeps_its_input_and_a_number_a_row() -> None:
    theirs, ours = theirs_and_ours(RMSNorm)
    states = torch.randn(6, WIDTH, requires_grad=True)

    assert kept(lambda: ours(states), [ours.weight]) == 6 * WIDTH + 6
    assert kept(lambda: theirs(states), [theirs.weight]) > 6 * WIDTH * 2


def test_a_frozen_norm_has_no_gradient() -> None:
    _, ours = theirs_and_ours(RMSNorm)
    ours.weight.requires_grad_(False)

    assert run(ours, torch.randn(4, WIDTH))[2] is None


# --- the feed-forward layer -------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(shape=shapes, dropout=st.sampled_from([0.0, 0.4]))
def test_the_layer_is_theirs(shape: tuple[int, ...], dropout: float) -> None:
    theirs, ours = theirs_and_ours(GatedFeedForward, dropout)
    states = torch.randn(shape)

    for expected, found in zip(run(theirs, states), run(ours, states), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_are_slopes(dropout: float) -> None:
    _, ours = theirs_and_ours(GatedFeedForward, dropout, torch.float64)
    states = torch.randn(3, WIDTH, dtype=torch.float64, requires_grad=True)

    def call(states: Tensor, weight: Tensor) -> Any:
        torch.manual_seed(3)
        return torch.func.functional_call(ours, {"wo.weight": weight}, (states,))

    assert torch.autograd.gradcheck(call, (states, ours.wo.weight))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_bfloat16_by_autocast_or_with_the_outer_weight_in_float32(dropout: float) -> None:
    for autocast in (True, False):
        theirs, ours = theirs_and_ours(
            GatedFeedForward, dropout, torch.float32 if autocast else torch.bfloat16
        )
        states = torch.randn(5, 3, WIDTH)
        if not autocast:  # what transformers makes of `dtype=bfloat16` for a T5
            states = states.bfloat16()
            theirs.wo.float(), ours.wo.float()
        for expected, found in zip(
            run(theirs, states, autocast=autocast), run(ours, states, autocast=autocast), strict=True
        ):
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(("dropout", "masks"), [(0.0, 0), (0.4, 1)])
def test_the_layer_keeps_two_wide_tensors(dropout: float, masks: int) -> None:
    theirs, ours = theirs_and_ours(GatedFeedForward, dropout)
    states = torch.randn(6, WIDTH, requires_grad=True)

    beside = [states, *ours.parameters()]
    assert kept(lambda: ours(states), beside) == (2 + masks) * 6 * INNER
    assert kept(lambda: theirs(states), [states, *theirs.parameters()]) > 4 * 6 * INNER


def test_nothing_is_dropped_in_evaluation() -> None:
    theirs, ours = theirs_and_ours(GatedFeedForward, 0.5)
    states = torch.randn(2, 3, WIDTH)

    torch.testing.assert_close(ours.eval()(states), theirs.eval()(states), atol=1e-6, rtol=1e-5)


def test_an_outer_layer_that_does_more_is_called() -> None:
    _, hooked = theirs_and_ours(GatedFeedForward)
    states = torch.randn(2, WIDTH)
    plain = hooked(states)
    hooked.wo.register_forward_hook(lambda module, args, output: -output)
    torch.testing.assert_close(hooked(states), -plain)

    class Adapted(nn.Linear):
        def forward(self, states: Tensor) -> Tensor:
            return 2 * F.linear(states, self.weight)

    _, adapted = theirs_and_ours(GatedFeedForward)
    adapted.wo.__class__ = Adapted
    torch.testing.assert_close(adapted(states), 2 * plain)
