"""The reference's numbers on a CUDA device, and a training run there. On request: `make test-gpu`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, golden_cases, labelled, read_case
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_kernels import HAS_TRITON, NEEDS_TRITON, Case, compare
from variants import KINDS, tiny

from mrt5cli.models import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("exact_float32"),
]


@pytest.mark.parametrize("attention", ["eager", "sdpa", "triton"])
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
            **inputs,
            hard_delete=case["hard_delete"],
            deletion_threshold=case["deletion_threshold_argument"],
            use_cache=False,
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
LONG = Case((300, 1, 0, 129), None, 64, 128, True, True, 1.0, 0, dropout=0.1)
"""Rows of many tiles, some of them further apart than the bias reaches."""
KERNELS = {
    "long": LONG,
    "long and dense": replace(LONG, dense=True, far=40),
    "without dropout": replace(LONG, dense=True, dropout=0.0, ceiling=None),
    "plain": replace(LONG, far=None, gated=False, softmax1=False, ceiling=None, dropout=0.0),
    "targets": replace(LONG, dense=True, causal=True, gated=False, ceiling=None),
    "cross": Case((0, 65, 200), 189, 64, None, True, True, 1.0, 0, dropout=0.1, counted=True),
    "wide": Case((0, 65), 7, 128, None, True, False, 1.0, 0),
    "narrow": Case((33, 1), None, 6, 9, True, True, 1.0, 0, dropout=0.6, heads=16),
}
"""Each of other switches, which are compiled in: cases drawn at will would compile for minutes."""


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("small", [True, False], ids=["small tiles", "launched tiles"])
@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_packed_kernels(case: Case, small: bool, dtype: torch.dtype):
    compare(case, "cuda", dtype, small=small)


@needs_triton
@pytest.mark.hypothesis
def test_packed_kernels_of_drawn_shapes():
    """Of switches that are compiled already."""

    @settings(max_examples=60, deadline=None, database=None)
    @given(keys=st.lists(st.integers(0, 300), min_size=1, max_size=4).filter(any), seed=st.integers(0, 99))
    def check(keys: list[int], seed: int):
        compare(replace(LONG, keys=tuple(keys), seed=seed, dense=seed % 2 == 0), "cuda", small=False)

    check()


@needs_triton
@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("variant", KINDS)
def test_packed_model(variant: str, hard: bool):
    """Outputs, score loss and gradients of the packed path and of the eager one, both there; the decoder's
    self-attention is packed, too."""
    ids = torch.randint(3, 259, (3, 40), device="cuda")
    for row, length in enumerate((40, 23, 1)):
        ids[row, length:] = 0
    labels = torch.randint(3, 259, (3, 6), device="cuda")
    labels[1, 4:] = -100
    how = {"hard_delete": hard, "output_score_loss": True, "use_cache": False}
    found = []
    for attention in ("eager", "triton"):
        model = tiny(variant, dropout_rate=0.0).cuda()
        model.set_attn_implementation(attention)
        for name, part in model.named_parameters():
            if name.endswith("Attention.q.weight"):
                part.data.mul_(20)  # scores that pass the ceiling of the score loss
        out = model(ids, attention_mask=(ids != 0).long(), labels=labels, **how)
        (out.loss + out.score_loss).backward()
        found.append((out, {name: part.grad for name, part in model.named_parameters()}))
    (expected, due), (out, grads) = found
    torch.testing.assert_close(out.logits, expected.logits, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(out.score_loss_parts, expected.score_loss_parts, atol=1e-4, rtol=1e-4)
    assert torch.equal(out.kept_lengths, expected.kept_lengths)
    for name, wanted in due.items():
        if wanted is not None:
            limit = 1e-6 + 2e-3 * wanted.abs().max().item()
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
        stops = waiting(lambda: model(ids, **given_))
    assert len(stops) == waits, stops


def waiting(call: Callable[[], object]) -> list[str]:
    """Where a call waits for the device, once all that it runs is compiled."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    stops = [warning for warning in seen if "synchronizing" in str(warning.message)]
    return [f"{stop.filename}:{stop.lineno}" for stop in stops]


@needs_triton
def test_a_soft_step_waits_for_nothing_and_drops_as_its_generator_says():
    """With dropout, score loss and ragged rows, in bfloat16 over float32 weights."""
    model = tiny("mrt5", dropout_rate=0.1).cuda().train()
    model.set_attn_implementation("triton")
    ids = torch.randint(3, 259, (3, 40), device="cuda")
    ids[1, 23:] = 0
    labels = torch.randint(3, 259, (3, 20), device="cuda")
    given_ = {"attention_mask": (ids != 0).long(), "labels": labels, "output_score_loss": True}
    losses = []

    def step() -> None:
        torch.cuda.manual_seed(5)
        with torch.autocast("cuda", torch.bfloat16):
            out = model(ids, **given_, real_bytes=103, use_cache=False)
        (out.loss + out.score_loss).backward()
        losses.append(out.loss.detach())

    assert not waiting(step)
    assert torch.equal(*losses) and losses[0].isfinite()
