"""The gate conditioned on a rate: its quantiles, thresholds that encode rates, and what training changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from variants import LABELS, batch_of, labels_for, random_rows, tiny

from mrt5cli.generation.calibration import calibrate
from mrt5cli.models import MrT5Config
from mrt5cli.models.shorteners import Sequences
from mrt5cli.recipe import LossSection, ModelSection
from mrt5cli.recipe.shorteners import of_config
from mrt5cli.training.losses import counts


def told(model: Any, low: float, high: float) -> Any:
    """The model with quantiles of scores that are spread evenly from low to high."""
    gate = model.encoder.shortener
    with torch.no_grad():
        gate.knots.copy_(torch.linspace(low, high, len(gate.knots)) / gate.gain)
    return gate


def scored(model: Any, scores: list[float]) -> Sequences:
    """A row of states that have these scores."""
    gate = model.encoder.shortener
    gate.layer_norm = None
    with torch.no_grad():
        gate.feed_forward.weight.copy_(torch.eye(16)[:1])
    states = torch.zeros(1, len(scores), 16)
    states[0, :, 0] = torch.tensor(scores)
    return Sequences(states, None, torch.zeros(1, len(scores), dtype=torch.bool), None)


def test_the_gate_value_is_the_rate_at_which_a_byte_goes():
    model = tiny("quantile")
    gate, given = told(model, -1.0, 3.0), scored(model, [-2.0, -1.0, 0.0, 1.0, 2.5, 3.0, 9.0])
    with torch.no_grad():
        found = gate(given, hard=True, threshold=None)
        lowest_rates = 1 + found.delete_gate_output / 30
        torch.testing.assert_close(lowest_rates, torch.tensor([[0.0, 0.0, 0.25, 0.5, 0.875, 1.0, 1.0]]))
        for rate, kept in [(0.0, 7), (0.2, 5), (0.3, 4), (0.6, 3), (0.9, 2)]:
            threshold = gate.threshold_at(model.config, rate)
            assert gate(given, hard=True, threshold=threshold).kept_lengths.tolist() == [kept]


def test_softly_the_cut_is_where_the_threshold_says():
    model = tiny("quantile")
    gate, scores = told(model, -1.0, 3.0), [-2.0, 0.0, 1.0, 5.0]
    given = scored(model, scores)
    for rate, cut in [(0.25, 0.0), (0.5, 1.0), (0.9, 2.6)]:
        found = gate(given, hard=False, threshold=gate.threshold_at(model.config, rate))
        expected = -30 * torch.sigmoid(cut - torch.tensor([scores]))
        torch.testing.assert_close(found.key_gate, expected, atol=1e-4, rtol=1e-4)
    assert gate(given, hard=False, threshold=gate.threshold_at(model.config, 0.0)).key_gate.eq(0).all()


def test_the_configured_rate_is_the_default_threshold():
    config = tiny("quantile", deletion_rate=0.3).config
    assert (config.threshold, config.deletion_rate) == (pytest.approx(-21.0), 0.3)
    assert tiny("quantile").config.threshold == -15.0
    config.deletion_threshold = -12.0
    assert config.deletion_rate is None


def test_quantiles_follow_the_scores_and_rates_are_met_without_calibration():
    """From knots that are far off, with scores that move; on other text, within 3 points at every rate."""
    model = tiny("quantile", awake=False).train()
    gate = told(model, 4.0, 5.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=150)
    for step in range(150):
        ids = torch.tensor(random_rows([40] * 8, seed=step))
        out = model(ids, labels=LABELS.expand(8, -1).contiguous())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        schedule.step()
    ids = torch.tensor(random_rows([40] * 32, seed=1000))
    with torch.no_grad():
        gate_BL = model.eval()(ids, labels=LABELS.expand(32, -1).contiguous()).delete_gate_output
    for rate in (0.1, 0.3, 0.5, 0.7):
        share = (gate_BL <= gate.threshold_at(model.config, rate)).float().mean().item()
        assert share == pytest.approx(rate, abs=0.03)


def test_training_draws_a_rate_for_each_pass_and_evaluation_none():
    model = tiny("quantile", lowest_rate=0.2, highest_rate=0.6)
    gate, given = told(model, 0.0, 1.0), scored(model, torch.linspace(0.001, 0.999, 500).tolist())
    with torch.no_grad():
        model.train()
        shares = torch.tensor(
            [1 - gate(given, hard=True, threshold=None).kept_lengths.item() / 500 for _ in range(60)]
        )
        assert 0.19 < shares.min() < 0.25 and 0.55 < shares.max() < 0.61
        model.eval()
        shares = [gate(given, hard=True, threshold=None).kept_lengths.item() for _ in range(3)]
    assert shares == [250, 250, 250]


def test_a_push_on_all_scores_alike_has_no_gradient():
    model = tiny("quantile").train()
    gate, given = told(model, -1.0, 1.0), scored(model, [-1.0, 0.5, 0.2, 3.0])
    states = given.states[0, :, 0]
    gate(given, hard=False, threshold=-15.0).delete_gate_logits.sum().backward()
    assert gate.feed_forward.weight.grad.abs().max() < 1e-6
    gate.zero_grad()
    gate(given, hard=False, threshold=-15.0).delete_gate_logits.square().sum().backward()
    expected = (2 * states * (states - states.mean())).sum()
    torch.testing.assert_close(gate.feed_forward.weight.grad[0, 0], expected)


def test_what_moves_quantiles_does_not_move_scores_and_the_other_way_round():
    model = tiny("quantile").train()
    gate = model.encoder.shortener
    ids, mask = batch_of(random_rows([20, 12]))
    out = model(ids, attention_mask=mask, labels=labels_for(ids))
    out.auxiliary_loss.backward(retain_graph=True)
    assert gate.knots.grad.abs().max() > 0 and gate.feed_forward.weight.grad is None
    model.zero_grad()
    out.cross_entropy.backward()
    assert gate.knots.grad is None and gate.feed_forward.weight.grad.abs().max() > 0


def test_calibration_is_what_the_gate_was_told():
    model = tiny("quantile")
    ids, mask = batch_of(random_rows([30] * 4))
    found = calibrate(model, [{"input_ids": ids, "attention_mask": mask}], [0.0, 0.4], "it")
    assert [one.threshold for one in found] == [-31.0, pytest.approx(-18.0)]
    assert found[0].conditioned and found[0].reached == 0
    assert found[1].conditioned and "threshold -18, which sets the rate and deletes " in found[1].described()
    with torch.no_grad():
        gate_BL = model(ids, attention_mask=mask, labels=labels_for(ids)).delete_gate_output
    assert found[1].reached == pytest.approx((gate_BL[mask.bool()] <= -18.0).float().mean().item())


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.5), (0.6, 0.5), (0.2, 1.0)])
def test_rates_that_make_no_sense(low, high):
    with pytest.raises(Exception, match="expected 0 <= lowest_rate"):
        MrT5Config(deletion_type="quantile", lowest_rate=low, highest_rate=high)


def test_a_rate_that_training_did_not_draw_is_said_to_be_beyond_it():
    model = tiny("quantile", lowest_rate=0.1, highest_rate=0.5, deletion_rate=0.3)
    ids, mask = batch_of(random_rows([30] * 4))
    found = calibrate(model, [{"input_ids": ids, "attention_mask": mask}], [0.05, 0.1, 0.5, 0.9], "it")
    said = "; the model was trained to delete 10 to 50 %"
    assert [said in one.described() for one in found] == [True, False, False, True]


@pytest.mark.parametrize("rate", [0.2, 0.6, 0.0])
def test_a_recipe_whose_rate_is_never_drawn_is_refused(rate):
    shortener = {"kind": "quantile_gate", "layer": 1, "lowest": 0.3, "highest": 0.5, "rate": rate}
    with pytest.raises(Exception, match=r"outside the range of training, 0\.3 to 0\.5"):
        ModelSection.model_validate({"shortener": shortener})
    ModelSection.model_validate({"shortener": shortener | {"rate": 0.3}})


def test_its_loss_is_one_mean_over_all_bytes_however_a_batch_is_cut():
    model, rows = tiny("quantile").train(), random_rows([30, 4, 17, 2])
    per_position = of_config(model.config).own_loss_per_position

    def found(some: Any) -> tuple[float, float]:
        """The loss summed over what it is a mean of, and how much that is."""
        ids, mask = batch_of(some)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels_for(ids)}
        *_, number = counts(batch, LossSection(), own_loss_per_position=per_position).tolist()
        return model(**batch).auxiliary_loss.item() * number, number

    first, second = found(rows[:2]), found(rows[2:])
    assert found(rows) == pytest.approx([first[0] + second[0], first[1] + second[1]], rel=1e-5)
