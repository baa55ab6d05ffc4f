"""Controllers against the authors' trajectories."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import GOLDEN

from mrt5cli.recipe import PController, PIController
from mrt5cli.training.controller import build_controller

PI = json.loads((GOLDEN / "control/pi.json").read_text())
SIMPLE = json.loads((GOLDEN / "control/simple.json").read_text())


@pytest.mark.parametrize("index", range(15))
def test_pi(index: int):
    run = PI["runs"][index]
    section = PIController(kind="pi", target_deletion_rate=run["target"], k_p=run["kp"], k_i=run["ki"])
    controller = build_controller(section)
    for rate, alpha, p, i in zip(
        run["observed"], run["coefficient"], run["p_acc"], run["i_acc"], strict=True
    ):
        controller.update(rate)
        assert controller.alpha == pytest.approx(alpha, abs=PI["tolerance"])
        assert controller.p == pytest.approx(p, abs=PI["tolerance"])
        assert controller.i == pytest.approx(i, abs=PI["tolerance"])


@pytest.mark.parametrize("index", range(15))
def test_pi_on_float32_tensors(index: int):
    run = PI["runs"][index]
    section = PIController(kind="pi", target_deletion_rate=run["target"], k_p=run["kp"], k_i=run["ki"])
    controller = build_controller(section, torch.tensor)
    expected = run["coefficient_when_rate_is_float32_tensor"]
    for rate, alpha in zip(run["observed"], expected, strict=True):
        controller.update(torch.tensor(rate))
        assert controller.alpha.dtype == torch.float32
        assert controller.alpha.item() == pytest.approx(alpha, abs=PI["tolerance_float32"])


@pytest.mark.parametrize("index", range(9))
def test_p(index: int):
    run = SIMPLE["runs"][index]
    section = PController(
        kind="p", target_deletion_rate=run["target"], k_p=run["k"], alpha_start=run["alpha0"]
    )
    controller = build_controller(section)
    assert controller.alpha == run["alpha0"]
    for rate, alpha in zip(run["observed"], run["alpha"], strict=True):
        controller.update(rate)
        assert controller.alpha == pytest.approx(alpha, abs=SIMPLE["tolerance"])


def test_all_runs_are_here():
    assert len(PI["runs"]) == 15
    assert len(SIMPLE["runs"]) == 9
