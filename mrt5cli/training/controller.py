"""Controllers: laws that set the deletion coefficient alpha from the deletion rate seen in training.

Pure arithmetic, one class a law. A rate may be a Python float or a 0-dim float32 tensor: every operation is
one that both have, so on a GPU alpha stays on the device and no step waits for it.

Legend: e error = target - rate, fractions of non-pad bytes; p, i the proportional and the integral part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def build_controller(section: Any, number: Callable[[float], Any] = float) -> Controller:
    """The controller of a recipe's `controller` section.

    Args:
        section: one of `recipe`'s controller sections, chosen by its `kind`.
        number: makes the state from Python floats; the trainer passes one that makes tensors on its device.
    """
    return CONTROLLERS[section.kind](section, number)


class Controller:
    """Base of the laws, and the one that never moves.

    Attributes:
        alpha: the coefficient of the gate loss in force now.
        every_steps: the law is applied at optimizer steps that are multiples of it, counted from 0.
    """

    state_names: tuple[str, ...] = ("alpha",)

    def __init__(self, section: Any, number: Callable[[float], Any] = float) -> None:
        self.kind: str = section.kind
        self.number = number
        self.target: float | None = getattr(section, "target_deletion_rate", None)
        self.every_steps: int = getattr(section, "every_steps", 1)
        self.per_micro_batch: bool = getattr(section, "update_per", "optimizer_step") == "micro_batch"
        self.alpha: Any = number(self._start(section))

    def _start(self, section: Any) -> float:
        return float(section.alpha)

    @property
    def moves(self) -> bool:
        """Whether `update` does anything; if not, nobody needs to measure the rate for it."""
        return self.target is not None

    def due(self, step: int) -> bool:
        """Whether the law is applied at this optimizer step, the first one being 0."""
        return self.moves and step % self.every_steps == 0

    def update(self, rate: Any) -> None:
        """Set alpha for the steps that follow; the step whose rate this is has used the one before."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold, as plain numbers (float32 values are exact in them)."""
        return {"kind": self.kind} | {name: float(getattr(self, name)) for name in self.state_names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s numbers.

        Raises:
            ValueError: the state is another law's.
        """
        if state["kind"] != self.kind:
            raise ValueError(f"the state is a {state['kind']!r} controller's, this one is {self.kind!r}")
        for name in self.state_names:
            setattr(self, name, self.number(state[name]))


class ProportionalController(Controller):
    """`p`, v1 of the paper: alpha <- max(0, alpha + k_p e).

    It adds up errors, so by its mathematics it is an integral controller; the name is the paper's.
    """

    def __init__(self, section: Any, number: Callable[[float], Any] = float) -> None:
        super().__init__(section, number)
        self.k_p = section.k_p

    def _start(self, section: Any) -> float:
        return float(section.alpha_start)

    def update(self, rate: Any) -> None:
        self.alpha = _at_least_0(self.alpha + self.k_p * (self.target - rate))


class PIController(Controller):
    """`pi`, the camera-ready's: p <- 0.9 p + 0.1 k_p e; i <- i + k_i e; alpha = max(0, p + i).

    No anti-windup, as in the paper: while alpha is held at 0 the integral goes on falling, and has to
    come all the way back before alpha moves again. `alpha_start` is in force until the first update and then
    forgotten.
    """

    state_names: tuple[str, ...] = ("alpha", "p", "i")

    def __init__(self, section: Any, number: Callable[[float], Any] = float) -> None:
        super().__init__(section, number)
        self.k_p = section.k_p
        self.k_i = section.k_i
        self.p: Any = number(0.0)
        self.i: Any = number(0.0)

    def _start(self, section: Any) -> float:
        return float(section.alpha_start)

    def update(self, rate: Any) -> None:
        error = self.target - rate
        self.p = 0.9 * self.p + 0.1 * self.k_p * error
        self.i = self.i + self.k_i * error
        self.alpha = _at_least_0(self.p + self.i)


class TwoSidedPIController(PIController):
    """`pi_two_sided`: PI whose alpha may turn negative, to -alpha_max, and then makes deleting costly.

    The paper's law can only push towards deletion; when the cross-entropy itself comes to favour deletion, as
    it does in small models, nothing pushes back and the rate runs away with alpha at 0.

    Anti-windup: while p + i is beyond a bound, errors that would take it further are not integrated, errors
    that bring it back are. Conditional integration was chosen over the usual alternative, feeding the
    overshoot back into the integral, because it adds no gain to tune and leaves the law exactly PI as long as
    no bound is reached; the integral then answers to the first error of the other sign.

    Damping, with k_d above 0: alpha = p + i - k_d * slope, where the slope is what the rate rises an update,
    smoothed twice over 5 updates. Alpha does not set the rate, it moves it: its gradient goes to weights that
    all gates share, Adam makes a speed of it, and where the cross-entropy hardly minds what is deleted,
    nothing holds the gates anywhere. So they integrate alpha, some 20 updates late: 10 are Adam's momentum
    and 10 the running mean in p. PI on an integrator with a delay swings unless its gain is very low. In
    `local_text` k_p 0.5 drove alpha between -0.1 and 0.23; at a scale of -30, 0.1 pays 3 nats for deleting
    everything, several times what the source is worth. Adam, which still divided by the small gradients of
    the steps before, moved the gates at five times the learning rate, from logits of 4 to -10 in 15 steps.
    There the sigmoid is flat, so alpha went on rising for 80 steps without effect, until the first gates gave
    way and all followed. The slope takes the push back while the rate is still on its way; 20 times k_p makes
    up for the delay.
    """

    def __init__(self, section: Any, number: Callable[[float], Any] = float) -> None:
        super().__init__(section, number)
        self.alpha_max = section.alpha_max
        self.k_d = section.k_d
        self.smoothed: Any = number(0.0)
        self.slope: Any = number(0.0)
        self.seen: Any = number(0.0)
        if self.k_d:
            self.state_names = (*self.state_names, "smoothed", "slope", "seen")

    def _start(self, section: Any) -> float:
        return 0.0

    def update(self, rate: Any) -> None:
        error = self.target - rate
        self.p = 0.9 * self.p + 0.1 * self.k_p * error
        pushed = self.p - self.k_d * self._slope(rate) if self.k_d else self.p
        integrated = self.i + self.k_i * error
        wanted = pushed + integrated
        # | and &, not `or` and `and`: the same line has to work on tensors without reading them.
        free = (wanted <= self.alpha_max) & (wanted >= -self.alpha_max) | (wanted * error < 0)
        self.i = self.i + (self.k_i * error) * free
        self.alpha = _between(pushed + self.i, -self.alpha_max, self.alpha_max)

    def _slope(self, rate: Any) -> Any:
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


def _at_least_0(value: Any) -> Any:
    return value.clamp(min=0.0) if hasattr(value, "clamp") else max(0.0, value)


def _between(value: Any, low: float, high: float) -> Any:
    return value.clamp(low, high) if hasattr(value, "clamp") else min(max(value, low), high)
