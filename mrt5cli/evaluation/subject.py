"""What `evaluate` and `inspect-deletions` look at: a run, a checkpoint or a Hub model, and a task for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mrt5cli.errors import UserError
from mrt5cli.recipe import DiagnosticTask, EmbeddedSource, Recipe, SpanCorruptionTask

if TYPE_CHECKING:
    from mrt5cli.rundir import RunDir

DIAGNOSTICS: tuple[str, ...] = get_args(DiagnosticTask.model_fields["kind"].annotation)
TASK_KINDS = ("span_corruption", *DIAGNOSTICS)


@dataclass(frozen=True)
class Subject:
    """One model to look at.

    Attributes:
        name: short, for tables: the run directory's name, or what the user typed.
        source: directory or Hub id that `models.load` takes.
        run: the run it comes from, or None.
        recipe: that run's recipe, or one found beside the checkpoint, or None.
    """

    name: str
    source: str
    run: RunDir | None
    recipe: Recipe | None

    @property
    def step(self) -> int | None:
        """The optimizer step of a run's checkpoint; None for a finished model."""
        folder = Path(self.source).name
        return int(folder.removeprefix("step-")) if self.run and folder.startswith("step-") else None


def find_subject(path_or_hub_id: str) -> Subject:
    """A run directory, a checkpoint directory or a Hub id, whichever this is.

    Raises:
        UserError: none of the three.
    """
    from mrt5cli import recipe, rundir

    source, run = rundir.resolve_model(path_or_hub_id)
    if run is not None:
        folder = Path(source).name
        name = run.path.name + (f"/{folder}" if folder.startswith("step-") else "")
        return Subject(name, source, run, run.recipe())
    beside = Path(source) / "recipe.yaml"
    found = recipe.load(beside) if beside.is_file() else None
    return Subject(path_or_hub_id.rstrip("/"), source, None, found)


def load_model(subject: Subject, device: Any = None) -> Any:
    """The subject's model in eval mode, on a device.

    Raises:
        CheckpointError: it is not a checkpoint we can load.
    """
    from mrt5cli.models import load

    model = load(subject.source)
    return model if device is None else model.to(device)


def choose_task(option: str | None, subject: Subject) -> Any:
    """The task section to use: the subject's own, another kind of suitable length, or another recipe's.

    Args:
        option: what `--task` says: a kind of task, a recipe's name or file, or None.

    Raises:
        UserError: a subject without a recipe and no option, or an option that is neither kind nor recipe.
    """
    own = subject.recipe.task if subject.recipe is not None else None
    if option is None:
        if own is None:
            here = "" if Path(subject.source).is_dir() else " is no directory here; as a Hub id it"
            raise UserError(
                f"{subject.name}{here} comes without a recipe, so its task is not known",
                f"name one with --task: a recipe, or one of {', '.join(TASK_KINDS)}",
            )
        return own
    if option not in TASK_KINDS:
        from mrt5cli import recipe

        try:
            found = recipe.find(option)
        except UserError as error:
            kinds = f"--task takes a recipe or one of {', '.join(TASK_KINDS)}"
            raise UserError(f"--task {option}: {error.message}", kinds) from error
        return recipe.load(found).task
    if own is not None and own.kind == option:
        return own
    length = None if own is None else task_length(own)
    if option == "span_corruption":
        embedded = EmbeddedSource(kind="embedded")
        if length is None:
            return SpanCorruptionTask(kind="span_corruption", source=embedded)
        return SpanCorruptionTask(kind="span_corruption", source=embedded, input_length=max(16, length))
    default = DiagnosticTask.model_fields["length"].default
    return DiagnosticTask.model_validate(
        {"kind": option, "length": default if length is None else min(length, default)}
    )


def task_length(section: Any) -> int:
    """Encoder input of a task section, in byte tokens."""
    return int(section.input_length if section.kind == "span_corruption" else section.length)


def check_fits(model: Any, section: Any, name: str) -> None:
    """Refuse a task that is longer than what the model has positions for.

    Raises:
        UserError: the model has learned positions, and too few.
    """
    config = model.config
    if config.has_absolute_position_embeddings and task_length(section) > config.max_position_embeddings:
        raise UserError(
            f"{name} learned {config.max_position_embeddings} positions and cannot read the "
            f"{task_length(section)} of {section.kind}",
            "choose a task with shorter inputs",
        )
