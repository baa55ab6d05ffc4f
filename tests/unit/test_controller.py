"""Controllers: what holds whatever the rates are, on floats and on tensors alike."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrt5cli.recipe import ConstantController, PController, PIController, TwoSidedPIController
from mrt5cli.training.controller import build_controller

RATES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60)
TARGETS = st.floats(0.01, 0.99)
GAINS = st.floats(0.0, 5.0)


@given(RATES, TARGETS, GAINS)
def test_p_is_never_negative(rates: list[float], target: float, gain: float):
    controller = build_controller(PController(kind="p", target_deletion_rate=target, k_p=gain))
    for rate in rates:
        controller.update(rate)
        assert controller.alpha >= 0.0


@given(RATES, TARGETS, GAINS, GAINS)
def test_pi_is_never_negative(rates: list[float], target: float, k_p: float, k_i: float):
    section = PIController(kind="pi", target_deletion_rate=target, k_p=k_p, k_i=k_i)
    controller = build_controller(section)
    for rate in rates:
        controller.update(rate)
        assert controller.alpha >= 0.0


@given(RATES, TARGETS, GAINS, GAINS, st.floats(0.01, 3.0))
def test_two_sided_stays_within_its_bounds(
    rates: list[float], target: float, k_p: float, k_i: float, bound: float
):
    section = TwoSidedPIController(
        kind="pi_two_sided", target_deletion_rate=target, k_p=k_p, k_i=k_i, alpha_max=bound
    )
    controller = build_controller(section)
    for rate in rates:
        controller.update(rate)
        assert -bound <= controller.alpha <= bound
        # The proportional part is a running mean of k_p e, so the integral cannot wind up beyond this.
        assert abs(controller.i) <= bound + k_p + 1e-9


@given(RATES, st.sampled_from(["p", "pi", "pi_two_sided"]))
def test_tensors_follow_the_same_law_as_floats(rates: list[float], kind: str):
    section = {
        "p": PController(kind="p", target_deletion_rate=0.4, k_p=0.05),
        "pi": PIController(kind="pi", target_deletion_rate=0.4, k_i=0.01),
        "pi_two_sided": TwoSidedPIController(
            kind="pi_two_sided", target_deletion_rate=0.4, k_p=0.3, k_i=0.04, alpha_max=0.15
        ),
    }[kind]
    # float64 tensors, so that no rounding decides on which side of a bound a value lies.
    on_floats = build_controller(section)
    on_tensors = build_controller(section, lambda value: torch.tensor(value, dtype=torch.float64))
    for rate in rates:
        on_floats.update(rate)
        on_tensors.update(torch.tensor(rate, dtype=torch.float64))
    assert on_tensors.alpha.item() == pytest.approx(on_floats.alpha, abs=1e-12)


@given(RATES, RATES, st.sampled_from(["constant", "p", "pi", "pi_two_sided"]), st.booleans())
def test_a_restored_controller_goes_on_exactly(
    before: list[float], after: list[float], kind: str, tensors: bool
):
    section = {
        "constant": ConstantController(kind="constant", alpha=0.02),
        "p": PController(kind="p", target_deletion_rate=0.4, k_p=0.05, alpha_start=0.1),
        "pi": PIController(kind="pi", target_deletion_rate=0.4),
        "pi_two_sided": TwoSidedPIController(kind="pi_two_sided", target_deletion_rate=0.4, alpha_max=0.1),
    }[kind]
    number = torch.tensor if tensors else float
    unbroken, restored = build_controller(section, number), build_controller(section, number)
    for rate in before:
        unbroken.update(number(rate))
    restored.load_state_dict(json.loads(json.dumps(unbroken.state_dict())))
    for rate in after:
        unbroken.update(number(rate))
        restored.update(number(rate))
    assert restored.state_dict() == unbroken.state_dict()


def test_another_laws_state_is_refused():
    p = build_controller(PController(kind="p", target_deletion_rate=0.4))
    pi = build_controller(PIController(kind="pi", target_deletion_rate=0.4))
    with pytest.raises(ValueError, match="'p' controller"):
        pi.load_state_dict(p.state_dict())


def test_constant_stays_and_is_never_due():
    controller = build_controller(ConstantController(kind="constant", alpha=0.03))
    controller.update(0.9)
    assert controller.alpha == 0.03
    assert not controller.due(0)


def test_start_value_is_forgotten_by_pi_and_built_on_by_p():
    pi = build_controller(
        PIController(kind="pi", target_deletion_rate=0.5, k_p=1.0, k_i=0.0, alpha_start=7.0)
    )
    p = build_controller(PController(kind="p", target_deletion_rate=0.5, k_p=1.0, alpha_start=7.0))
    assert (pi.alpha, p.alpha) == (7.0, 7.0)
    pi.update(0.0)
    p.update(0.0)
    assert (pi.alpha, p.alpha) == pytest.approx((0.05, 7.5))


def test_due_counts_optimizer_steps_from_zero():
    controller = build_controller(PController(kind="p", target_deletion_rate=0.5, every_steps=10))
    assert [step for step in range(31) if controller.due(step)] == [0, 10, 20, 30]


def test_saturated_integral_stands_still_and_comes_back_at_once():
    section = TwoSidedPIController(
        kind="pi_two_sided", target_deletion_rate=0.5, k_p=0.0, k_i=0.1, alpha_max=0.2
    )
    controller = build_controller(section)
    for _ in range(100):
        controller.update(0.0)
    assert controller.i <= 0.2
    high = controller.i
    controller.update(1.0)
    assert controller.alpha == pytest.approx(high - 0.05)


def run_away_plant(kind: str) -> list[float]:
    """Deletion rates of a toy model whose own loss has come to favour deletion.

    The rate drifts up by itself, and alpha moves it in proportion: only a negative alpha can bring it down.
    """
    settings = {"target_deletion_rate": 0.4, "k_p": 0.5, "k_i": 1e-3}
    section = (
        PIController(kind="pi", **settings)
        if kind == "pi"
        else TwoSidedPIController(kind="pi_two_sided", **settings)
    )
    controller, rate, rates = build_controller(section), 0.0, []
    for _ in range(4000):
        rate = min(1.0, max(0.0, rate + 0.002 + 0.05 * controller.alpha))
        controller.update(rate)
        rates.append(rate)
    return rates


def test_two_sided_holds_a_plant_that_runs_away_from_the_one_sided_law():
    assert run_away_plant("pi")[-1] == 1.0
    assert run_away_plant("pi_two_sided")[-1] == pytest.approx(0.4, abs=0.01)
