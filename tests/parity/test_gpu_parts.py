"""What is around attention, compiled for a CUDA device and run there. On request: `make test-gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import labelled
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packed_kernels import HAS_TRITON, NEEDS_TRITON
from row_kernels import LAUNCHED, SHAPES, WIDTHS, Gated, compare_added, compare_gated, compare_norm
from variants import tiny

from mrt5cli.models.fast.kernels import rows_run_on
from mrt5cli.models.fast.switch import fast_paths
from mrt5cli.models.recomputation import recompute

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not HAS_TRITON, reason=NEEDS_TRITON),
    pytest.mark.usefixtures("fast"),
    pytest.mark.usefixtures("exact_float32"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def test_the_kernels_are_right_here():
    """Their own check, which a model asks before it takes them."""
    device = torch.device("cuda", torch.cuda.current_device())
    assert rows_run_on(torch.ones(3, 64, device=device), torch.ones(64, device=device))


@settings(max_examples=40, deadline=None)
@given(
    rows=SHAPES,
    width=WIDTHS | st.sampled_from([1472, 5000]),
    of_states=st.sampled_from(DTYPES),
    of_weight=st.sampled_from(DTYPES),
    of_output=st.sampled_from([None, torch.bfloat16]),
)
@example((16, 1024), 1472, torch.float32, torch.float32, torch.bfloat16)
@example((5000,), 64, torch.float32, torch.float32, None)
def test_the_norm(rows, width, of_states, of_weight, of_output):
    compare_norm((*rows, width), of_states, of_weight, of_output, "cuda")


@settings(max_examples=40, deadline=None)
@given(
    rows=SHAPES,
    width=WIDTHS | st.sampled_from([3584]),
    joint=st.booleans(),
    rate=st.sampled_from([0.0, 0.1, 0.75]),
    dtype=st.sampled_from(DTYPES),
    of_weight=st.sampled_from([None, torch.float32]),
)
@example((4, 1024), 3584, True, 0.1, torch.bfloat16, None)
def test_the_gated_activation(rows, width, joint, rate, dtype, of_weight):
    compare_gated(Gated((*rows, width), joint, rate, dtype, of_weight), "cuda")


@settings(max_examples=30, deadline=None)
@given(
    rows=SHAPES,
    width=WIDTHS | st.sampled_from([1472]),
    of_states=st.sampled_from(DTYPES),
    of_update=st.sampled_from(DTYPES),
    rate=st.sampled_from([0.1, 0.75]),
)
@example((4, 1024), 1472, torch.float32, torch.bfloat16, 0.1)
def test_the_residual(rows, width, of_states, of_update, rate):
    compare_added((*rows, width), of_states, of_update, rate, "cuda")


@pytest.mark.parametrize("recomputed", ["none", "selective", "blocks"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_the_model(autocast: bool, recomputed: Any):
    """With what is here and without, the attention being the same."""
    model = tiny("mrt5", use_softmax1=True, d_model=64, d_ff=96).cuda()
    model.set_attn_implementation("eager")
    ids = torch.randint(3, 259, (3, 40), device="cuda")
    for row, length in enumerate((40, 23, 1)):
        ids[row, length:] = 0
    given_ = {"attention_mask": (ids != 0).long(), "labels": ids[:, :6].clamp(min=3), "use_cache": False}
    found = []
    for fast in (False, True):
        recompute(model.train(), recomputed if fast else "none")
        model.zero_grad()
        with fast_paths(fast), torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            out = model(ids, **given_)
        with fast_paths(fast):  # blocks are computed again in backward
            out.loss.backward()
        grads = {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
        found.append((out.logits, grads))
    (expected, due), (logits, grads) = found
    share, least = (0.06, 2e-3) if autocast else (1e-4, 1e-6)
    torch.testing.assert_close(logits, expected, atol=share, rtol=share)
    assert grads.keys() == due.keys()
    for name, wanted in due.items():
        away = (grads[name] - wanted).norm().item()
        assert away <= least + 4 * share * wanted.norm().item(), labelled(name)(f"{away:g} away")


def test_a_feed_forward_half_reads_and_writes_little():
    """What it keeps at the width of byt5-small under autocast, in bytes a row: 4 D for x, 2 D for its norm, a
    number, 4 F for gate and factor; no masks."""
    model = tiny("none", d_model=1472, d_ff=3584, dropout_rate=0.1).cuda().train()
    half = model.encoder.block[0].layer[-1]
    rows, wide, inner = 4096, 1472, 3584
    states = torch.randn(1, rows, wide, device="cuda", requires_grad=True)
    half(states).sum().backward()  # compiles, and makes the gradients
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        output = half(states)
    torch.cuda.synchronize()
    kept = torch.cuda.memory_allocated() - before - output.nbytes
    expected = rows * (2 * wide + 4 + 4 * inner) + 3 * wide * inner * 2
    assert kept <= 1.02 * expected, (kept, expected, LAUNCHED)


def test_a_training_step_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """PyTorch itself raises where a step of a run would wait for the device, from the second step on: the
    first one compiles."""
    from mrt5cli.recipe import load, smoke
    from mrt5cli.training.choose import choose
    from mrt5cli.training.plan import RunOptions
    from mrt5cli.training.run import execute
    from mrt5cli.training.trainer import DeletionTrainer

    weigh, rate, strict = DeletionTrainer._weigh, DeletionTrainer._get_learning_rate, []

    def begin(self: DeletionTrainer, batches: Any) -> Any:
        if self.state.global_step >= 1:
            strict.append(self.state.global_step)
            torch.cuda.set_sync_debug_mode("error")
        return weigh(self, batches)

    def end(self: DeletionTrainer) -> float:  # the optimizer is through, and callbacks may look
        torch.cuda.set_sync_debug_mode("default")
        return rate(self)

    monkeypatch.setattr(DeletionTrainer, "_weigh", begin)
    monkeypatch.setattr(DeletionTrainer, "_get_learning_rate", end)
    settings_ = ["training.precision=bf16", "loss.hard_delete_probability=0", "loss.score_coefficient=0.1"]
    try:
        run = execute(
            choose(smoke(load("local_text", settings_)), RunOptions(tmp_path / "run", device="cuda"))
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.is_finished and len(strict) >= 2
