"""Controllers: what holds whatever the rates are, on floats and on tensors alike."""

from __future__ import annotations

import json
import math
import random
from statistics import fmean as mean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrt5cli.recipe import ConstantController, PController, PIController, TwoSidedPIController, load
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


@given(RATES, TARGETS, GAINS, GAINS, GAINS, st.floats(0.01, 3.0))
def test_two_sided_stays_within_its_bounds(
    rates: list[float], target: float, k_p: float, k_i: float, k_d: float, bound: float
):
    section = TwoSidedPIController(
        kind="pi_two_sided", target_deletion_rate=target, k_p=k_p, k_i=k_i, k_d=k_d, alpha_max=bound
    )
    controller = build_controller(section)
    for rate in rates:
        controller.update(rate)
        assert -bound <= controller.alpha <= bound
        # The proportional part is a running mean of k_p e, and the slope one of at most 0.2, so the integral
        # cannot wind up beyond this.
        assert abs(controller.i) <= bound + k_p + 0.2 * k_d + 1e-9


@given(RATES, st.sampled_from(["p", "pi", "pi_two_sided", "damped"]))
def test_tensors_follow_the_same_formula_as_floats(rates: list[float], kind: str):
    section = {
        "p": PController(kind="p", target_deletion_rate=0.4, k_p=0.05),
        "pi": PIController(kind="pi", target_deletion_rate=0.4, k_i=0.01),
        "pi_two_sided": TwoSidedPIController(
            kind="pi_two_sided", target_deletion_rate=0.4, k_p=0.3, k_i=0.04, alpha_max=0.15
        ),
        "damped": TwoSidedPIController(
            kind="pi_two_sided", target_deletion_rate=0.4, k_p=0.3, k_i=0.04, k_d=2.0, alpha_max=0.15
        ),
    }[kind]
    # float64 tensors, so that no rounding decides on which side of a bound a value lies.
    on_floats = build_controller(section)
    on_tensors = build_controller(section, lambda value: torch.tensor(value, dtype=torch.float64))
    for rate in rates:
        on_floats.update(rate)
        on_tensors.update(torch.tensor(rate, dtype=torch.float64))
    assert on_tensors.alpha.item() == pytest.approx(on_floats.alpha, abs=1e-12)


