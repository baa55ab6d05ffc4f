"""What a checkpoint of a run holds, all of which resuming needs; looked at before a run is resumed.

transformers resumes without an optimizer's state, a schedule or random states that are not there, and torch
reads what is damaged inside of a whole archive: both without a word, and the curve is another one.
"""

from __future__ import annotations

import shlex
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals
from transformers.utils import CONFIG_NAME

from mrt5cli.errors import UserError
from mrt5cli.json_files import read_object
from mrt5cli.rundir import RunDir
from mrt5cli.text import first_line

OPTIMIZER_STATE = ("state", "param_groups")
SCHEDULE = ("last_epoch",)
RANDOM_STATE = ("python", "numpy", "cpu")
"""What the files of torch say at least."""


@dataclass(frozen=True)
class OwnState:
    """What the trainer writes beside what transformers does, a file a process.

    Attributes:
        processes: of the group.
        controller, hard_delete_draws, stream, window, best: states of what is called so.
        batches_taken: by this process.
        seconds: spent training.
    """

    processes: int
    controller: dict[str, Any]
    hard_delete_draws: Any
    batches_taken: int
    stream: dict[str, Any]
    window: dict[str, Any]
    seconds: float
    best: dict[str, Any] | None


def own_state_name(rank: int) -> str:
    """The trainer's own file of a process."""
    return f"mrt5_state_{rank}.json"


def random_state_name(rank: int, processes: int) -> str:
    """The file of a process's random states, as transformers names it."""
    return f"rng_state_{rank}.pth" if processes > 1 else "rng_state.pth"


def check_whole(run: RunDir, step: int, processes: int) -> None:
    """Refuse a checkpoint that lacks something, or in which something is damaged or of another step.

    The weights themselves are left to who loads them.

    Args:
        run, step: whose checkpoint.
        processes: that are to resume it.

    Raises:
        UserError: it names the file.
    """
    checkpoint = run.checkpoint(step)
    _check_there(checkpoint / CONFIG_NAME)
    for rank in range(processes):
        read_own_state(checkpoint, rank, processes)
    _check_trainer_state(checkpoint / TRAINER_STATE_NAME, step)
    optimizer = _read_archive(checkpoint / OPTIMIZER_NAME, OPTIMIZER_STATE)
    updates = [int(one["step"]) for one in optimizer["state"].values() if "step" in one]
    _check_step(checkpoint / OPTIMIZER_NAME, max(updates, default=step), step)
    schedule = _read_archive(checkpoint / SCHEDULER_NAME, SCHEDULE)
    _check_step(checkpoint / SCHEDULER_NAME, schedule["last_epoch"], step)
    for rank in range(processes):
        _read_archive(checkpoint / random_state_name(rank, processes), RANDOM_STATE)


def read_own_state(checkpoint: Path, rank: int, processes: int) -> OwnState:
    """What the trainer of a process has written.

    Args:
        rank: of the process.
        processes: that are to resume the checkpoint.

    Raises:
        UserError: it is not there, or damaged, or other processes wrote it.
    """
    names = [field.name for field in fields(OwnState)]
    content = _read_object(checkpoint / own_state_name(rank), names)
    state = OwnState(**{name: content[name] for name in names})
    if state.processes != processes:
        raise UserError(
            f"{checkpoint} was written by {state.processes} processes, this is {processes}",
            "resume with as many processes: each one's place in the data is its own",
        )
    return state


def not_whole(checkpoint: Path, why: str) -> UserError:
    """The error for a checkpoint that nothing can go on from; its hint says how to go on from the one before.

    Args:
        why: ends a sentence that begins with the checkpoint.
    """
    run = RunDir(checkpoint.parents[1])
    steps = run.saved_steps()
    before = [run.checkpoint(step) for step in steps if run.checkpoint(step).name < checkpoint.name]
    delete = f"rm -r {shlex.quote(str(checkpoint))}"
    if before:
        hint = f"delete it, and --resume goes on from the one before it, {before[-1].name}: {delete}"
    else:
        hint = (
            f"there is none before it: bring it back from a copy, or delete it to start at step 0: {delete}"
        )
    return UserError(f"{checkpoint} {why}", hint)


@contextmanager
def states_fit(checkpoint: str | Path | None, name: str) -> Iterator[None]:
    """Whole states that are not those of this model, or of this recipe's controller, as a `UserError`.

    Args:
        checkpoint: None where there is none, and nothing to fit.
        name: of the file, or files, that are being taken up.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        if checkpoint is None:
            raise
        what = f"{name} does not fit this model and recipe ({first_line(error)})"
        raise not_whole(Path(checkpoint), f"cannot be gone on from: {what}") from error


def _damaged(path: Path, how: str) -> UserError:
    return not_whole(path.parent, f"is not a whole checkpoint: {path.name} {how}")


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise not_whole(path.parent, f"is not a whole checkpoint: it has no {path.name}")
    if path.stat().st_size == 0:
        raise _damaged(path, "is empty")


def _read_object(path: Path, keys: Collection[str]) -> dict[str, Any]:
    _check_there(path)
    try:
        content = read_object(path)
    except UserError as error:
        why = error.message.removeprefix(f"{path} ")
        raise _damaged(path, f"is cut off or damaged: it {why}") from error
    _check_keys(path, content, keys)
    return content


def _check_keys(path: Path, content: Any, keys: Collection[str]) -> None:
    lost = [key for key in keys if not isinstance(content, dict) or key not in content]
    if lost:
        raise _damaged(path, f"says nothing of {', '.join(lost)}")


def _check_step(path: Path, found: Any, expected: int) -> None:
    if found != expected:
        raise _damaged(path, f"is that of step {found}")


def _check_trainer_state(path: Path, step: int) -> None:
    content = _read_object(path, ("global_step",))
    try:
        TrainerState(**content)
    except TypeError as error:
        raise _damaged(path, f"is not one of transformers ({first_line(error)})") from error
    _check_step(path, content["global_step"], step)


def _read_archive(path: Path, keys: Collection[str]) -> dict[str, Any]:
    """What a file of torch says, mapped; one that is not whole, to the byte, is refused: it has checksums."""
    _check_there(path)
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        with safe_globals():  # type: ignore[no-untyped-call]
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror or first_line(error)})") from error
    except Exception as error:  # what is no archive of torch makes both readers fail in any way
        raise _damaged(path, "is cut off or damaged") from error
    if broken is not None:
        raise _damaged(path, f"is damaged ({broken})")
    _check_keys(path, content, keys)
    empty = [key for key in keys if isinstance(content[key], dict | list | tuple) and not content[key]]
    if empty:
        raise _damaged(path, f"says nothing of {', '.join(empty)}")
    return dict(content)
