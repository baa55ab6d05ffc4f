"""The router of H-Net: its probabilities, its straight-through choice and the ratio it is pulled to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from variants import LABELS, batch_of, labels_for, random_rows, tiny

from mrt5cli.models import MrT5Config
from mrt5cli.models.checkpoint import initialize_depth_scaled
from mrt5cli.models.shorteners import Sequences


def shorten(model: Any, states: torch.Tensor, **how: Any) -> Any:
    router = model.encoder.shortener
    padding = torch.zeros(states.shape[:2], dtype=torch.bool)
    return router(Sequences(states, None, padding, None), hard=how.get("hard", False), threshold=None)


def test_a_boundary_is_where_neighbours_point_elsewhere():
    model = tiny("hnet")
    right, up = torch.eye(16)[0], torch.eye(16)[1]
    states = torch.stack([right, 3 * right, right + up, up - right, -up])[None]
    root = 0.5**0.5
    probability = torch.tensor([1, 0, (1 - root) / 2, 0.5, (1 + root) / 2])
    found = shorten(model, states)
    torch.testing.assert_close(found.delete_gate_output[0], -30 * (1 - probability))
    # The cosine of the fourth is 0, and a half is no boundary.
    assert found.keep_mask[0].tolist() == [True, False, False, False, True]
    assert found.kept_lengths.tolist() == [2]
    assert shorten(model, states, hard=True).positions.tolist() == [[0, 4]]


def test_the_first_byte_of_a_row_stays_wherever_the_row_begins():
    model, (row,) = tiny("hnet"), random_rows([9])
    ids = torch.tensor([row + [0] * 3, [0] * 3 + row])
    with torch.no_grad():
        keep = model(ids, attention_mask=(ids != 0).long(), labels=labels_for(ids)).keep_mask
    assert keep[0, 0] and keep[1, 3]
    assert torch.equal(keep[0, :9], keep[1, 3:])


def test_soft_deletion_computes_what_hard_deletion_does():
    model = tiny("hnet")
    ids, mask = batch_of(random_rows([20, 12, 7]), 2)
    with torch.no_grad():
        soft, hard = (
            model(ids, attention_mask=mask, labels=labels_for(ids), hard_delete=flag)
            for flag in (False, True)
        )
    assert 3 < int(hard.kept_lengths.sum()) < 39
    torch.testing.assert_close(soft.logits, hard.logits, atol=1e-5, rtol=1e-5)


def test_the_choice_passes_gradients_straight_through():
    model = tiny("hnet").train()
    ids, mask = batch_of(random_rows([20, 12]))
    router = model.encoder.shortener
    out = model(ids, attention_mask=mask, labels=labels_for(ids))
    for loss in (out.cross_entropy, out.auxiliary_loss):
        model.zero_grad()
        loss.backward(retain_graph=True)
        assert router.query.weight.grad.abs().max() > 0
        assert router.key.weight.grad.abs().max() > 0


@pytest.mark.parametrize("ratio", [2.0, 3.0])
def test_the_ratio_loss(ratio):
    model = tiny("hnet", router_ratio=ratio, router_ratio_weight=1.0).train()
    ids = torch.tensor(random_rows([12]))
    out = model(ids, labels=LABELS)
    actual = out.keep_mask.float().mean()
    mean = (1 + out.delete_gate_output / 30).mean()
    expected = ratio / (ratio - 1) * ((ratio - 1) * actual * mean + (1 - actual) * (1 - mean))
    torch.testing.assert_close(out.auxiliary_loss, expected)
    assert model.eval()(ids, labels=LABELS).auxiliary_loss is None


@pytest.mark.parametrize("ratio", [pytest.param(1.5, marks=pytest.mark.slow), 4.0])
def test_training_reaches_the_ratio(ratio):
    """From half of random bytes, up as well as down."""
    model = tiny("hnet", router_ratio=ratio, router_ratio_weight=1.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    shares = []
    for step in range(160):
        ids = torch.tensor(random_rows([40] * 8, seed=step))
        out = model(ids, labels=LABELS.expand(8, -1).contiguous())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        shares.append(out.keep_mask.float().mean().item())
    assert abs(sum(shares[:3]) / 3 - 1 / ratio) > 0.1
    assert sum(shares[-40:]) / 40 == pytest.approx(1 / ratio, abs=0.06)


def test_projections_start_as_the_identity_whatever_scales_the_rest():
    model = tiny("hnet", awake=False)
    for change in (lambda _: None, initialize_depth_scaled):
        change(model)
        for projection in (model.encoder.shortener.query, model.encoder.shortener.key):
            assert torch.equal(projection.weight, torch.eye(16))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"router_ratio": 1.0}, "expected more than 1"), ({"router_ratio_weight": -1.0}, "expected 0 or more")],
)
def test_fields_that_make_no_sense(fields, reason):
    with pytest.raises(Exception, match=reason):
        MrT5Config(deletion_type="hnet", **fields)
    assert not hasattr(MrT5Config(), "router_ratio"), "fields of its own are no other model's"
