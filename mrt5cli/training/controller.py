"""Controllers: formulas that set the deletion coefficient alpha from the deletion rate seen in training.

Pure arithmetic, one class a formula. A rate may be a Python float or a 0-dim float32 tensor: every operation
is one that both have, so on a GPU alpha stays on the device and no step waits for it.

Legend: e error = target - rate, fractions of non-pad bytes; p, i the proportional and the integral part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mrt5cli import recipe
    from mrt5cli.recipe.schema import Controller as ControllerSection

Number = float | Tensor


def build_controller(section: ControllerSection, number: Callable[[float], Number] = float) -> Controller:
    """The controller of a recipe's `controller` section.

    Args:
        number: makes the state from Python floats; the trainer passes one that makes tensors on its device.
    """
    return CONTROLLERS[section.kind](section, number)


class Controller:
    """Base of the formulas, and the one that never moves.

    Attributes:
        alpha: the coefficient of the gate loss in force now.
        target: deletion rate, or None where alpha stays.
        per_micro_batch: alpha is set after every micro-batch, as in the reference, instead of every step.
    """

    state_names: tuple[str, ...] = ("alpha",)
    alpha: Number

    section: ControllerSection

    def __init__(self, section: ControllerSection, number: Callable[[float], Number]) -> None:
        self.section = section
        self.number = number
        self.target: float | None = getattr(section, "target_deletion_rate", None)
        self.per_micro_batch: bool = getattr(section, "update_per", "optimizer_step") == "micro_batch"
        for name in self.state_names:
            setattr(self, name, number(0.0))
        # Of a controller that moves, what is in force until its first update.
        self.alpha = number(getattr(section, "alpha", getattr(section, "alpha_start", 0.0)))

    def due(self, step: int) -> bool:
        """Whether alpha is set at this optimizer step, the first one being 0."""
        return self.section.kind != "constant" and step % self.section.every_steps == 0

    def error(self, rate: Number) -> Number:
        """What the rate lacks to the target."""
        assert self.target is not None, "without a target nothing is steered"
        return self.target - rate

    def update(self, rate: Number) -> None:
        """Set alpha for the steps that follow; the step whose rate this is has used the one before."""

    def state_dict(self) -> Mapping[str, str | float]:
        """What a checkpoint must hold, as plain numbers (float32 values are exact in them)."""
        return {"kind": self.section.kind} | {name: float(getattr(self, name)) for name in self.state_names}

    def numbers(self) -> list[Tensor]:
        """All of its state, as tensors."""
        return [torch.as_tensor(getattr(self, name)) for name in self.state_names]

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Resume from `state_dict`'s numbers."""
        for name in self.state_names:
            setattr(self, name, self.number(state[name]))

    def take_over(self, state: Mapping[str, float]) -> None:
        """Go on from the numbers of a controller with other settings, or of another kind: alpha does not
        jump, unless it is a setting."""
        if self.section.kind == "constant":
            return
        known = {name: state[name] for name in self.state_names if name in state}
        if "i" in self.state_names and "i" not in state:
            known["i"] = state["alpha"]
        for name, value in known.items():
            setattr(self, name, self.number(value))


class ProportionalController(Controller):
    """`p`, v1 of the paper: alpha <- max(0, alpha + k_p e).

    It adds up errors, so by its mathematics it is an integral controller; the name is the paper's.
    """

    section: recipe.PController

    def update(self, rate: Number) -> None:
        self.alpha = _between(self.alpha + self.section.k_p * self.error(rate), 0.0, math.inf)


class PIController(Controller):
    """`pi`, the camera-ready's: p <- 0.9 p + 0.1 k_p e; i <- i + k_i e; alpha = max(0, p + i).

    No anti-windup, as in the paper: while alpha is held at 0 the integral keeps falling, and has to
    come all the way back before alpha moves again. `alpha_start` is in force until the first update and then
    forgotten.
    """

    section: recipe.PIController
    state_names: tuple[str, ...] = ("alpha", "p", "i")
    p: Number
    i: Number

    def update(self, rate: Number) -> None:
        error = self.error(rate)
        self.p = 0.9 * self.p + 0.1 * self.section.k_p * error
        self.i = self.i + self.section.k_i * error
        self.alpha = _between(self.p + self.i, 0.0, math.inf)


class TwoSidedPIController(Controller):
    """`pi_two_sided`: PI whose alpha may turn negative, to -alpha_max, and then makes deleting costly.

    The paper's formula can only push towards deletion; when the cross-entropy itself comes to favour
    deletion, as it does in small models, nothing pushes back and the rate runs away with alpha at 0.

    Anti-windup: while p + i is beyond a bound, errors that would take it further are not integrated, errors
    that bring it back are: no gain to tune, and exactly PI as long as no bound is reached.

    Damping, with k_d above 0: alpha = p + i - k_d * slope, where the slope is what the rate rises an update,
    smoothed twice over 5 updates. Where the deletion rate hardly changes the cross-entropy, the gates
    integrate alpha, some 20 updates late (10 for Adam's momentum, 10 for the running mean in p), and PI on an
    integrator with a delay swings unless its gain is very low. The slope takes the push back while the rate
    is still on its way; 20 times k_p makes up for the delay.
    """

    section: recipe.TwoSidedPIController
    state_names: tuple[str, ...] = ("alpha", "p", "i")
    p: Number
    i: Number
    smoothed: Number
    slope: Number
    seen: Number

    def __init__(self, section: recipe.TwoSidedPIController, number: Callable[[float], Number]) -> None:
        if section.k_d:
            self.state_names = (*self.state_names, "smoothed", "slope", "seen")
        super().__init__(section, number)

    def update(self, rate: Number) -> None:
        error, bound, k_d = self.error(rate), self.section.alpha_max, self.section.k_d
        self.p = 0.9 * self.p + 0.1 * self.section.k_p * error
        pushed = self.p - k_d * self._slope(rate) if k_d else self.p
        wanted = pushed + (self.i + self.section.k_i * error)
        # | and &, not `or` and `and`: the same line has to work on tensors without reading them.
        free = (wanted <= bound) & (wanted >= -bound) | (wanted * error < 0)
        self.i = self.i + (self.section.k_i * error) * free
        self.alpha = _between(pushed + self.i, -bound, bound)

    def _slope(self, rate: Number) -> Number:
        """How much the rate rises an update, smoothed twice; 0 at the first one."""
        ahead = rate - self.smoothed
        rise = 0.2 * ahead * self.seen
        self.smoothed = self.smoothed + rise + ahead * (1.0 - self.seen)
        self.slope = 0.8 * self.slope + 0.2 * rise
        self.seen = self.number(1.0)
        return self.slope


CONTROLLERS: dict[str, type[Controller]] = {
    "constant": Controller,
    "p": ProportionalController,
    "pi": PIController,
    "pi_two_sided": TwoSidedPIController,
}


def _between(value: Number, low: float, high: float) -> Number:
    return value.clamp(low, high) if isinstance(value, Tensor) else min(max(value, low), high)
