"""The reference's numbers on a CUDA device, and a training run there. On request: `make test-gpu`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, golden_cases, read_case

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


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
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
    from mrt5cli.training.run import outcome, pretrain

    recipe = smoke(load_recipe("local_text", [f"training.precision={precision}"]))
    run = pretrain(recipe, tmp_path / "run", device="cuda")
    assert run.is_finished
    assert json.dumps(outcome(run))
    assert "cuda" in run.meta()["device"]
