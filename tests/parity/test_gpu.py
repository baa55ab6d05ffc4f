"""The reference's numbers on a CUDA device, and a training run there. On request: `make test-gpu`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, golden_cases, labelled, read_case
from hypothesis import example, given, settings
from packed_kernels import HAS_TRITON, NEEDS_TRITON, Case, cases, compare
from variants import KINDS, tiny

from mrt5cli.models import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def exact_float32():
    """TF32 would round matrix products to 10 bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed", "triton"])
@pytest.mark.parametrize("dtype, limit", [("float32", 2e-4), ("bfloat16", None)])
@pytest.mark.parametrize("path", golden_cases("mrt5"))
def test_forward(path: Path, dtype: str, limit: float | None, attention: str):
    case, tensors = read_case(path)
    if "row_all_deleted" in path.stem:
        case["config_overrides"]["row_without_survivors"] = "first"
    overrides = case["config_overrides"]
    model = load(GOLDEN / case["model"], dtype=dtype, attn_implementation=attention, **overrides).cuda()
    inputs = {name.removeprefix("in."): value.cuda() for name, value in tensors.items() if "in." in name[:3]}
    with torch.no_grad():
        out = model(
            **inputs, hard_delete=case["hard_delete"], deletion_threshold=case["deletion_threshold_argument"]
        )
    if limit is None:
        assert out.loss.item() == pytest.approx(tensors["out.loss"].item(), rel=0.1)
    else:
        torch.testing.assert_close(out.logits.cpu(), tensors["out.logits"], atol=limit, rtol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_the_gpu(tmp_path: Path, precision: str):
    from mrt5cli.recipe import load as load_recipe
    from mrt5cli.recipe import smoke
    from mrt5cli.training.choose import choose
    from mrt5cli.training.plan import RunOptions
    from mrt5cli.training.record import outcome
    from mrt5cli.training.run import execute

    recipe = smoke(load_recipe("local_text", [f"training.precision={precision}"]))
    run = execute(choose(recipe, RunOptions(tmp_path / "run", device="cuda")))
    assert run.is_finished
    assert json.dumps(outcome(run))
    assert "cuda" in run.meta()["device"]


needs_triton = pytest.mark.skipif(not HAS_TRITON, reason=NEEDS_TRITON)
LONG = Case((300, 1, 0, 129), None, 64, 128, True, True, 1.0, 0)
"""Rows of many tiles, some of them further apart than the bias reaches."""


@needs_triton
@pytest.mark.hypothesis
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("small", [True, False], ids=["small tiles", "launched tiles"])
def test_packed_kernels(dtype: torch.dtype, small: bool):
    @settings(max_examples=40, deadline=None, database=None)
    @given(case=cases(longest=150))
    @example(LONG)
    @example(Case((0, 65), 7, 128, None, True, False, 1.0, 0))
    def check(case: Case):
        compare(case, "cuda", dtype, small=small)

    check()


@needs_triton
@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("variant", KINDS)
def test_packed_model(variant: str, hard: bool):
    """Outputs and gradients of the packed path and of the eager one, both there."""
    ids = torch.randint(3, 259, (3, 40), device="cuda")
    for row, length in enumerate((40, 23, 1)):
        ids[row, length:] = 0
    labels = torch.randint(3, 259, (3, 6), device="cuda")
    found = []
    for attention in ("eager", "triton"):
        model = tiny(variant, dropout_rate=0.0).cuda()
        model.set_attn_implementation(attention)
        out = model(ids, attention_mask=(ids != 0).long(), labels=labels, hard_delete=hard)
        out.loss.backward()
        found.append((out, {name: part.grad for name, part in model.named_parameters()}))
    (expected, due), (out, grads) = found
    torch.testing.assert_close(out.logits, expected.logits, atol=2e-4, rtol=1e-4)
    assert torch.equal(out.kept_lengths, expected.kept_lengths)
    for name, wanted in due.items():
        if wanted is not None:
            limit = 1e-6 + 1e-3 * wanted.abs().max().item()
            torch.testing.assert_close(grads[name], wanted, atol=limit, rtol=0, msg=labelled(name))


@needs_triton
@pytest.mark.parametrize("known, waits", [(True, 1), (False, 2)], ids=["bytes counted", "bytes not counted"])
def test_hard_deletion_waits_for_the_device_once(known: bool, waits: int):
    model = tiny("mrt5").cuda().eval()
    model.set_attn_implementation("triton")
    ids = torch.randint(3, 259, (3, 40), device="cuda")
    ids[1, 23:] = 0
    given_ = {
        "attention_mask": (ids != 0).long(),
        "labels": torch.randint(3, 259, (3, 6), device="cuda"),
        "hard_delete": True,
        "real_bytes": 103 if known else None,
    }
    with torch.no_grad():
        model(ids, **given_)  # compiles the kernels
        torch.cuda.synchronize()
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                model(ids, **given_)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    stops = [warning for warning in seen if "synchronizing" in str(warning.message)]
    assert len(stops) == waits, [f"{stop.filename}:{stop.lineno}" for stop in stops]
