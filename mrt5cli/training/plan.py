"""A planned run: its options, its directory, and the task and model that are ready to train."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrt5cli.recipe import Recipe
from mrt5cli.rundir import RunDir, RunState
from mrt5cli.runtime import Runtime
from mrt5cli.tasks.base import Task
from mrt5cli.training.forecast import Forecast
from mrt5cli.training.start import Start

if TYPE_CHECKING:
    from mrt5cli.models.fast.choice import Choice


@dataclass(frozen=True)
class RunOptions:
    """How to run a recipe: everything that the recipe itself does not specify.

    Attributes:
        out: the run directory.
        resume: continue from the latest checkpoint; without one, start; a finished run is left as it is.
        overwrite: replace an existing run.
        device: as accepted by `runtime.device`.
        allow_pickle: also accept pickled weights as a start.
    """

    out: Path
    resume: bool = False
    overwrite: bool = False
    device: str | None = None
    allow_pickle: bool = True


@dataclass(frozen=True)
class Prepared:
    """The loaded task and model of a run.

    Attributes:
        example: source and target text of one training example.
        start: the model and the origin of its weights.
        at_once: examples per batch of a process's stream: a micro-batch, or with `training.batch_tokens` the
            process's share of an optimizer step, which is divided later.
        micro_batches: batches of the stream per optimizer step.
        attention: the attention implementation.
    """

    task: Task
    example: tuple[str, str]
    start: Start
    at_once: int
    micro_batches: int
    attention: Choice


@dataclass(frozen=True)
class TrainingPlan:
    """One run, checked and ready to train.

    Attributes:
        before: state of the run to resume; empty for a fresh start.
        resume_step: step of the checkpoint to resume from, or None for a fresh start.
        notes: one sentence for each thing that the user should know.
        damaged: one sentence for each damaged part of the resumed run; also among the notes.
        changed: keys that a new segment changes, each with both values as text.
        prepared: task and model; None if the run is finished.
        forecast: estimated time and memory; None if the run is finished.
        facts: the plan's lines, each label with its text.
    """

    recipe: Recipe
    options: RunOptions
    runtime: Runtime
    before: RunState
    resume_step: int | None
    notes: list[str]
    damaged: list[str] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    prepared: Prepared | None = None
    forecast: Forecast | None = None
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def run(self) -> RunDir:
        return RunDir(self.options.out)

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint to resume from."""
        return None if self.resume_step is None else self.run.checkpoint(self.resume_step)

    @property
    def begins_segment(self) -> bool:
        """Whether the run starts a new segment at the end of a finished run."""
        return self.before.finished and self.resume_step == self.recipe.training.continues_from

    @property
    def text(self) -> str:
        """The text printed before a run starts."""
        lines = [f"{name:<9}{fact}".replace("\n", f"\n{'':<9}") for name, fact in self.facts.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    @property
    def document(self) -> dict[str, Any]:
        """The JSON form, for scripts."""
        ready = self.prepared
        return {
            "status": "finished" if ready is None else "planned",
            "run": str(self.run.path),
            "resume_step": self.resume_step,
            "continues_from": self.recipe.training.continues_from or None,
            "parameters": ready and ready.start.model.num_parameters(),
            "trained_parameters": ready and ready.start.model.num_parameters(only_trainable=True),
            "attention": ready and str(ready.attention),
            **{name: fact for name, fact in self.facts.items() if name not in ("run", "output")},
            "estimate": None if self.forecast is None else self.forecast.document(),
            "notes": self.notes,
            "recipe": self.recipe.model_dump(mode="json"),
        }
