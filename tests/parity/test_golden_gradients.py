"""Gradients of the training loss, from the authors' checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, golden_cases, labelled, read_case

from mrt5cli.models import load
from mrt5cli.training.losses import gate_loss

CASES = [case for case in golden_cases("gradients") if "bpt5" not in case.id]


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
@pytest.mark.parametrize("path", CASES)
def test_gradients(path: Path, attention: str):
    case, tensors = read_case(path)
    loss = case["loss"]
    model = load(GOLDEN / case["model"], attn_implementation=attention, **case["config_overrides"])
    out = model(
        tensors["in.input_ids"],
        attention_mask=tensors.get("in.attention_mask"),
        labels=tensors["in.labels"],
        hard_delete=case["hard_delete"],
        output_score_loss=True,
        score_loss_per="batch",
    )
    gate = gate_loss(
        loss["function"],
        out.delete_gate_output,
        out.delete_gate_logits,
        tensors["in.input_ids"] != 0,
        model.config.deletion_threshold,
    )
    total = out.loss + loss["alpha"] * gate + loss["scores_loss_coeff"] * out.score_loss

    torch.testing.assert_close(out.loss, tensors["out.ce_loss"], atol=1e-5, rtol=0)
    torch.testing.assert_close(total, tensors["out.total_loss"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.score_loss, tensors["out.scores_loss"], atol=1e-5, rtol=0)

    total.backward()
    parameters = dict(model.named_parameters())
    for name, expected in ((k.removeprefix("grad."), v) for k, v in tensors.items() if k.startswith("grad.")):
        limit = 1e-6 + 1e-3 * expected.abs().max().item()
        torch.testing.assert_close(parameters[name].grad, expected, atol=limit, rtol=0, msg=labelled(name))
    for name, norm in case["gradient_norm_of_every_parameter"].items():
        grad = parameters[name].grad
        if norm is None:
            assert grad is None, name
        else:
            assert grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), name


def test_all_cases_are_here():
    assert len(CASES) == 6
