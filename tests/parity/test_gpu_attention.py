"""What `auto` chooses on a CUDA device, and attention by PyTorch's kernel there: `make test-gpu`."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from conftest import labelled
from packed_kernels import HAS_TRITON, NEEDS_TRITON
from variants import KINDS, tiny

from mrt5cli.models.attention import AttentionOptions, eager, sdpa
from mrt5cli.models.fast import fused as fused_module
from mrt5cli.models.fast.choice import choose
from mrt5cli.models.fast.fused import fused
from mrt5cli.models.fast.kernels.checking import Work, fault

sys.path.append(str(Path(__file__).parents[1] / "unit"))
import test_packed
import test_second_path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("fast"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("exact_float32"),
]
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason=NEEDS_TRITON)
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("bias", ["none", "shared", "of each row", "of each key"])
@pytest.mark.parametrize("keys", [1, 33, 64, 1000])
@pytest.mark.parametrize("queries", [1, 7, 189])
def test_the_core(queries: int, keys: int, bias: str):
    for gated, one, excess in itertools.product((True, False), repeat=3):
        with torch.device("cuda"):
            test_packed.compare_cores(2, 3, queries, keys, 64, bias, gated, one, excess)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_bfloat16_is_near(rate: float):
    """By matrix units, with float32 statistics: the same numbers in float32 are the oracle."""
    found = []
    for dtype in DTYPES:
        torch.manual_seed(3)
        parts = [torch.randn(4, 6, 256, 64).bfloat16().cuda().to(dtype) for _ in range(3)]
        bias = torch.randn(1, 6, 256, 256).bfloat16().cuda().to(dtype)
        gate = (-30 * torch.rand(4, 256)).cuda()
        given_ = [part.requires_grad_() for part in (*parts, bias, gate)]
        output, excess = fused(*given_[:4], True, gate=given_[4], ceiling=5.0, dropout=rate)
        (output.float().sin().sum() + excess / 1000).backward()
        found.append([output, excess, *(part.grad for part in given_)])
    for exact, near in zip(*found, strict=True):
        assert (near.float() - exact.float()).norm() < 0.02 * exact.float().norm()


@pytest.mark.parametrize("tile", [1, 200, 2**25])
@pytest.mark.parametrize("one", [True, False], ids=["softmax1", "softmax"])
def test_gradients_with_dropout(tile: int, one: bool):
    with torch.device("cuda"):
        test_second_path.test_gradients_with_dropout(tile, one)


def test_mean_and_variance_of_what_is_left():
    with torch.device("cuda"):
        test_second_path.test_mean_and_variance_of_what_is_left()


def batch() -> dict[str, object]:
    ids = torch.randint(3, 259, (3, 40), device="cuda")
    for row, length in enumerate((40, 23, 1)):
        ids[row, length:] = 0
    labels = torch.randint(3, 259, (3, 6), device="cuda")
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels, "real_bytes": 64}


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("variant", KINDS)
def test_model(variant: str, hard: bool):
    """Outputs, score loss and gradients of the second path and of the eager one, both there."""
    inputs, found = batch(), []
    for attention in ("eager", "sdpa"):
        model = tiny(variant, dropout_rate=0.0).cuda()
        model.set_attn_implementation(attention)
        out = model(**inputs, hard_delete=hard, output_score_loss=True, use_cache=False)
        (out.loss + out.score_loss).backward()
        found.append((out, {name: part.grad for name, part in model.named_parameters()}))
    (expected, due), (out, grads) = found
    torch.testing.assert_close(out.logits, expected.logits, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(out.score_loss, expected.score_loss, atol=1e-4, rtol=1e-4)
    for name, wanted in due.items():
        if wanted is not None:
            limit = 1e-6 + 1e-3 * wanted.abs().max().item()
            torch.testing.assert_close(grads[name], wanted, atol=limit, rtol=0, msg=labelled(name))


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("auto", marks=needs_triton)])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
def test_a_soft_training_step_waits_for_nothing(attention: str, dtype: torch.dtype):
    model, inputs = tiny("mrt5", dropout_rate=0.1).cuda().train(), batch()
    model.set_attn_implementation(attention)

    def step() -> None:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            out = model(**inputs, output_score_loss=True, use_cache=False)
        (out.loss + out.score_loss).backward()

    step()  # compiles and checks the kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_memory_is_that_of_tiles(rate: float):
    """Eight rows of 1024: their scores would be 201 MB, and eager keeps several such tensors."""
    torch.manual_seed(0)
    parts = [torch.randn(8, 6, 1024, 64, device="cuda").bfloat16().requires_grad_() for _ in range(3)]
    bias = torch.randn(1, 6, 1024, 1024, device="cuda").bfloat16().requires_grad_()
    gate = (-30 * torch.rand(8, 1024, device="cuda")).requires_grad_()
    peaks = []
    for core in (sdpa, eager):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with patch.dict(fused_module.TILES, cuda=2**21):
            options = AttentionOptions(True, dropout=rate, bias=bias, gate=gate)
            output = core(*parts, options)[0]
            torch.autograd.grad(output.float().sum(), (*parts, bias, gate))
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del output
    assert peaks[0] < 201_000_000 and peaks[0] < peaks[1] / 3


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("width", [16, 64, 128])
def test_the_self_check_passes_and_is_quick(width: int, dtype: torch.dtype):
    device = torch.device("cuda", 0)
    for drops, scored in itertools.product((False, True), repeat=2):
        work = Work(device, dtype, width, True, drops, scored, True, True)
        assert fault(work) == ""  # compiles
        start = time.perf_counter()
        fault(work)
        assert time.perf_counter() - start < 1


@needs_triton
def test_auto_is_our_kernels():
    model = tiny("mrt5").cuda()
    kind = {"drops": True, "scored": True, "trains": True}
    chosen = choose(model.config, torch.device("cuda", 0), torch.bfloat16, **kind)
    assert chosen.implementation == "triton", chosen
