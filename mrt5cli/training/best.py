"""Tracks the best weights of a run so far, and when to stop waiting for better ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mrt5cli.metrics.catalog import METRICS


@dataclass
class Best:
    """The state after each evaluation, identical in all processes.

    Attributes:
        metric: `training.best_metric`, a metric of an evaluation row. None of them depends on alpha, so all
            steps of a run are comparable.
        patience: number of evaluations without improvement after which training stops; None: never.
        value: the best value so far; None before the first.
        step: optimizer step of the best value.
        waited: number of evaluations since then.
    """

    metric: str
    patience: int | None = None
    value: float | None = None
    step: int | None = None
    waited: int = 0

    def offer(self, step: int, value: float) -> bool:
        """Record an evaluation, and return whether it is the best so far. Ties keep the earlier step.

        Args:
            value: the metric's value; NaN or infinite if it could not be measured, which is never better.
        """
        sign = -1 if METRICS[self.metric].better == "lower" else 1
        if math.isfinite(value) and (self.value is None or sign * value > sign * self.value):
            self.value, self.step, self.waited = value, step, 0
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether training should stop for lack of improvement."""
        return self.patience is not None and self.waited >= self.patience

    def document(self) -> dict[str, str | float | int | bool | None]:
        """The entry in meta.json."""
        early = self.exhausted
        return {"metric": self.metric, "value": self.value, "step": self.step, "stopped_early": early}

    def state_dict(self) -> dict[str, float | int | None]:
        """The state for a checkpoint, without metric and patience, which the recipe specifies."""
        return {"value": self.value, "step": self.step, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from `state_dict`."""
        self.value, self.step, self.waited = state["value"], state["step"], state["waited"]
