"""What analyses are given: the runs of an experiment, with their recipes, models and evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from mrt5cli.errors import UserError
from mrt5cli.json_files import read_object
from mrt5cli.recipe import Recipe
from mrt5cli.rundir import RunDir

if TYPE_CHECKING:
    import torch

    from mrt5cli.evaluation.subject import Subject
    from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration

FAMILIES = {
    "none": "ByT5",
    "delete_gate": "MrT5",
    "random": "Random",
    "fixed": "Fixed",
    "boundary_predictor": "BP",
    "convolution": "CP",
    "source_removed": "no source",
}
"""Kinds of shortener, as the paper calls the models."""

Progress = Callable[[str, str, int], None]
"""Called with what is looked at, a part of it, and the examples done."""


class RunLine(TypedDict):
    """What every line of a document says of its run."""

    recipe: str
    seed: int
    family: str


@dataclass(frozen=True)
class OwnResult:
    """An evaluation of a run on its own task.

    Attributes:
        row: the total, or the only subset's, as `evaluation.rows.Row` is saved.
        timed_on: what a time depends on besides the model: device, precision, threads, batch size.
    """

    row: Mapping[str, Any]
    timed_on: tuple[str, str, int, int]


@dataclass(frozen=True)
class ExperimentRun:
    """One run of an experiment.

    Attributes:
        recipe_name: shipped name of its recipe.
        recipe: that it was trained by; in a smoke plan, shrunk.
        run: its directory.
        results: files of its evaluations, those first that its experiment shows; they may not be there yet.
    """

    recipe_name: str
    recipe: Recipe
    run: RunDir
    results: tuple[Path, ...] = ()

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        return f"{self.recipe_name} seed {self.seed}"

    @property
    def family(self) -> str:
        """What the paper calls such a model."""
        return FAMILIES[self.recipe.model.shortener.kind]

    @property
    def finished(self) -> bool:
        return (self.run.model / "config.json").is_file()

    def line(self) -> RunLine:
        """The beginning of its line in a document."""
        return {"recipe": self.recipe_name, "seed": self.seed, "family": self.family}

    def subject(self) -> Subject:
        """The run as `evaluate` and `inspect-deletions` look at it."""
        from mrt5cli.evaluation.subject import find_subject

        return find_subject(str(self.run.path))

    def load(self, device: torch.device | None) -> MrT5ForConditionalGeneration:
        """Its finished model, ready to be looked at."""
        from mrt5cli.evaluation.subject import load_model

        return load_model(self.subject(), device)

    def config(self) -> MrT5Config:
        """The configuration of its finished model."""
        from mrt5cli.models import MrT5Config

        return MrT5Config.from_pretrained(self.run.model)

    def own_result(self, number: str = "loss") -> OwnResult | None:
        """The first evaluation of its own task, on test data, deleting as the recipe says, with that number.

        Results at other thresholds, or with the weights of another step, are not the run's own.
        """
        settings = self.recipe.task.model_dump(mode="json")
        deletion = "hard" if self.recipe.evaluation.hard_delete else "soft"
        for path in filter(Path.is_file, self.results):
            document = read_object(path, "delete it, and reproduce makes it anew")
            model = document["models"][0]
            row = model["rows"][-1]
            if (
                document["split"] == "test"
                and document["deletion"] == deletion
                and document["languages"] is None
                and document["task"]["settings"] == settings
                and model.get("calibration") is None
                and not Path(model["source"]).name.startswith("step-")
                and row.get(number) is not None
            ):
                conditions = model["device_name"], model["dtype"], model["threads"], document["batch_size"]
                return OwnResult(row, conditions)
        return None


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
        progress: of whoever waits.
    """

    experiment: str
    runs: tuple[ExperimentRun, ...]
    baseline: str | None = None
    version: str | None = None
    smoke: bool = False
    device: torch.device | None = None
    progress: Progress | None = None

    @cached_property
    def trained(self) -> list[ExperimentRun]:
        """Those whose model is finished."""
        return [run for run in self.runs if run.finished]

    def missing(self, there: list[ExperimentRun] | None = None) -> list[str]:
        """Names of the runs that are not there; by default of those that are not trained."""
        found = self.trained if there is None else there
        return [run.name for run in self.runs if run not in found]

    @property
    def baselines(self) -> list[ExperimentRun]:
        """Trained runs of the baseline.

        Raises:
            UserError: there is none.
        """
        found = [run for run in self.trained if run.recipe_name == self.baseline]
        if not found:
            raise UserError(
                f"{self.experiment} has no finished run of its baseline, {self.baseline}",
                "losses and times are compared with it: train it first",
            )
        return found

    def report(self, what: str, part: str, done: int) -> None:
        """Say how far it is."""
        if self.progress is not None:
            self.progress(what, part, done)
