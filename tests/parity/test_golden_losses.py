"""Loss terms against the authors', for every loss function and coefficient."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import GOLDEN, read_case

from mrt5cli.recipe import LossSection
from mrt5cli.training.losses import gate_entropies, named, total_loss

CASES, TENSORS = read_case(GOLDEN / "cases/losses/losses.json")
RESULTS = [
    (case, index) for case, content in CASES["cases"].items() for index in range(len(content["results"]))
]
NAMES = {  # the reference's names for a loss, ours
    "gate_mean_loss": "gate_mean",
    "gate_mean": "gate_mean",
    "gate_mean_with_entropy_reg": "gate_mean",
    "clamped_logits_mean": "clamped_logits_mean",
    "clamped_logits_mean_with_entropy_reg": "clamped_logits_mean",
    "logits_mean": "logits_mean",
    "gate_var_loss": "gate_variance",
}


@pytest.mark.parametrize("case, index", RESULTS)
def test_total_loss(case: str, index: int):
    content = CASES["cases"][case]
    result = content["results"][index]
    settings = LossSection(
        gate_loss=NAMES[result["loss_function"]],
        entropy_coefficient_1=result["entropy_reg_coeff_1"],
        entropy_coefficient_2=result["entropy_reg_coeff_2"],
        score_coefficient=result["scores_loss_coeff"],
    )
    log_gate = result["gate"] == "log_sigmoid"
    output = SimpleNamespace(
        cross_entropy=torch.tensor(result["cross_entropy"]),
        delete_gate_output=TENSORS[f"{case}.log_sigmoid_gate" if log_gate else f"{case}.gate"],
        delete_gate_logits=TENSORS[f"{case}.logits"],
        score_loss_parts=score_loss(case, content["delete_gate_layer"])
        if settings.score_coefficient
        else None,
        auxiliary_loss=None,
    )
    terms = total_loss(
        output,
        TENSORS[f"{case}.input_ids"],
        settings,
        alpha=result["alpha"],
        threshold=content["deletion_threshold"],
    )
    assert terms.total.item() == pytest.approx(result["total"], abs=1e-5, rel=1e-6)
    found = named(terms.parts, settings.score_coefficient)
    logged = result["logged"]["delete_gate_loss"]
    assert found["gate_loss"] == pytest.approx(logged, abs=1e-5, rel=1e-6)
    rate = 100 * (terms.deleted / terms.counted).item()
    assert rate == pytest.approx(result["logged"]["percent_non_pad_deleted_tokens"], abs=1e-4)
    if settings.score_coefficient:
        assert found["score_loss"] == pytest.approx(result["scores_loss"], abs=1e-5)


def score_loss(case: str, layer: int) -> torch.Tensor:
    """The score loss of the stored attention scores, as the model would give it: gated block and later, and
    cross-attention."""
    names = [name for name in TENSORS if name.startswith(f"{case}.encoder_scores.")]
    later = [TENSORS[name] for name in names if int(name.rsplit(".", 1)[1]) >= layer]
    crossed = [tensor for name, tensor in TENSORS.items() if name.startswith(f"{case}.cross_scores.")]
    sums = [sum((scores.clamp(min=5.0) - 5.0).mean() for scores in kind) for kind in (later, crossed)]
    return torch.tensor(sums) / len(later + crossed)


@pytest.mark.parametrize("case", list(CASES["cases"]))
@pytest.mark.parametrize("gate, suffix", [("log_sigmoid_gate", ""), ("gate", "_scaled_gate")])
def test_entropies(case: str, gate: str, suffix: str):
    each, overall = gate_entropies(TENSORS[f"{case}.{gate}"])
    torch.testing.assert_close(each, TENSORS[f"{case}.entropy_H1{suffix}"], atol=1e-5, rtol=0)
    torch.testing.assert_close(overall, TENSORS[f"{case}.entropy_H2{suffix}"], atol=1e-5, rtol=0)


def test_all_results_are_here():
    assert len(RESULTS) == 64
