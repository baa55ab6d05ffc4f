"""Controllers, which set the coefficient alpha of the gate loss from the deletion rate (paper, section 3.2).

One class per formula, with plain arithmetic. A rate may be a Python float or a 0-dim float32 tensor: both
support every operation used here, so on a GPU alpha stays on the device and no step waits for it.

Legend: e error, target - rate, a fraction of non-pad bytes (-1 to 1); p, i proportional and integral part.
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
        number: converts the initial state from Python floats; the trainer creates tensors on its device.
    """
    return CONTROLLERS[section.kind](section, number)


class Controller:
    """Base class of all controllers, and the constant controller.

    Attributes:
        alpha: current coefficient of the gate loss.
        target: target deletion rate, 0 to 1, or None if alpha is constant.
        per_micro_batch: update after every micro-batch, as in the reference, instead of every step.
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
        # `alpha_start` of a steering controller applies until its first update.
        self.alpha = number(getattr(section, "alpha", getattr(section, "alpha_start", 0.0)))

    def due(self, step: int) -> bool:
        """Whether alpha is updated at this optimizer step, counted from 0."""
        return self.section.kind != "constant" and step % self.section.every_steps == 0

    def error(self, rate: Number) -> Number:
        """The target minus the rate."""
        assert self.target is not None, "only controllers with a target are updated"
        return self.target - rate

    def update(self, rate: Number) -> None:
        """Set alpha for the following steps; the step with this rate used the previous alpha."""

    def state_dict(self) -> Mapping[str, str | float]:
        """The state for a checkpoint as Python numbers, which represent float32 values exactly."""
        return {"kind": self.section.kind} | {name: float(getattr(self, name)) for name in self.state_names}

    def numbers(self) -> list[Tensor]:
        """The state as tensors."""
        return [torch.as_tensor(getattr(self, name)) for name in self.state_names]

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore from `state_dict`."""
        for name in self.state_names:
            setattr(self, name, self.number(state[name]))

    def take_over(self, state: Mapping[str, float]) -> None:
        """Continue from the state of a controller with other settings or of another kind.

        Alpha does not jump, except to that of a constant controller.
        """
        if self.section.kind == "constant":
            return
        known = {name: state[name] for name in self.state_names if name in state}
        if "i" in self.state_names and "i" not in state:
            known["i"] = state["alpha"]
        for name, value in known.items():
            setattr(self, name, self.number(value))


class ProportionalController(Controller):
    """`p`, v1 of the paper: alpha <- max(0, alpha + k_p e), with e = target - rate.

    The name is the paper's; because it sums errors, it is mathematically an integral controller.
    """

    section: recipe.PController

    def update(self, rate: Number) -> None:
        self.alpha = _between(self.alpha + self.section.k_p * self.error(rate), 0.0, math.inf)


class PIController(Controller):
    """`pi`, camera-ready: p <- 0.9 p + 0.1 k_p e; i <- i + k_i e; alpha = max(0, p + i) (section 3.2).

    Like the paper's, it has no anti-windup: while alpha is clipped to 0, the integral keeps falling, and must
    rise all the way back before alpha moves again. `alpha_start` applies until the first update only.
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
    """`pi_two_sided`: a PI controller whose alpha may become negative (to -alpha_max) and penalize deletion.

    The paper's formula can only push toward deletion. If the cross-entropy itself favors deletion, as
    it may in small models, nothing pushes back, and the rate runs away with alpha at 0.

    Anti-windup: while p + i is beyond a bound, only errors that bring it back are integrated. This needs no
    gain, and within the bounds it is exactly PI.

    Damping, if k_d > 0: alpha = p + i - k_d * slope, where slope is the increase of the rate per update,
    smoothed twice over 5 updates. Where the deletion rate hardly affects the cross-entropy, the gates
    integrate alpha with a delay of about 20 updates (10 from Adam's momentum, 10 from the running mean in p),
    and PI control of a delayed integrator oscillates unless its gain is very low. The slope reduces the push
    while the rate is still approaching the target; k_d = 20 k_p compensates for the delay.
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
        # | and & instead of `or` and `and`, so that the line also works on tensors without reading them.
        free = (wanted <= bound) & (wanted >= -bound) | (wanted * error < 0)
        self.i = self.i + (self.section.k_i * error) * free
        self.alpha = _between(pushed + self.i, -bound, bound)

    def _slope(self, rate: Number) -> Number:
        """The increase of the rate per update, smoothed twice; 0 at the first update."""
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
