"""The training loss: what belongs to it when, and that its gradients are finite."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from mrt5cli.recipe import LossSection
from mrt5cli.training.losses import PARTS, gate_entropies, total_loss

GATE_LOSSES = get_args(LossSection.model_fields["gate_loss"].annotation)
IDS = torch.tensor([[10, 20, 30, 1, 0, 0], [40, 1, 0, 0, 0, 0]])


def model_output(*, logits: torch.Tensor | None = None, score: float | None = None, learned: bool = True):
    logits = torch.linspace(-3.0, 3.0, 12).reshape(2, 6) if logits is None else logits
    gate = (-30.0 * torch.sigmoid(-logits)).masked_fill(IDS == 0, -30.0)
    return SimpleNamespace(
        cross_entropy=torch.tensor(2.0),
        delete_gate_output=gate,
        delete_gate_logits=logits if learned else None,
        score_loss_parts=None if score is None else torch.tensor([0.75 * score, 0.25 * score]),
        auxiliary_loss=None,
    )


@pytest.mark.parametrize("kind", GATE_LOSSES)
def test_padding_is_in_no_gate_loss(kind: str):
    real = IDS != 0
    logits = torch.linspace(-3.0, 3.0, 12).reshape(2, 6)
    other = torch.where(real, logits, torch.full_like(logits, 9.0))
    settings = LossSection(gate_loss=kind)
    found = [
        total_loss(model_output(logits=z), IDS, settings, alpha=0.5, threshold=-15.0).total
        for z in (logits, other)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", GATE_LOSSES)
def test_every_enum_value_has_a_law_that_trains_the_gate(kind: str):
    logits = torch.linspace(-3.0, 3.0, 12).reshape(2, 6).requires_grad_()
    terms = total_loss(
        model_output(logits=logits), IDS, LossSection(gate_loss=kind), alpha=0.5, threshold=-15.0
    )
    terms.total.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[IDS != 0].abs().max() > 0
    assert not logits.grad[IDS == 0].any()


def test_during_the_delay_only_the_score_loss_is_added():
    settings = LossSection(score_coefficient=0.5, entropy_coefficient_1=1.0)
    terms = total_loss(model_output(score=0.2), IDS, settings, alpha=0.5, threshold=-15.0, regularized=False)
    assert terms.total.item() == pytest.approx(2.1)
    assert terms.parts[PARTS.index("gate")].item() == terms.parts[PARTS.index("entropy")].item() == 0.0
    assert terms.deleted.item() > 0  # the rate is still seen


def test_a_gate_that_is_not_learned_adds_nothing():
    terms = total_loss(model_output(learned=False), IDS, LossSection(), alpha=0.5, threshold=-15.0)
    assert terms.total.item() == 2.0
    assert terms.deleted.item() > 0


def test_no_gate_at_all():
    output = SimpleNamespace(
        cross_entropy=torch.tensor(2.0),
        delete_gate_output=None,
        delete_gate_logits=None,
        keep_mask=None,
        score_loss_parts=None,
        auxiliary_loss=torch.tensor(0.25),
    )
    terms = total_loss(output, IDS, LossSection(), alpha=0.5, threshold=-15.0)
    assert terms.total.item() == 2.25
    assert (terms.deleted.item(), terms.counted.item()) == (0.0, 6.0)


def test_deleted_means_strictly_below_the_threshold_and_not_padding():
    gate = torch.tensor(
        [[-15.0, -15.1, -14.9, -30.0, -30.0, -30.0], [-20.0, 0.0, -30.0, -30.0, -30.0, -30.0]]
    )
    output = model_output()
    output.delete_gate_output = gate
    assert total_loss(output, IDS, LossSection(), alpha=0.0, threshold=-15.0).deleted.item() == 3.0


def test_entropies_of_sure_gates_have_finite_gradients():
    gate = torch.tensor([[0.0, -1e-8, -30.0, -0.7]], requires_grad=True)
    each, overall = gate_entropies(gate)
    (each + overall).sum().backward()
    assert gate.grad is not None
    assert gate.grad.isfinite().all()


def test_pooled_positions_count_as_deleted():
    keep = torch.zeros_like(IDS, dtype=torch.bool)
    keep[:, 0] = True
    output = SimpleNamespace(
        cross_entropy=torch.tensor(2.0),
        delete_gate_output=None,
        delete_gate_logits=None,
        keep_mask=keep,
        score_loss_parts=None,
        auxiliary_loss=None,
    )
    terms = total_loss(output, IDS, LossSection(), alpha=0.0, threshold=-15.0)
    kept = int((keep & (IDS != 0)).sum())
    assert (terms.deleted.item(), terms.counted.item()) == (6.0 - kept, 6.0)
