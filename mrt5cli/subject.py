"""What commands work on: a run, a checkpoint or a Hub model, and a task for it."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mrt5cli import own_code
from mrt5cli.errors import UserError
from mrt5cli.recipe import DiagnosticTask, FileRows, FilesSource, Recipe, SpanCorruptionTask, Text2TextTask
from mrt5cli.recipe.tasks import SECTIONS, GivenFiles, PairFiles, Shares, TaskSection, kinds

if TYPE_CHECKING:
    import torch

    from mrt5cli.models import MrT5ForConditionalGeneration
    from mrt5cli.rundir import RunDir
    from mrt5cli.runtime import Precision

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """One model to work on.

    Attributes:
        name: a short name for tables: that of the run directory, or what the user typed.
        source: the checkpoint directory.
        run: the run that the model belongs to, or None.
        recipe: the run's recipe, or one found next to the checkpoint, or None.
        commit: the commit of its Hub repository, or None.
        model: the model if the caller has loaded it; None if it is to be read from `source`.
    """

    name: str
    source: str
    run: RunDir | None
    recipe: Recipe | None
    commit: str | None = None
    model: MrT5ForConditionalGeneration | None = None

    @property
    def step(self) -> int | None:
        """Optimizer step if this is a run's checkpoint, otherwise None."""
        folder = Path(self.source).name
        return int(folder.removeprefix("step-")) if self.run and folder.startswith("step-") else None


def find_subject(path_or_hub_id: str, *, revision: str | None = None, allow_pickle: bool = True) -> Subject:
    """Find a run directory, a checkpoint directory or a Hub model, which is downloaded if needed.

    Args:
        revision: branch, tag or commit of a Hub model; ignored for directories.
        allow_pickle: False refuses a model that has its weights in pickles only.

    Raises:
        UserError: it is neither a run, a checkpoint nor a Hub id, or the Hub model could not be obtained.
        CheckpointError: it contains pickles, and they are not allowed.
    """
    from mrt5cli import recipe
    from mrt5cli.models.hub_files import locate

    found = locate(path_or_hub_id, revision=revision, allow_pickle=allow_pickle)
    if found.run is not None:
        found.run.meta()  # results record when the run ended; if that is unreadable, fail early
        folder = found.folder.name
        name = found.run.path.name + (f"/{folder}" if folder.startswith("step-") else "")
        return Subject(name, str(found.folder), found.run, found.run.recipe_of(found.folder))
    beside = found.folder / "recipe.yaml"
    trained_on = recipe.load(beside, trusted=False) if beside.is_file() else None
    return Subject(path_or_hub_id.rstrip("/"), str(found.folder), None, trained_on, found.commit)


def history(subject: Subject) -> list[Subject]:
    """Every checkpoint that a run still has, in order, followed by its model if it has finished."""
    assert subject.run is not None  # checked by the caller
    found = [find_subject(str(subject.run.checkpoint(step))) for step in subject.run.saved_steps()]
    return [*found, subject] if subject.run.is_finished or not found else found


def find_subjects(names: Sequence[str], revision: str | None, *, allow_pickle: bool = True) -> list[Subject]:
    """Find several subjects; the revision applies to those that are Hub models.

    Runs with equal names in different folders are named as they were typed.

    Raises:
        UserError: there is a revision but no Hub model.
        UserError, CheckpointError: as in `find_subject`.
    """
    from mrt5cli.rundir import run_and_step

    hub_ids = [name for name in names if not (Path(name).exists() or run_and_step(name))]
    if revision is not None and not hub_ids:
        raise UserError(
            f"--revision {revision} needs a Hub model, and none is given",
            "leave out --revision, or give a Hub id",
        )
    found = [
        find_subject(name, revision=revision if name in hub_ids else None, allow_pickle=allow_pickle)
        for name in names
    ]
    called = Counter(name for _, name in {(one.source, one.name) for one in found})
    return [
        replace(one, name=name.rstrip("/")) if called[one.name] > 1 else one
        for one, name in zip(found, names, strict=True)
    ]


def newest_subject(option: str | None) -> Subject:
    """The most recently finished run under runs/, optionally of one task.

    Args:
        option: the task, as in `--task`; None accepts any.

    Raises:
        UserError: the run does not exist.
    """
    from mrt5cli import rundir

    own_code.take_in_packages()
    unknown: UserError | None = None
    try:
        kind = option if option is None or option in kinds() else _task_of_recipe(option).kind
    except UserError as error:  # it may be a custom task, whose code a run imports
        kind, unknown = option, error
    folder = Path(rundir.DEFAULT_FOLDER)
    runs = [rundir.RunDir(path) for path in (folder.iterdir() if folder.is_dir() else ())]
    finished = [run for run in runs if run.is_run and run.is_finished]
    for run in sorted(finished, key=lambda run: run.meta().get("ended") or "", reverse=True):
        try:
            subject = find_subject(str(run.path))
        except UserError as error:  # such as a recipe of another version of the toolkit
            logger.warning("%s is skipped: %s", run.path, error.message)
            continue
        if kind is None or (subject.recipe is not None and subject.recipe.task.kind == kind):
            return subject
    if unknown is not None:
        raise unknown
    trained = "" if kind is None else f" that was trained on {kind}"
    raise UserError(
        f"there is no finished run under {folder}/{trained}",
        "give a run, or train one: `mrt5 pretrain quickstart_byt5` takes minutes on a CPU"
        if kind is None
        else "give a run, or train one: `mrt5 recipe list` lists the recipes",
    )


