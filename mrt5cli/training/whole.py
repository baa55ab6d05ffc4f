"""Verifies that a checkpoint contains everything that resuming needs.

transformers silently resumes without a missing optimizer state, schedule or random state, and torch silently
reads a damaged archive; either changes the loss curve. A checkpoint is therefore compared with its manifest;
one of an older version has none, and its files are inspected instead.
"""

from __future__ import annotations

import shlex
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals
from transformers.utils import CONFIG_NAME

from mrt5cli import manifest
from mrt5cli.errors import CheckpointError, UserError
from mrt5cli.json_files import parse
from mrt5cli.models.weights import check_files
from mrt5cli.rundir import RunDir
from mrt5cli.text import first_line, shortened


def _step_of_trainer(content: Any) -> int:
    state = TrainerState(**content)
    for name, kind in READ_OF_TRAINER.items():
        if not isinstance(getattr(state, name), kind):
            raise TypeError(f"{name} is {shortened(repr(getattr(state, name)))}")
    return state.global_step


READ_OF_TRAINER = {
    **dict.fromkeys(("global_step", "max_steps", "train_batch_size", "num_train_epochs"), int),
    **{"stateful_callbacks": dict | None, "best_model_checkpoint": str | None},
}
"""The fields of trainer_state.json that resuming reads."""
STEP_IN: dict[str, Callable[[Any], int]] = {
    TRAINER_STATE_NAME: _step_of_trainer,
    # A weight that received no gradient in some step has counted fewer steps.
    OPTIMIZER_NAME: lambda content: max(int(weight["step"]) for weight in content["state"].values()),
    SCHEDULER_NAME: lambda content: content["last_epoch"],
}
"""For each file, the number of optimizer steps that its content has counted."""
RANDOM_STATES = {"python", "numpy", "cpu"}


class NotWhole(UserError):
    """A file of a checkpoint is missing, damaged or from another step."""


def own_state_name(rank: int) -> str:
    """The file with a process's own training state, which transformers does not save."""
    return f"mrt5_state_{rank}.json"


def newest_whole(run: RunDir) -> tuple[int | None, int, dict[int, str]]:
    """The newest valid checkpoint of a run.

    Returns:
        Its step (None: the run has no checkpoint), the number of processes that wrote it, and for each newer
        checkpoint a sentence on what is wrong with it.

    Raises:
        UserError: the run has checkpoints, but none is valid.
    """
    passed_over: dict[int, str] = {}
    for step in reversed(run.saved_steps()):
        try:
            processes = check_whole(run.checkpoint(step))
        except NotWhole as error:
            passed_over[step] = error.message
        else:
            return step, processes, passed_over
    if passed_over:
        newest, *others = passed_over.values()
        raise UserError(
            newest,
            "restore what is missing or damaged from a backup; to start over, choose another directory with "
            f"--out, or delete this one: rm -r {shlex.quote(str(run.path))}",
            others,
        )
    return None, 0, {}


def check_whole(checkpoint: Path) -> int:
    """Refuse a checkpoint with a missing or damaged file, or with one from another step.

    Without a manifest, the weights are verified only when they are loaded.

    Returns:
        The number of processes that wrote it; any number may resume it.

    Raises:
        NotWhole: names the file.
    """
    if why := manifest.fault(checkpoint):
        raise not_whole(checkpoint, why)
    _read(checkpoint / CONFIG_NAME)
    try:
        check_files(checkpoint)
    except CheckpointError as error:
        why = error.message.removeprefix(f"{checkpoint} is not a complete checkpoint: ")
        raise not_whole(checkpoint, why.removeprefix(f"{checkpoint}/")) from error
    states = own_states(checkpoint)
    processes = len(states)
    step = RunDir.step_of(checkpoint)
    for name, step_in in STEP_IN.items():
        content = _read(checkpoint / name)
        with broken_by(checkpoint, f"{name} is damaged"):
            if (found := step_in(content)) != step:
                raise ValueError(f"it is from step {found}")
    for rank in range(processes):
        name = f"rng_state_{rank}.pth" if processes > 1 else "rng_state.pth"
        content = _read(checkpoint / name)
        with broken_by(checkpoint, f"{name} is damaged"):
            lost = RANDOM_STATES - content.keys()
        if lost:
            raise not_whole(checkpoint, f"{name} has no {', '.join(sorted(lost))}")
    _check_best(checkpoint, states[0])
    return processes


def _check_best(checkpoint: Path, state: dict[str, Any]) -> None:
    """Refuse a checkpoint with damaged best weights, because the run's model may become a copy of them."""
    with broken_by(checkpoint, f"{own_state_name(0)} is damaged"):
        step = None if state.get("best") is None else state["best"]["step"]
        if step is None:
            return
        weights = RunDir(checkpoint.parents[1]).best_weights(step)
    why = manifest.fault(weights)
    if why is None and not (weights / CONFIG_NAME).is_file():
        why = f"it has no {CONFIG_NAME}"
    if why:
        raise not_whole(checkpoint, f"its best weights are damaged, {weights}: {why}")


def own_states(checkpoint: Path) -> list[dict[str, Any]]:
    """The training state of each process that wrote a checkpoint, in order of rank.

    Raises:
        UserError: one of the files is missing or damaged.
    """
    states: list[dict[str, Any]] = [_read(checkpoint / own_state_name(0))]
    with broken_by(checkpoint, f"{own_state_name(0)} is damaged"):
        processes = int(states[0]["processes"])
    for rank in range(1, processes):
        states.append(_read(checkpoint / own_state_name(rank)))
        with broken_by(checkpoint, f"{own_state_name(rank)} is damaged"):
            if (found := states[rank]["processes"]) != processes:
                raise ValueError(f"written by {found} processes, but {own_state_name(0)} by {processes}")
    return states


def not_whole(checkpoint: Path, why: str) -> NotWhole:
    """The error for a checkpoint that cannot be resumed; `why` is a complete clause that names the file."""
    run = RunDir(checkpoint.parents[1])
    earlier = [run.checkpoint(step) for step in run.saved_steps() if run.checkpoint(step) < checkpoint]
    if earlier:
        hint = f"delete it, and --resume continues from the previous one, {earlier[-1].name}"
    else:
        hint = "there is no earlier one: restore it from a backup, or delete it to start at step 0"
    delete = f"rm -r {shlex.quote(str(checkpoint))}"
    return NotWhole(f"{checkpoint} is not a complete checkpoint: {why}", f"{hint}: {delete}")


@contextmanager
def broken_by(checkpoint: Path, problem: str) -> Iterator[None]:
    """Turn any failure to read a checkpoint into `not_whole`."""
    try:
        yield
    except UserError:
        raise
    except UnpicklingError as error:  # torch's message explains how to execute the pickle anyway
        raise not_whole(checkpoint, f"{problem} (it contains more than numbers)") from error
    except Exception as error:  # a damaged file makes its reader fail in any way
        raise not_whole(checkpoint, f"{problem} ({first_line(error)})") from error


def _read(path: Path) -> Any:
    """The value of a JSON file, or the content of a torch archive with valid checksums."""
    if not path.is_file():
        raise not_whole(path.parent, f"it has no {path.name}")
    with broken_by(path.parent, f"{path.name} is cut off or damaged"):
        if path.suffix == ".json":
            return parse(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            # The manifest already covers the checksum of each member.
            if manifest.read(path.parent) is None and (broken := archive.testzip()):
                raise ValueError(broken)
        with safe_globals():  # type: ignore[no-untyped-call]
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
