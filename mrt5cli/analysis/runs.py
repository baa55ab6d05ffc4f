"""The input of analyses: the runs of an experiment with their recipes, models and evaluations."""

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

HINT = "delete it; `mrt5 reproduce` makes it again"

Progress = Callable[[str, str, int], None]
"""Called with the current item, a part of it, and the number of examples done."""


@dataclass(frozen=True)
class ExperimentRun:
    """One run of an experiment.

    Attributes:
        name: name of its shipped recipe.
        recipe: the recipe it was trained with; shrunk in a smoke plan.
        run: its run directory.
        outputs: files of its evaluations in the plan, those that its experiment shows first; empty if the
            plan evaluates nothing.
        shown: number of `outputs` that its experiment shows.
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
        """Its name in a sentence."""
        return f"{self.name} seed {self.seed}"

    @property
    def family(self) -> str:
        """The paper's name for such a model."""
        return self.recipe.model.shortener.paper_name

    def line(self) -> Json:
        """The first fields of its line in a document."""
        return {"recipe": self.name, "seed": self.seed, "family": self.family}

    def subject(self) -> Subject:
        """The run as a subject of `evaluate` and `inspect-deletions`."""
        from mrt5cli.subject import find_subject

        return find_subject(str(self.run.path))

    def load(self, device: torch.device | None) -> MrT5ForConditionalGeneration:
        """Load its finished model for evaluation."""
        from mrt5cli.subject import load_model

        return load_model(self.subject(), device)

    @property
    def config(self) -> Json:
        """The configuration of its finished model."""
        return read_object(self.run.model / "config.json", HINT)

    def read(self, path: Path) -> SavedEvaluation | None:
        """One of its evaluations; None if it is to be skipped."""
        return SavedEvaluation.read(path, HINT)

    @cached_property
    def evaluations(self) -> list[SavedEvaluation]:
        """The finished model's results on test data, with the recipe's deletion and no moved threshold.

        Those that the experiment shows come first, then those on the recipe's own task. In a plan they are
        the plan's evaluations, otherwise all files in the run's eval folder.
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
        """Whether an evaluation covers the recipe's own task completely."""
        return one.languages is None and not self._on_another_task(one)

    def own(self, number: str = "loss") -> tuple[Row, SavedEvaluation] | None:
        """The summary row (total or only subset) on its own task that has a number, and its evaluation."""
        found = ((one.rows[-1], one) for one in self.evaluations if self.is_own_task(one))
        return next(((row, one) for row, one in found if row.number(number) is not None), None)


@dataclass(frozen=True)
class ExperimentRuns:
    """The runs of one experiment.

    Attributes:
        experiment: the experiment's id.
        runs: runs in the experiment's order, by seed; some may not be trained yet.
        baseline: name of the recipe that losses and times are compared with, or None.
        version: the paper's version, or None if nothing was published.
        smoke: whether the runs are tiny, so that few examples suffice.
        device: device of the models; by default the CPU.
        progress: called while an analysis works.
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
        """The runs with a finished model."""
        return [run for run in self.runs if (run.run.model / "config.json").is_file()]

    def missing(self, there: Sequence[ExperimentRun] | None = None) -> list[str]:
        """Titles of the runs that are not in `there`; by default of the untrained runs."""
        found = self.trained if there is None else there
        return [run.title for run in self.runs if run not in found]

    @property
    def baselines(self) -> list[ExperimentRun]:
        """The baseline's trained runs.

        Raises:
            UserError: the baseline has no finished run.
        """
        found = [run for run in self.trained if run.name == self.baseline]
        if not found:
            raise UserError(
                f"{self.experiment} compares with {self.baseline}, which has no finished run",
                "train the baseline first",
            )
        return found