def check_stays(device: str, precision: Precision) -> None:
    """Refuse to move a model that the caller has loaded, or to change its precision.

    Raises:
        UserError: the device or the precision is not the default.
    """
    if device != "auto" or precision != "fp32":
        raise UserError(
            "a loaded model stays on its device and in its precision",
            "move the model yourself, or give its run",
        )


def load_model(
    subject: Subject, device: torch.device | str | None = None, precision: Precision = "fp32"
) -> MrT5ForConditionalGeneration:
    """Load the subject's model in eval mode; one that the caller has loaded is returned unchanged.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        UserError: the device does not support this precision.
    """
    import torch

    from mrt5cli import runtime
    from mrt5cli.models import load

    if subject.model is not None:
        return subject.model
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision is {precision!r}", "expected 'fp32' or 'bf16'")
    if precision == "bf16" and device is not None:
        runtime.check_bf16(torch.device(device), "leave out --precision")
    model = load(subject.source, dtype={"fp32": "float32", "bf16": "bfloat16"}[precision])
    return model if device is None else model.to(device)


def choose_task(option: str | None, subject: Subject, data: str | None = None) -> TaskSection:
    """Choose the task section: the subject's own, another kind of matching length, or another recipe's.

    Args:
        option: the value of `--task`: a kind of task, a recipe's name or file, or None.
        data: a folder or file of examples that replaces the task's source, or None.

    Raises:
        UserError: the subject has no recipe and there is no option; the option is neither a kind nor a
            recipe; the task needs files and none are given; or data are given for a generated task.
    """
    own = subject.recipe.task if subject.recipe is not None else None
    if option is None:
        if own is None:
            raise UserError(
                f"{subject.name} has no recipe, so its task is unknown",
                f"pass --task with a recipe or one of {', '.join(kinds())}",
            )
        section: TaskSection = own
    elif own is not None and own.kind == option:
        section = own
    elif option not in kinds():
        section = _task_of_recipe(option)
    else:
        section = _default_section(option, None if own is None else own.longest_source, data)
    return section if data is None else _with_data(section, data)


def _task_of_recipe(option: str) -> TaskSection:
    from mrt5cli import recipe

    try:
        return recipe.load(recipe.find(option)).task
    except UserError as error:
        hint = f"pass a recipe or one of {', '.join(kinds())}; {error.hint or ''}".removesuffix("; ")
        first, *more = error.message.split("\n")
        raise UserError(f"--task {option}: {first}", hint, more) from error


def _default_section(kind: str, length: int | None, data: str | None) -> TaskSection:
    """The section of a kind of task with the paper's settings, of the given length if the kind allows it."""
    section = next(one for one in SECTIONS if kind in one.kinds())
    if issubclass(section, Text2TextTask):
        raise UserError(
            f"{kind} needs a recipe that names the columns of its rows",
            "pass one with --task, or write one with mrt5 recipe new text2text --data FILE",
        )
    settings: dict[str, Any] = {"kind": kind}
    if issubclass(section, SpanCorruptionTask):
        settings |= {"source": {"kind": "embedded"}} | ({"input_length": max(16, length)} if length else {})
    elif issubclass(section, DiagnosticTask):
        settings |= {"length": min(length, section.model_fields["length"].default)} if length else {}
    elif section.model_fields["source"].is_required():
        if data is None:
            raise UserError(
                f"the examples of {kind} are files, and none are given",
                "pass their folder with --data, or a recipe with --task",
            )
        settings["source"] = {"kind": "files", "path": "-"}  # `_with_data` puts the real one in its place
    return cast("TaskSection", section.model_validate(settings))


def _with_data(section: TaskSection, data: str) -> TaskSection:
    if isinstance(section, DiagnosticTask):
        raise UserError(
            f"the examples of {section.kind} are generated, not read from {data}",
            "leave out --data, or choose another --task",
        )
    # Unlike in a recipe, a name on the command line need not be UTF-8, which the schema requires.
    source: Any = FileRows.model_construct(kind="files", path=data)
    if isinstance(section, Text2TextTask):
        # The training data keep their held-out rows; of other data, all rows are unseen.
        files = (one for one in section.every_source if isinstance(one, PairFiles))
        own = (one for one in files if os.path.realpath(one.path) == os.path.realpath(data))
        given = GivenFiles.model_construct(kind="files", path=data, split=Shares())
        return section.model_copy(update={"source": next(own, given), "sources": []})
    if isinstance(section, SpanCorruptionTask):
        source = FilesSource.model_construct(kind="files", path=data)
        if isinstance(section.source, FilesSource):
            source = section.source.model_copy(update={"path": data})
        languages = [language for one in section.in_use() for language in one.languages]
        update = {"source": source, "sources": [], "languages": list(dict.fromkeys(languages))}
        return section.model_copy(update=update)
    return section.model_copy(update={"source": source})


def check_fits(
    model: MrT5ForConditionalGeneration, section: TaskSection, name: str, longest_answer: int = 0
) -> None:
    """Refuse a task whose sequences exceed the model's learned positions.

    Args:
        longest_answer: maximum byte tokens of a target or an answer; 0 if there is none.

    Raises:
        UserError: the model has learned positions, and too few of them.
    """
    config = model.config
    if config.has_absolute_position_embeddings and section.longest_source > config.max_position_embeddings:
        raise UserError(
            f"{name} has {config.max_position_embeddings} learned positions and cannot read the "
            f"{section.longest_source} byte tokens of {section.kind}",
            "choose a task with shorter inputs",
        )
    if config.has_absolute_position_embeddings and longest_answer > config.max_position_embeddings:
        raise UserError(
            f"{name} has {config.max_position_embeddings} learned positions and cannot write the "
            f"{longest_answer} byte tokens of {section.kind}",
            "choose a task with shorter targets",
        )
