"""Which implementation of attention serves where, and the self-check by which `auto` chooses on a GPU."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from packed_kernels import HAS_TRITON, NEEDS_TRITON
from test_packed import pair, ragged

from mrt5cli.models import MrT5Config
from mrt5cli.models.attention import IMPLEMENTATIONS
from mrt5cli.models.fast import choice, kernels
from mrt5cli.models.fast.choice import Choice, choose
from mrt5cli.models.fast.kernels.checking import Work, fault, written_out
from mrt5cli.models.fast.switch import fast_paths

pytestmark = pytest.mark.usefixtures("fast")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
Per = Literal["row", "batch"] | None
VARLEN = "mrt5cli.models.fast.kernels.varlen"


def chosen(
    name: str | None, device: torch.device, width: int = 64, score_per: Per = "row", **fields: Any
) -> Choice:
    config = MrT5Config(d_kv=width, **fields)
    config._attn_implementation_internal = None if name is None else IMPLEMENTATIONS[name]
    return choose(config, device, torch.float32, drops=True, score_per=score_per, trains=True)


@pytest.fixture
def kernel(monkeypatch):
    """This machine has triton, and `core`, which a test may replace, is our kernels."""
    found = SimpleNamespace(core=written_out, calls=[])

    def attend(*tensors, **how):
        found.calls.append(how)
        return found.core(*tensors, **how)

    choice._checked.cache_clear()
    monkeypatch.setitem(sys.modules, VARLEN, SimpleNamespace(attend=attend))
    monkeypatch.setattr(choice, "obstacle", lambda *_: None)
    yield found
    choice._checked.cache_clear()


@pytest.mark.parametrize(
    "name, implementation",
    [
        (None, "packed"),
        ("auto", "packed"),
        ("packed", "packed"),
        ("triton", "packed"),
        ("sdpa", "sdpa"),
        ("eager", "eager"),
    ],
)
def test_on_a_cpu(name: str | None, implementation: str):
    assert chosen(name, CPU, score_per=None).implementation == implementation
    assert chosen(name, CPU).implementation == implementation.replace(
        "packed", "sdpa"
    )  # pads with a score loss
    with fast_paths(False):
        off = chosen(name, CPU)
    assert off.implementation == ("eager" if name == "eager" else "sdpa")


def test_what_keeps_the_kernels_away_is_said(monkeypatch, caplog):
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    assert str(chosen("auto", CUDA)) == "sdpa (triton is not installed)"
    assert str(chosen("triton", CUDA)) == "sdpa (triton is not installed)"
    monkeypatch.setattr(kernels, "_has_triton", lambda: True)
    assert "200 wide" in chosen("auto", CUDA, 200).reason
    torch.use_deterministic_algorithms(True)
    try:
        assert str(chosen("auto", CUDA)) == "sdpa (deterministic algorithms are requested)"
    finally:
        torch.use_deterministic_algorithms(False)
    assert chosen("packed", CUDA).implementation == chosen("sdpa", CUDA).implementation == "sdpa"
    assert chosen("triton", CUDA) == Choice("triton", "as requested")
    assert not caplog.records


def test_right_kernels_are_chosen_after_one_check(kernel):
    before = torch.get_rng_state()
    assert chosen("auto", CPU).implementation == "triton"
    calls = len(kernel.calls)
    assert calls == 4 and all(how["dropout"] and how["score_ceiling"] for how in kernel.calls)
    assert torch.equal(torch.get_rng_state(), before)  # a run's numbers are the same with and without it
    assert chosen("auto", CPU).implementation == "triton" and len(kernel.calls) == calls
    assert chosen("auto", CPU, 32).implementation == "triton" and len(kernel.calls) == 2 * calls


def test_rules_that_look_at_padding_are_not_for_packed_rows(kernel):
    for name in ("auto", "packed", "triton"):
        assert chosen(name, CPU, score_per=None, shortening_per="batch").implementation == "sdpa"
    found = chosen("auto", CPU, score_per="batch")
    assert found.implementation == "triton" and "sdpa for batches with padding" in found.reason
    assert "padding" not in chosen("auto", CPU, score_per="row").reason


@pytest.mark.parametrize(
    ("switch", "exact"),
    [
        (lambda: torch.set_float32_matmul_precision("high"), False),
        (lambda: torch.set_float32_matmul_precision("highest"), True),
        (lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"), False),
        (lambda: setattr(torch.backends, "fp32_precision", "tf32"), False),
        (lambda: setattr(torch.backends, "fp32_precision", "ieee"), True),
    ],
    ids=["high", "highest", "matmul tf32", "all tf32", "all ieee"],
)
def test_either_switch_of_exact_products_is_read(switch, exact):
    try:
        switch()
        assert kernels.float32_is_exact() == exact
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision = "none"  # as in a new process: it follows the other


def without(name: str, **wrong):
    """Kernels that forget one argument."""
    return lambda *tensors, **how: written_out(*tensors, **{**how, name: wrong.get("by")})


def raising(*_, **__):
    raise RuntimeError("out of resource: shared memory\nRequired: 200000")


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


def wrong_gradient(query, key, value, *, gate, **how):
    return written_out(query, key, value, gate=None if gate is None else Halved.apply(gate), **how)


@pytest.mark.parametrize(
    "core, words",
    [
        (raising, "RuntimeError: out of resource: shared memory"),
        (wrong_gradient, "the gradient of the gate of gated self-attention is off by"),
        (without("gate"), "the output of gated self-attention is off by"),
        (without("causal", by=False), "the output of causal self-attention is off by"),
        (without("counted"), "the score loss of cross-attention is off by"),
        (without("dropout", by=0.0), "the output of self-attention is off by"),
        (without("score_ceiling", by=0.5), "the score loss of self-attention is off by"),
        (lambda *t, **how: (written_out(*t, **how)[0] * float("nan"), torch.zeros(())), "is off by nan"),
    ],
)
def test_wrong_kernels_are_not_chosen_and_a_warning_says_so_once(kernel, caplog, core, words: str):
    kernel.core = core
    with caplog.at_level(logging.WARNING):
        first, second = chosen("auto", CPU), chosen("auto", CPU)
    assert first == second and first.implementation == "sdpa" and words in first.reason
    [record] = caplog.records
    assert words in record.getMessage() and "uses PyTorch's kernel" in record.getMessage()


@pytest.mark.parametrize("right", [True, False])
def test_a_model_goes_the_way_that_was_chosen(kernel, right: bool):
    model, auto = pair("auto", use_softmax1=True)
    ids, mask = ragged([9, 5], 9, 3)
    given_ = {"attention_mask": mask, "labels": ids[:, :4].clamp(min=3), "use_cache": False}
    if not right:
        kernel.core = without("gate")
    expected = model(ids, **given_).logits
    kernel.calls.clear()
    found = auto(ids, **given_).logits
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    checks = 4 if right else 2  # the second is the gated one
    assert len(kernel.calls) == checks + (7 if right else 0)


@pytest.mark.skipif(not HAS_TRITON or torch.cuda.is_available(), reason=NEEDS_TRITON)
@pytest.mark.parametrize("drops, scored, trains", [(True, True, True), (False, False, False)])
def test_the_kernels_pass_in_the_interpreter(drops: bool, scored: bool, trains: bool):
    assert fault(Work(CPU, torch.float32, 16, True, drops, scored, trains, True)) == ""
