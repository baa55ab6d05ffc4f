"""What analyses are given: the runs of an experiment, with their recipes, models and evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mrt5cli.errors import UserError
from mrt5cli.json_files import read_object
from mrt5cli.metrics.results import Json, Row, SavedEvaluation
from mrt5cli.recipe import Recipe
from mrt5cli.rundir import RunDir

if TYPE_CHECKING:
    import torch

    from mrt5cli.models import MrT5ForConditionalGeneration
    from mrt5cli.subject import Subject

HINT = "delete it, and reproduce makes it anew"

Progress = Callable[[str, str, int], None]
"""Called with what is looked at, a part of it, and the examples done."""


@dataclass(frozen=True)
class ExperimentRun:
    """One run of an experiment.

    Attributes:
        name: of its shipped recipe.
        recipe: that it was trained by; in a smoke plan, shrunk.
        outputs: files of its evaluations in the plan, those first that its experiment shows; empty where the
            plan evaluates nothing.
        shown: how many of them its experiment shows.
    """

    name: str
    recipe: Recipe
    run: RunDir
    outputs: tuple[Path, ...] = ()
    shown: int = 0

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def title(self) -> str:
        """What to call it in a sentence."""
        return f"{self.name} seed {self.seed}"

    @property
    def family(self) -> str:
        """What the paper calls such a model."""
        return self.recipe.model.shortener.paper_name

    def line(self) -> Json:
        """What its line in a document begins with."""
        return {"recipe": self.name, "seed": self.seed, "family": self.family}

    def subject(self) -> Subject:
        """The run as `evaluate` and `inspect-deletions` look at it."""
        from mrt5cli.subject import find_subject

        return find_subject(str(self.run.path))

    def load(self, device: torch.device | None) -> MrT5ForConditionalGeneration:
        """Its finished model, ready to be looked at."""
        from mrt5cli.subject import load_model

        return load_model(self.subject(), device)

    @property
    def config(self) -> Json:
        """The configuration of its finished model."""
        return read_object(self.run.model / "config.json", HINT)

    def read(self, path: Path) -> SavedEvaluation | None:
        """One of its evaluations; None where it is to be left out."""
        return SavedEvaluation.read(path, HINT)

    @cached_property
    def evaluations(self) -> list[SavedEvaluation]:
        """Its results on test data, deleting as the recipe says, of the finished model as it was trained.

        Those that the experiment shows come first, then those on the recipe's own task.
        Of a plan, they are the plan's evaluations; else, whatever is in the run's eval folder.
        """
        wanted = "test", "hard" if self.recipe.evaluation.hard_delete else "soft"
        paths = self.outputs or sorted((self.run.path / "eval").glob("*.json"))
        read = [(place >= self.shown, self.read(path)) for place, path in enumerate(paths) if path.is_file()]
        found = [
            (beside, self._on_another_task(one), one)
            for beside, one in read
            if one and one.models and one.of_the_model_itself and (one.split, one.deletion) == wanted
        ]
        return [one for *_, one in sorted(found, key=lambda entry: entry[:2])]

    def _on_another_task(self, one: SavedEvaluation) -> bool:
        return one.settings != self.recipe.task.model_dump(mode="json")

    def is_own_task(self, one: SavedEvaluation) -> bool:
        """Whether an evaluation is on the recipe's own task, all of it."""
        return one.languages is None and not self._on_another_task(one)

    def own(self, number: str = "loss") -> tuple[Row, SavedEvaluation] | None:
        """The summary on its own task, the total or the only subset, that has a number; None without."""
        found = ((one.rows[-1], one) for one in self.evaluations if self.is_own_task(one))
        return next(((row, one) for row, one in found if row.number(number) is not None), None)


@dataclass(frozen=True)
class ExperimentRuns:
    """The runs of one experiment.

    Attributes:
        experiment: its id.
        runs: in the experiment's order, by seed; some may not be trained yet.
        baseline: shipped name of the recipe that losses and times are compared with, or None.
        version: of the paper, or None where nothing was published.
        smoke: tiny runs, of which little is looked at.
        device: where models compute; by default where they are loaded, the CPU.
    """

    experiment: str
    runs: tuple[ExperimentRun, ...]
    baseline: str | None = None
    version: str | None = None
    smoke: bool = False
    device: torch.device | None = None
    progress: Progress = lambda what, part, done: None

    @cached_property
    def trained(self) -> list[ExperimentRun]:
        """Those whose model is finished."""
        return [run for run in self.runs if (run.run.model / "config.json").is_file()]

    def missing(self, there: Sequence[ExperimentRun] | None = None) -> list[str]:
        """Names of the runs that are not there; by default of those that are not trained."""
        found = self.trained if there is None else there
        return [run.title for run in self.runs if run not in found]

    @property
    def baselines(self) -> list[ExperimentRun]:
        """Trained runs of the baseline.

        Raises:
            UserError: there is none.
        """
        found = [run for run in self.trained if run.name == self.baseline]
        if not found:
            raise UserError(
                f"{self.experiment} has no finished run of its baseline, {self.baseline}",
                "losses and times are compared with it: train it first",
            )
        return found
