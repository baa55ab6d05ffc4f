"""What analyses have in common: what was asked, and the runs there are for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mrt5cli.errors import UserError
from mrt5cli.report.results import Ran, Results
from mrt5cli.suite.jobs import Experiment, Plan

Progress = Callable[[str, str, int], None]


@dataclass(frozen=True)
class Asked:
    """One analysis of one experiment; see `run_analysis`."""

    experiment: Experiment
    plan: Plan
    device: Any = None
    progress: Progress | None = None

    @cached_property
    def results(self) -> Results:
        """Of the experiment's runs."""
        return Results(self.plan, self.experiment)

    @property
    def runs(self) -> list[Ran]:
        """All of the experiment, in its order, by seed."""
        return [ran for runs in self.results.runs.values() for ran in runs]

    @property
    def trained(self) -> list[Ran]:
        """The runs whose model is finished."""
        return [ran for ran in self.runs if (ran.run.model / "config.json").is_file()]

    @property
    def missing(self) -> list[str]:
        """The other runs' names, with their seeds."""
        there = self.trained
        return [f"{ran.name} seed {ran.seed}" for ran in self.runs if ran not in there]

    @property
    def baseline(self) -> list[Ran]:
        """Trained runs of the baseline.

        Raises:
            UserError: there is none.
        """
        found = [ran for ran in self.trained if ran.name == self.experiment.baseline]
        if not found:
            raise UserError(
                f"{self.experiment.id} has no finished run of its baseline, {self.experiment.baseline}",
                "losses and times are compared with it: train it first",
            )
        return found

    def tell(self, what: str, part: str, done: int) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(what, part, done)


def described(ran: Ran) -> dict[str, Any]:
    """What every line of a document says of its run."""
    return {"recipe": ran.name, "seed": ran.seed, "family": ran.family}


def subject_of(ran: Ran) -> Any:
    """The run as `evaluate` and `inspect-deletions` look at it."""
    from mrt5cli.subject import find_subject

    return find_subject(str(ran.run.path))


def config_of(ran: Ran) -> Any:
    """The configuration of a run's finished model."""
    from transformers import AutoConfig

    import mrt5cli.models  # noqa: F401  (AutoConfig knows `mrt5` from then on)

    return AutoConfig.from_pretrained(ran.run.model)
