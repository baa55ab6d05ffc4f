"""Reports when a problem with deletion begins and ends during training.

Even in a good run, gates keep everything at first, alpha may stay at its bound for a third of the steps, and
rates oscillate. A problem is therefore reported only after `LINES` lines of metrics and a share of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mrt5cli.recipe import Recipe, TwoSidedPIController
from mrt5cli.rundir import RunDir
from mrt5cli.text import Tell
from mrt5cli.training.finite import gains
from mrt5cli.training.record import ON_TARGET

LINES = 10
LONG = 0.5, 2000
"""How long alpha must be at a bound and off target: a fraction of the run's steps, and a maximum of steps."""
FULLY = 0.999
"""Fraction of a bound that counts as reaching it: float32 cannot represent every bound exactly."""
NEVER, ALWAYS = 0.001, 0.99
"""Deletion rates up to which nothing counts as deleted, and from which everything does."""
Row = Mapping[str, Any]


@dataclass
class Sign:
    """A symptom that should not last.

    Attributes:
        hint: what to change.
        share: fraction of the run's steps that the symptom must last to be reported.
        at_most: upper limit of that duration, in steps.
        holds: whether a line of metrics shows the symptom.
        since: step of the line where the symptom began, or ended.
        lines: number of consecutive lines that show it.
        said: whether it has been reported.
    """

    hint: str
    share: float
    at_most: int
    holds: Callable[[Row], bool]
    since: int = 0
    lines: int = 0
    said: bool = False

    def see(self, row: Row, steps: int) -> bool:
        """Whether this line makes the symptom reportable, or ends a reported one, in a run of `steps`."""
        step, before = row["step"], self.said
        if not self.holds(row):
            self.since, self.lines, self.said = step, 0, False
            return before
        if not self.lines:
            self.since = step
        self.lines += 1
        lasted = step - self.since >= min(self.share * steps, self.at_most)
        self.said = before or (self.lines >= LINES and lasted)
        return self.said and not before


@dataclass
class Health(TrainerCallback):
    """Lists the current problems in `health` of each line of metrics, and reports when one begins or ends.

    Args:
        run: the run, whose earlier lines are read first, so that a resumed run repeats no report.
        tell: receives the reports.
    """

    recipe: Recipe
    run: RunDir
    tell: Tell
    signs: dict[str, Sign] = field(init=False)

    def __post_init__(self) -> None:
        self.signs = _signs(self.recipe)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        for row in self.run.metrics():
            if "loss" in row:
                self._see(row)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for line in self._see(kwargs["logs"]):
            self.tell(line)
        if problems := [name for name, sign in self.signs.items() if sign.said]:
            kwargs["logs"]["health"] = problems

    def _see(self, row: Row) -> list[str]:
        """The reports that this line of metrics causes."""
        reports: list[str] = []
        if row["step"] <= self.recipe.loss.regularizer_delay:
            return reports
        for name, sign in self.signs.items():
            if sign.see(row, self.recipe.training.max_steps):
                aim = "" if row["target"] is None else f", target {100 * row['target']:g} %"
                now = f"({100 * row['deletion_rate']:.1f} % of the bytes deleted{aim})"
                if sign.said:
                    reports.append(f"note: since step {sign.since}, {name} {now}\n  {sign.hint}")
                else:
                    reports.append(f"note: resolved at step {sign.since}: {name} {now}")
        return reports


def _signs(recipe: Recipe) -> dict[str, Sign]:
    """The symptoms to watch for in a run of a recipe; none if nothing pushes toward deletion."""
    section = recipe.controller
    wanted = recipe.target_deletion_rate or max(0.0, getattr(section, "alpha", 0.0))
    if not wanted or not recipe.model.shortener.steered:
        return {}
    lower, raised = f"lower {gains(section)}", f"raise {gains(section)}"
    one_sided = section.kind in ("p", "pi")
    back = "controller.kind: pi_two_sided, whose alpha may become negative and push back"
    signs = {
        "nothing is deleted": Sign(
            f"{raised}, or lower model.shortener.bias_init",
            0.2,
            2000,
            # The target itself may be that low.
            lambda row: row["deletion_rate"] <= min(NEVER, (row["target"] or 1.0) / 2),
        ),
        "everything is deleted": Sign(
            f"{lower}, or raise model.shortener.bias_init{f', or choose {back}' if one_sided else ''}",
            0.05,
            500,
            lambda row: row["deletion_rate"] >= max(ALWAYS, (row["target"] or 0.0) + ON_TARGET),
        ),
    }
    if one_sided:
        signs["alpha is at its lower bound, 0"] = Sign(
            f"{lower}, or choose {back}",
            *LONG,
            lambda row: row["alpha"] <= 0 and row["deletion_rate"] > row["target"] + ON_TARGET,
        )
    if isinstance(section, TwoSidedPIController):
        bound, far = section.alpha_max, f"raise controller.alpha_max ({section.alpha_max:g} now)"
        signs["alpha is at its upper bound, controller.alpha_max"] = Sign(
            f"{far}, or lower controller.target_deletion_rate",
            *LONG,
            lambda row: row["alpha"] >= FULLY * bound and row["deletion_rate"] < row["target"] - ON_TARGET,
        )
        signs["alpha is at its lower bound, minus controller.alpha_max"] = Sign(
            f"{far}, or raise controller.target_deletion_rate",
            *LONG,
            lambda row: row["alpha"] <= -FULLY * bound and row["deletion_rate"] > row["target"] + ON_TARGET,
        )
    return signs
