"""Every forward pass of the reference that our architectures cover, from the authors' own checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, golden_cases, read_case

from mrt5cli.models import load

STATES = {"atol": 2e-5, "rtol": 1e-4}
LOSS = {"atol": 1e-5, "rtol": 0.0}

CASES = golden_cases("t5", "mrt5", "log_sigmoid")


def run(case: dict, tensors: dict, **overrides):
    model = load(GOLDEN / case["model"], **case["config_overrides"], **overrides)
    arguments = {}
    if "hard_delete" in case:
        arguments = {
            "hard_delete": case["hard_delete"],
            "deletion_threshold": case["deletion_threshold_argument"],
        }
    with torch.no_grad():
        return model(
            tensors["in.input_ids"],
            attention_mask=tensors.get("in.attention_mask"),
            labels=tensors["in.labels"],
            **arguments,
        )


def test_all_cases_are_here():
    assert len(CASES) == 44


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
@pytest.mark.parametrize("path", CASES)
def test_forward(path: Path, attention: str):
    case, tensors = read_case(path)
    # The reference shows the first byte of a row that loses all; ours shows the best one unless configured
    # otherwise.
    overrides = {"row_without_survivors": "first"} if "row_all_deleted" in path.stem else {}
    out = run(case, tensors, attn_implementation=attention, **overrides)

    torch.testing.assert_close(out.logits, tensors["out.logits"], **STATES)
    torch.testing.assert_close(out.loss, tensors["out.loss"], **LOSS)
    expected = tensors["out.encoder_last_hidden_state"]
    # With a threshold under the gate's scale the reference keeps padding; ours never does.
    real = tensors["in.input_ids"] != 0
    slots = tensors.get("out.valid_slots", torch.ones(expected.shape[:2], dtype=torch.bool))
    if "threshold_below_scale" in path.stem:
        slots = slots & real
    if attention == "packed" and slots.shape == real.shape:
        slots = slots & real  # what is not computed is zero
    torch.testing.assert_close(out.encoder_last_hidden_state[slots], expected[slots], **STATES)
    if "out.valid_slots" in tensors and "odd_mask" not in path.stem:
        assert torch.equal(out.encoder_attention_mask.bool(), slots)

    if "out.delete_gate_output" not in tensors:
        assert out.delete_gate_output is None
        assert out.keep_mask is None
        return
    torch.testing.assert_close(out.delete_gate_output, tensors["out.delete_gate_output"][..., 0], **STATES)
    where = real if attention == "packed" else torch.ones_like(real)
    expected_logits = tensors["out.delete_gate_logits"][..., 0]
    torch.testing.assert_close(out.delete_gate_logits[where], expected_logits[where], **STATES)
    keep = tensors["out.keep_mask"] & real
    if "row_all_deleted" in path.stem:
        keep[keep.sum(dim=1) == 0, 0] = True
    assert torch.equal(out.keep_mask, keep)
    assert out.kept_lengths.tolist() == keep.sum(dim=1).tolist()


@pytest.mark.parametrize("path", golden_cases("mrt5")[-2:])
def test_every_layer(path: Path):
    case, tensors = read_case(path)
    model = load(GOLDEN / case["model"], **case["config_overrides"])
    with torch.no_grad():
        out = model(
            tensors["in.input_ids"],
            attention_mask=tensors.get("in.attention_mask"),
            labels=tensors["in.labels"],
            hard_delete=case["hard_delete"],
            output_hidden_states=True,
        )
    gate_layer = model.config.delete_gate_layer
    for side, states in (("encoder", out.encoder_hidden_states), ("decoder", out.decoder_hidden_states)):
        assert len(states) == sum(key.startswith(f"out.{side}_hidden_states") for key in tensors)
        for index, state in enumerate(states):
            expected = tensors[f"out.{side}_hidden_states.{index}"]
            slots = torch.ones(expected.shape[:2], dtype=torch.bool)
            if side == "encoder" and index > gate_layer and case["hard_delete"]:
                slots = tensors["out.valid_slots"]
            if (
                state.shape != expected.shape
            ):  # the reference reports the gate layer's input already shortened
                assert side == "encoder" and index == gate_layer
                continue
            torch.testing.assert_close(state[slots], expected[slots], **STATES)


def test_gate_layer_0_keeps_original_positions_unless_the_reference_is_asked_for():
    case, tensors = read_case(GOLDEN / "cases/mrt5/mrt5_g0_hard_padded.json")
    out = run(case, tensors, hard_delete_positions="original")
    assert (out.logits - tensors["out.logits"]).abs().max() > 0.1
