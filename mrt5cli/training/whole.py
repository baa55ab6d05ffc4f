"""What a checkpoint of a run holds, all of which resuming needs; checked before a run is resumed.

transformers resumes without an optimizer's state, a schedule or random states that are missing, and torch
reads an archive that is damaged inside: both without a word, and the curve is another one.
"""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals
from transformers.utils import CONFIG_NAME

from mrt5cli.errors import UserError
from mrt5cli.rundir import RunDir
from mrt5cli.text import first_line

STEP_IN: dict[str, Callable[[Any], int]] = {
    TRAINER_STATE_NAME: lambda content: content["global_step"],
    # A weight that took no part in a step has seen fewer of them.
    OPTIMIZER_NAME: lambda content: max(int(weight["step"]) for weight in content["state"].values()),
    SCHEDULER_NAME: lambda content: content["last_epoch"],
}
"""How many optimizer steps the content of a file has seen."""
RANDOM_STATES = {"python", "numpy", "cpu"}


def own_state_name(rank: int) -> str:
    """The file of a process with what the trainer saves beside what transformers does."""
    return f"mrt5_state_{rank}.json"


def check_whole(checkpoint: Path) -> int:
    """Refuse a checkpoint that lacks something, or in which something is damaged or of another step.

    The weights themselves are left to who loads them.

    Returns:
        How many processes wrote it; any number may resume it.

    Raises:
        UserError: it names the file.
    """
    _read(checkpoint / CONFIG_NAME)
    processes = len(own_states(checkpoint))
    step = RunDir.step_of(checkpoint)
    for name, step_in in STEP_IN.items():
        content = _read(checkpoint / name)
        with broken_by(checkpoint, f"{name} is damaged"):
            if (found := step_in(content)) != step:
                raise ValueError(f"it is of step {found}")
    for rank in range(processes):
        name = f"rng_state_{rank}.pth" if processes > 1 else "rng_state.pth"
        if lost := RANDOM_STATES - set(_read(checkpoint / name)):
            raise not_whole(checkpoint, f"{name} has no {', '.join(sorted(lost))}")
    return processes


def own_states(checkpoint: Path) -> list[dict[str, Any]]:
    """What the trainer of each process has saved beside what transformers does.

    Raises:
        UserError: one of them is missing or damaged.
    """
    states: list[dict[str, Any]] = [_read(checkpoint / own_state_name(0))]
    with broken_by(checkpoint, f"{own_state_name(0)} is damaged"):
        processes = int(states[0]["processes"])
    for rank in range(1, processes):
        states.append(_read(checkpoint / own_state_name(rank)))
        with broken_by(checkpoint, f"{own_state_name(rank)} is damaged"):
            if (found := states[rank]["processes"]) != processes:
                raise ValueError(f"it is of one of {found} processes, {own_state_name(0)} of {processes}")
    return states


def not_whole(checkpoint: Path, why: str) -> UserError:
    """The error for a checkpoint that cannot be resumed; its hint says how to resume the one before.

    Args:
        why: a clause of its own.
    """
    run = RunDir(checkpoint.parents[1])
    earlier = [run.checkpoint(step) for step in run.saved_steps() if run.checkpoint(step) < checkpoint]
    if earlier:
        hint = f"delete it, and --resume continues from the one before it, {earlier[-1].name}"
    else:
        hint = "there is none before it: bring it back from a copy, or delete it to start at step 0"
    delete = f"rm -r {shlex.quote(str(checkpoint))}"
    return UserError(f"{checkpoint} is not a whole checkpoint: {why}", f"{hint}: {delete}")


@contextmanager
def broken_by(
    checkpoint: Path,
    problem: str,
    errors: tuple[type[Exception], ...] = (LookupError, TypeError, ValueError, AttributeError),
) -> Iterator[None]:
    """Have what fails while a checkpoint is read be `not_whole`."""
    try:
        yield
    except errors as error:
        raise not_whole(checkpoint, f"{problem} ({first_line(error)})") from error


def _read(path: Path) -> Any:
    """A JSON file's value; or the content of an archive of torch, whose checksums all hold."""
    if not path.is_file():
        raise not_whole(path.parent, f"it has no {path.name}")
    with broken_by(path.parent, f"{path.name} is cut off or damaged", (Exception,)):
        if path.suffix == ".json":
            return json.loads(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise ValueError(broken)
        with safe_globals():  # type: ignore[no-untyped-call]
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
