"""Products by oneDNN are products: outputs and gradients, in every shape, and only where they are to be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import T5Config

from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
from mrt5cli.models.fast import products
from mrt5cli.models.fast.parts import GatedFeedForward, use_fast
from mrt5cli.models.fast.products import Linear, is_its_weight, linear, suits_onednn, works
from mrt5cli.models.recomputation import recompute

pytestmark = [
    pytest.mark.drawn,
    pytest.mark.usefixtures("fast"),
    pytest.mark.skipif(
        not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
        reason="this build of torch has not both libraries",
    ),
]
shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3)
drawn = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def every_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow weights, which tests have, count as wide."""
    monkeypatch.setattr(products, "WIDE", 0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the operators' wrappers were called."""
    calls: list[str] = []

    def counted(name: str) -> Any:
        original = getattr(products, name)

        def call(*args: Any) -> Tensor:
            calls.append(name)
            result: Tensor = original(*args)
            return result

        return call

    monkeypatch.setattr(products, "multiply", counted("multiply"))
    return calls


def slopes(output: Tensor) -> Tensor:
    return torch.linspace(-1, 2, output.numel()).view(output.shape)


# --- one product ------------------------------------------------------------------------------------------


@drawn
@given(rows=shapes, inner=st.integers(1, 40), outer=st.integers(1, 40))
def test_output_and_gradients_are_those_of_a_linear_layer(
    rows: list[int], inner: int, outer: int, asked: list[str]
) -> None:
    torch.manual_seed(sum(rows) + inner + outer)
    states = torch.randn(*rows, inner, requires_grad=True)
    weight = torch.randn(outer, inner, requires_grad=True)

    found, expected = linear(states, weight), F.linear(states, weight)

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    pairs = zip(
        torch.autograd.grad(found, [states, weight], slopes(found)),
        torch.autograd.grad(expected, [states, weight], slopes(found)),
        strict=True,
    )
    for one, other in pairs:
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert asked[-2:] == ["multiply", "multiply"]
    with torch.inference_mode():
        torch.testing.assert_close(linear(states, weight), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("laid_out", ["transposed", "sliced", "expanded"])
def test_any_layout_in_memory(laid_out: str) -> None:
    base = torch.randn(12, 12)
    states = {
        "transposed": base.t(),
        "sliced": torch.randn(12, 30)[:, 5:17],
        "expanded": torch.randn(1, 12).expand(12, 12),
    }[laid_out]
    weight = torch.randn(7, 12)

    torch.testing.assert_close(linear(states, weight), F.linear(states, weight), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        linear(states, torch.randn(12, 7).t()).shape, torch.empty(12, 7).shape, atol=0, rtol=0
    )


def test_gradients_that_are_not_needed_are_not_computed(asked: list[str]) -> None:
    states, weight = torch.randn(3, 5), torch.randn(4, 5, requires_grad=True)

    linear(states, weight).sum().backward()

    assert weight.grad is not None
    assert asked == ["multiply"]
    weight.requires_grad_(False)
    states.requires_grad_()
    linear(states, weight).sum().backward()
    torch.testing.assert_close(states.grad, weight.sum(0).expand(3, 5))
    assert weight.grad is not None and weight.grad.shape == weight.shape


# --- where it is left to PyTorch ----------------------------------------------------------------------------


def cases() -> Iterator[tuple[str, Tensor, Tensor]]:
    states, weight = torch.randn(3, 5), torch.randn(4, 5)
    yield "no rows", states[:0], weight
    yield "two dtypes", states.double(), weight
    yield "double", states.double(), weight.double()
    yield "half", states.half(), weight.half()
    yield "elsewhere", states.to("meta"), weight.to("meta")
    yield "more than its numbers", states, weight.as_subclass(type("Sharded", (Tensor,), {}))


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_what_does_not_suit(case: tuple[str, Tensor, Tensor]) -> None:
    assert not suits_onednn(case[1], case[2])


def test_it_can_be_switched_off_and_leaves_autocast_and_narrow_weights_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states, weight = torch.randn(3, 5), torch.randn(4, 5)
    assert suits_onednn(states, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits_onednn(states, weight)
        assert linear(states, weight).dtype == torch.bfloat16
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        assert not suits_onednn(states, weight)
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkl, "is_available", lambda: False)
        assert not suits_onednn(states, weight)
    assert suits_onednn(states, weight)
    monkeypatch.setattr(products, "WIDE", 21)
    assert not suits_onednn(states, weight)


def breaks(*_: Any) -> Tensor:
    raise RuntimeError("no such kernel")


def lies(states: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return states.new_zeros(len(states), len(weight))


@pytest.mark.parametrize("operator", ["multiply", "gated_product"])
@pytest.mark.parametrize("kernel", [breaks, lies])
def test_operators_that_fail_are_not_used(
    operator: str, kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert works.__wrapped__(torch.float32)
    monkeypatch.setattr(products, operator, kernel)
    assert not works.__wrapped__(torch.float32)


# --- layers -------------------------------------------------------------------------------------------------


def test_layers_that_are_not_plain_are_not_touched() -> None:
    class Adapted(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "plain": nn.Linear(4, 3, bias=False),
            "biased": nn.Linear(4, 3),
            "adapted": Adapted(4, 3, bias=False),
        }
    )
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    use_fast(model)

    assert [type(layer) for layer in model.values()] == [Linear, nn.Linear, Adapted]
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert [is_its_weight(layer) for layer in model.values()] == [True, False, False]


@pytest.mark.parametrize(
    "hook",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_a_layer_with_a_hook_is_more_than_its_weight(hook: str) -> None:
    layer = Linear(4, 3, bias=False)
    assert is_its_weight(layer)
    getattr(layer, hook)(lambda *_: None)
    assert not is_its_weight(layer)


def test_a_layer_given_a_bias_later_adds_it() -> None:
    layer = Linear(4, 3, bias=False)
    layer.bias = nn.Parameter(torch.ones(3))
    states = torch.randn(2, 4)
    torch.testing.assert_close(layer(states), F.linear(states, layer.weight) + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gated_layer_activates_within_products_when_no_gradient_is_asked_for(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not works(dtype):
        pytest.skip("no such kernel in this build of torch")
    torch.manual_seed(1)
    config = T5Config(d_model=12, d_ff=20, dropout_rate=0.5, feed_forward_proj="gated-gelu")
    layer = GatedFeedForward(config).to(dtype).eval()
    layer.wo.float()  # as transformers keeps it
    use_fast(layer)
    states = torch.randn(2, 5, 12).to(dtype)
    used: list[int] = []
    original = products.gated_product

    def counted(*args: Any) -> Tensor:
        used.append(1)
        return original(*args)

    monkeypatch.setattr("mrt5cli.models.fast.parts.gated_product", counted)
    with_gradients = layer(states)
    assert not used
    with torch.no_grad():
        found = layer(states)
    assert len(used) == 1
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(found, with_gradients.detach(), atol=tolerance, rtol=tolerance)

    with torch.no_grad():
        layer.train()(states)  # drops between activation and product
        layer.eval()
        with torch.autocast("cpu", torch.bfloat16):
            layer(states)
        handle = layer.wi_1.register_forward_hook(lambda module, args, output: -output)
        torch.testing.assert_close(layer(states), -found, atol=tolerance, rtol=tolerance)
        handle.remove()
    assert len(used) == 1


# --- whole models -------------------------------------------------------------------------------------------


def model_of(**fields: Any) -> MrT5ForConditionalGeneration:
    torch.manual_seed(3)
    shape = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 4, "num_decoder_layers": 2}
    config = MrT5Config(**{**shape, "deletion_type": "scaled_sigmoid", "dropout_rate": 0.0, **fields})
    return MrT5ForConditionalGeneration(config)


def results(model: MrT5ForConditionalGeneration, hard: bool) -> list[Tensor]:
    torch.manual_seed(4)
    ids = torch.randint(3, 259, (3, 17))
    ids[1, 5:] = 0
    labels = torch.randint(3, 259, (3, 6))
    out = model(ids, attention_mask=(ids != 0).long(), labels=labels, hard_delete=hard)
    out.loss.backward()
    grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return [out.logits.detach(), *grads]


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("what", ["none", "selective", "blocks"])
def test_a_model_computes_the_same(
    hard: bool, what: Any, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    recompute(model.train(), what)

    found = results(model, hard)
    assert len(asked) > 20
    asked.clear()
    model.zero_grad()
    monkeypatch.setattr(products, "WIDE", 2**30)
    expected = results(model, hard)

    assert not asked
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


class Counting(TorchDispatchMode):
    """Counts the products that are computed; what recomputation kept does not arrive here."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func is torch.ops.mkldnn._linear_pointwise.default
        return func(*args, **(kwargs or {}))


def test_selective_recomputation_keeps_products() -> None:
    """A product made again would cost what recomputation spares."""

    def products_of(what: Any) -> int:
        model = model_of()
        recompute(model.train(), what)
        with Counting() as counting:
            results(model, False)
        return counting.products

    once = products_of("none")
    assert products_of("selective") == once
    assert products_of("blocks") > once


def test_every_linear_layer_without_bias_is_ours_and_a_saved_model_is_as_before(tmp_path: Any) -> None:
    model = model_of()
    plain = [name for name, layer in model.named_modules() if type(layer) is nn.Linear and layer.bias is None]
    assert not plain
    model.save_pretrained(tmp_path)
    again = MrT5ForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
    assert isinstance(again.lm_head, Linear)
