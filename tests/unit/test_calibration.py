"""A threshold for another deletion rate, found on text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrt5cli.errors import UserError
from mrt5cli.generation.calibration import Calibration, Gap, calibrate, nearest
from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration

SIZES = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2}


def tiny(**fields) -> MrT5ForConditionalGeneration:
    torch.manual_seed(0)
    model = MrT5ForConditionalGeneration(MrT5Config(**SIZES, delete_gate_layer=1, **fields))
    if fields.get("deletion_type", "scaled_sigmoid") in ("scaled_sigmoid", "log_sigmoid"):
        model.encoder.block[1].delete_gate.feed_forward.weight.data.mul_(5)
    return model


def batches(count: int = 4):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        ids = torch.randint(3, 259, (3, 40), generator=generator)
        ids[1, 25:] = 0
        yield {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize("deletion_type", ["scaled_sigmoid", "log_sigmoid"])
def test_hard_deletion_at_the_threshold_deletes_the_share(deletion_type: str):
    model = tiny(deletion_type=deletion_type).train()
    found = calibrate(model, batches(), [0.2, 0.5, 0.8], "tiny")
    assert model.training
    model.eval()
    for calibration in found:
        gone = positions = 0
        for batch in batches():
            with torch.no_grad():
                encoded = model.encoder(**batch, hard_delete=True, deletion_threshold=calibration.threshold)
            positions += int(batch["attention_mask"].sum())
            gone += int(batch["attention_mask"].sum() - encoded.kept_lengths.sum())
        assert positions == calibration.positions
        assert gone / positions == pytest.approx(calibration.reached)
        assert calibration.reached == pytest.approx(calibration.rate, abs=1 / positions)
        assert not calibration.missed


@given(st.lists(st.integers(-5, 0), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_no_other_threshold_is_nearer(values: list[int], rate: float):
    ordered = np.sort(np.array(values, dtype=np.float32))
    found = nearest(ordered, rate)
    assert found.reached == np.mean(ordered <= np.float32(found.threshold))
    wanted = round(rate * len(values)) / len(values)
    # Everything going, or nothing, is no answer where there is a choice.
    others = [np.mean(ordered <= value) for value in set(values)]
    inner = [share for share in others if share < 1] or others
    assert abs(found.reached - wanted) <= min(abs(share - wanted) for share in inner) + 1e-9


def test_a_gate_of_two_values_cannot_be_moved():
    ordered = np.sort(np.array([-30.0] * 6 + [0.0] * 4, dtype=np.float32))
    found = nearest(ordered, 0.3)
    assert found == Calibration(0.3, -15.0, 0.6, 10, Gap(0.0, 0.6, -30.0))
    assert found.missed
    words = "30 % cannot be reached: 60.0 % of positions have the same gate value, -30, so a threshold"
    assert f"{words} deletes nothing or 60.0 %" in found.described()


@given(st.lists(st.integers(-5, 0), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_a_rate_out_of_reach_lies_between_two_that_are_not(values: list[int], rate: float):
    gates = np.array(values, dtype=np.float32)
    found = nearest(gates, rate)
    assert (found.gap is None) is not found.missed
    if found.gap is not None:
        below, above, value = found.gap
        assert below < rate < above
        assert (below, above) == (np.mean(gates < value), np.mean(gates <= value))


def test_a_threshold_lies_between_gate_values():
    one = np.float32(-3)
    after = np.nextafter(one, np.float32(0))
    assert nearest(np.array([-4, -3, -2, -1], dtype=np.float32), 0.5).threshold == -2.5
    assert nearest(np.array([one, one, after, after]), 0.5).threshold == one, "there is nothing between"


def test_digits_of_the_option_tell_gate_values_apart():
    value = np.float32(-29.720539)
    option = Calibration(0.2, float(np.nextafter(value, np.float32(0))), 0.2, 10).option
    assert np.float32(option.partition("=")[2]) == np.nextafter(value, np.float32(0)) != value


def test_of_a_gate_that_is_told_its_rate_the_option_is_that():
    assert Calibration(0.2, -24.0, 0.19, 10, conditioned=True).option == "--deletion-rate=0.2"


def test_a_rate_of_nothing_deletes_nothing():
    model = tiny().eval()
    model.encoder.block[1].delete_gate.feed_forward.weight.data.mul_(1e6)  # all gates at their ends
    (found,) = calibrate(model, batches(), [0.0], "tiny")
    for batch in batches():
        with torch.no_grad():
            encoded = model.encoder(**batch, hard_delete=True, deletion_threshold=found.threshold)
        assert encoded.kept_lengths.tolist() == batch["attention_mask"].sum(dim=1).tolist()


@pytest.mark.parametrize("kind", ["none", "random", "fixed", "convolution", "boundary_predictor"])
def test_only_learned_gates(kind: str):
    with pytest.raises(UserError, match="tiny has no learned delete gate"):
        calibrate(tiny(deletion_type=kind), batches(), [0.5], "tiny")


def test_no_text():
    with pytest.raises(UserError, match="no text"):
        calibrate(tiny(), [], [0.5], "tiny")
