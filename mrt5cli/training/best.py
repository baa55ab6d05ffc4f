"""The best model of a run so far: by which number, at which step, and when to stop waiting for a better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mrt5cli.metrics.catalog import METRICS


@dataclass
class Best:
    """What is known after each evaluation; the same in all processes.

    Attributes:
        metric: `training.best_metric`, the name of a number of an evaluation's row. None contains alpha, so
            all steps of a run compare.
        patience: evaluations without a better value after which training stops; None: never.
        value, step: the best so far and when it was measured, in optimizer steps; None before the first.
        waited: evaluations since then.
    """

    metric: str
    patience: int | None = None
    value: float | None = None
    step: int | None = None
    waited: int = 0

    def offer(self, step: int, value: float) -> bool:
        """Take note of an evaluation; returns whether it is the best so far. Of equals, the first stays.

        Args:
            value: not finite where there is none, which is never better.
        """
        sign = -1 if METRICS[self.metric].better == "lower" else 1
        if math.isfinite(value) and (self.value is None or sign * value > sign * self.value):
            self.value, self.step, self.waited = value, step, 0
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.waited >= self.patience

    def document(self) -> dict[str, str | float | int | bool | None]:
        """What meta.json says."""
        early = self.exhausted
        return {"metric": self.metric, "value": self.value, "step": self.step, "stopped_early": early}

    def state_dict(self) -> dict[str, float | int | None]:
        """What a checkpoint holds. Metric and patience are the recipe's, which a resume must not change."""
        return {"value": self.value, "step": self.step, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`."""
        self.value, self.step, self.waited = state["value"], state["step"], state["waited"]