@given(RATES, RATES, st.sampled_from(["constant", "p", "pi", "pi_two_sided", "damped"]), st.booleans())
def test_a_restored_controller_goes_on_exactly(
    before: list[float], after: list[float], kind: str, tensors: bool
):
    section = {
        "constant": ConstantController(kind="constant", alpha=0.02),
        "p": PController(kind="p", target_deletion_rate=0.4, k_p=0.05, alpha_start=0.1),
        "pi": PIController(kind="pi", target_deletion_rate=0.4),
        "pi_two_sided": TwoSidedPIController(kind="pi_two_sided", target_deletion_rate=0.4, alpha_max=0.1),
        "damped": TwoSidedPIController(kind="pi_two_sided", target_deletion_rate=0.4, k_d=3.0, alpha_max=0.1),
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


def test_two_sided_holds_a_plant_that_runs_away_from_the_one_sided_formula():
    assert run_away_plant("pi")[-1] == 1.0
    assert run_away_plant("pi_two_sided")[-1] == pytest.approx(0.4, abs=0.01)


def test_the_slope_is_that_of_the_rate_and_0_at_the_first_update():
    controller = build_controller(
        TwoSidedPIController(kind="pi_two_sided", target_deletion_rate=0.4, k_p=0.0, k_i=0.0, k_d=10.0)
    )
    controller.update(0.3)
    assert controller.alpha == 0.0  # not the slope from a rate that never occurred
    for step in range(1, 60):
        controller.update(0.3 + 0.01 * step)
    assert controller.alpha == pytest.approx(-10.0 * 0.01, rel=1e-3)
    for _ in range(60):
        controller.update(0.89)
    assert controller.alpha == pytest.approx(0.0, abs=1e-3)


def test_without_a_derivative_gain_the_state_is_what_it_was():
    """Checkpoints of runs made before there was one go on."""
    controller = build_controller(TwoSidedPIController(kind="pi_two_sided", target_deletion_rate=0.4))
    controller.load_state_dict({"kind": "pi_two_sided", "alpha": 0.1, "p": 0.07, "i": 0.03})
    assert set(controller.state_dict()) == {"kind", "alpha", "p", "i"}


def gates_under_adam(speed: float, **gains: float) -> list[float]:
    """Deletion rates, in windows of 10 steps, of 200 gates that share one logit, under Adam for 800 steps.

    What `local_text` is to its controller, and no more: the gate loss pulls at all gates by way of the
    weights that they share, the cross-entropy does not care how many are gone, and Adam divides by the noise
    of its gradient. The regulariser starts at step 200; the learning rate falls to 0.

    Args:
        speed: logits a step that Adam moves the gates by at its fastest.
        gains: of the controller.
    """
    draws, target, noise = random.Random(7), 0.4, 0.02
    spread = [draws.gauss(3.0, 2.0) for _ in range(200)]
    controller = build_controller(
        TwoSidedPIController(kind="pi_two_sided", target_deletion_rate=target, **gains)
    )
    moved = first = second = 0.0
    rates = []
    for step in range(1, 801):
        logits = [logit - moved for logit in spread]
        gradient = 0.0
        if step > 200:
            gradient = (
                30
                * controller.alpha
                * mean(1 / (2 + 2 * math.cosh(max(-50.0, min(z, 50.0)))) for z in logits)
            )
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * (gradient**2 + noise**2)
        moved += speed * (800 - step) / 800 * first / math.sqrt(second / (1 - 0.999**step))
        rates.append(min(1.0, max(0.0, mean(z < 0 for z in logits) + draws.gauss(0.0, 0.02))))
        if step > 200:
            controller.update(rates[-1])
    return [mean(rates[start : start + 10]) for start in range(200, 800, 10)]


def test_the_derivative_gain_holds_gates_that_swing_without_it():
    gains = {"k_p": 0.5, "k_i": 1e-3}
    swinging = gates_under_adam(0.1, **gains)
    assert max(swinging) > 0.65 and min(swinging[swinging.index(max(swinging)) :]) < 0.2
    damped = gates_under_adam(0.1, k_d=10.0, **gains)
    assert max(damped) < 0.5
    assert all(abs(rate - 0.4) < 0.03 for rate in damped[-20:])


@pytest.mark.parametrize("speed", [0.05, 0.1, 0.2])
def test_local_texts_gains_hold_gates_that_move_at_half_and_twice_the_speed(speed: float):
    controller = load("local_text").controller
    gains = {name: getattr(controller, name) for name in ("k_p", "k_i", "k_d", "alpha_max")}
    rates = gates_under_adam(speed, **gains)
    assert max(rates) < 0.5
    assert all(abs(rate - 0.4) < 0.03 for rate in rates[-20:])


# --- taken over ---------------------------------------------------------------------------------------------


@given(RATES, st.sampled_from([PController, PIController, TwoSidedPIController]), st.floats(0.0, 9.0))
def test_a_controller_with_other_settings_goes_on_where_alpha_is(
    rates: list[float], kind: type[PController], k_d: float
) -> None:
    before = build_controller(PIController(kind="pi", target_deletion_rate=0.5))
    for rate in rates:
        before.update(rate)
    name = kind.model_fields["kind"].annotation.__args__[0]
    more = {"k_d": k_d} if kind is TwoSidedPIController else {}
    after = build_controller(kind(kind=name, target_deletion_rate=0.3, **more))
    after.take_over(before.state_dict())
    assert after.alpha == before.alpha
    assert after.target == 0.3
    if kind is PIController:  # the same to the last bit
        assert after.state_dict() == before.state_dict()


def test_one_that_takes_over_from_one_without_an_integral_does_not_fall_back_to_0() -> None:
    before = build_controller(ConstantController(kind="constant", alpha=0.7))
    after = build_controller(PIController(kind="pi", target_deletion_rate=0.3, k_p=0.5, k_i=1e-5))
    after.take_over(before.state_dict())
    after.update(0.3)  # on target, so that nothing moves it
    assert after.alpha == 0.7


def test_a_constant_takes_nothing_over() -> None:
    after = build_controller(ConstantController(kind="constant", alpha=0.2))
    after.take_over(build_controller(ConstantController(kind="constant", alpha=0.7)).state_dict())
    assert after.alpha == 0.2
