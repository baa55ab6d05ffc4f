"""The best model of a run so far: by which number, at which step, and when to stop waiting for a better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrt5cli.errors import UserError
from mrt5cli.json_files import parse
from mrt5cli.metrics.catalog import METRICS
from mrt5cli.rundir import RunDir, remove_directory


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
            step: optimizer steps done.
            value: not finite means that there is none; that is never better.
        """
        if math.isfinite(value) and (self.value is None or self._better(value, self.value)):
            self.value, self.step, self.waited = value, step, 0
            return True
        self.waited += 1
        return False

    def _better(self, value: float, other: float) -> bool:
        return value < other if METRICS[self.metric].better == "lower" else value > other

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.waited >= self.patience

    def document(self) -> dict[str, Any]:
        """What meta.json says."""
        return {
            "metric": self.metric,
            "value": self.value,
            "step": self.step,
            "stopped_early": self.exhausted,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds. Metric and patience are the recipe's, which a resume must not change."""
        return {"value": self.value, "step": self.step, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.value, self.step, self.waited = state["value"], state["step"], state["waited"]


def keep_needed(run: RunDir, best: Best, state_name: str) -> None:
    """Delete weights that neither this run nor a resume from one of its checkpoints can still call the best.

    Args:
        state_name: the file in a checkpoint whose entry "best" is a `Best.state_dict`.
    """
    needed = {best.step}
    needed |= {_best_step(run.checkpoint(step) / state_name) for step in run.saved_steps()}
    for step in run.best_steps():
        if step not in needed:
            remove_directory(run.best_weights(step))


def _best_step(state: Path) -> int | None:
    """The step whose weights a checkpoint calls the best; None where nobody can resume from it anyway."""
    try:
        best = parse(state.read_bytes())["best"]
        return None if best is None else best["step"]
    except (OSError, ValueError, LookupError, TypeError):  # of other processes, or damaged since
        return None


def go_back_to(run: RunDir, best: Best, step: int) -> None:
    """Delete what a dead branch of the run left: the best weights of later steps than the one to resume from.

    Raises:
        UserError: the weights that are the best up to that step are not there any more.
    """
    for later in run.best_steps():
        if later > step:
            remove_directory(run.best_weights(later))
    check_kept(run, best)


def check_kept(run: RunDir, best: Best) -> Path | None:
    """The directory of the best weights; None where nothing was measured yet.

    Raises:
        UserError: it is gone.
    """
    if best.step is None:
        return None
    folder = run.best_weights(best.step)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{run.path} has lost its best weights: they were measured at step {best.step}, and {folder} is "
            "not there any more",
            "restore it, or train again elsewhere with --out",
        )
    return folder
