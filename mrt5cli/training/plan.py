"""A run that has been chosen: its options, its directory, and what is ready to train."""

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
    """How a recipe is run, beside what it says itself.

    Attributes:
        out: the run directory.
        resume: continue from the latest checkpoint; without any, start; a finished run is left as it is.
        overwrite: replace a run that exists.
        device: as `runtime.device`.
        allow_pickle: start from weights in pickles too.
    """

    out: Path
    resume: bool = False
    overwrite: bool = False
    device: str | None = None
    allow_pickle: bool = True


@dataclass(frozen=True)
class Prepared:
    """What a run trains, ready in memory.

    Attributes:
        example: source and target text of one training example.
        start: the model, and where its weights are from.
        at_once: examples that the stream gives a process at once: a micro-batch, or with
            `training.batch_tokens` a whole step, which is divided afterwards.
        micro_batches: batches of so many that are an optimizer step on each process.
        attention: what it is computed by.
    """

    task: Task
    example: tuple[str, str]
    start: Start
    at_once: int
    micro_batches: int
    attention: Choice


@dataclass(frozen=True)
class TrainingPlan:
    """One run, checked and ready.

    Attributes:
        before: how far the run is that this one continues; empty for a fresh start.
        resume_step: the checkpoint to resume from, or None for a fresh start.
        notes: what the user should know, a sentence each.
        damaged: of the run that is resumed, a sentence each; they are among the notes.
        changed: settings that a finished run goes on with others of, keys and both values in words.
        prepared: None where the run is finished, and nothing is left to do.
        forecast: what it will take; None likewise.
        facts: what is trained in words: names, and a line or more each.
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
        """The directory of the run."""
        return RunDir(self.options.out)

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint to resume from."""
        return None if self.resume_step is None else self.run.checkpoint(self.resume_step)

    @property
    def begins_segment(self) -> bool:
        """Whether a finished run goes on from its end."""
        return self.before.finished and self.resume_step == self.recipe.training.continues_from

    @property
    def text(self) -> str:
        """What is printed before a run starts."""
        lines = [f"{name:<9}{fact}".replace("\n", f"\n{'':<9}") for name, fact in self.facts.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    @property
    def document(self) -> dict[str, Any]:
        """The plan for scripts."""
        ready = self.prepared
        return {
            "status": "finished" if ready is None else "planned",
            "run": str(self.run.path),
            "resume_step": self.resume_step,
            "continues_from": self.recipe.training.continues_from or None,
            "parameters": None if ready is None else ready.start.model.num_parameters(),
            "trained_parameters": None
            if ready is None
            else ready.start.model.num_parameters(only_trainable=True),
            "attention": None if ready is None else str(ready.attention),
            **{name: fact for name, fact in self.facts.items() if name not in ("run", "output")},
            "estimate": None if self.forecast is None else self.forecast.document(),
            "notes": self.notes,
            "recipe": self.recipe.model_dump(mode="json"),
        }
