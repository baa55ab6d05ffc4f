"""What a checkpoint of a run holds, all of which resuming needs; checked before a run is resumed.

transformers resumes without an optimizer's state, a schedule or random states that are missing, and torch
reads an archive that is damaged inside: both without a word, and the curve is another one. What its manifest
says of a checkpoint is compared first; one of an older version has none, and is looked through.
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
            raise TypeError(f"its {name} is {shortened(repr(getattr(state, name)))}")
    return state.global_step


READ_OF_TRAINER = {
    **dict.fromkeys(("global_step", "max_steps", "train_batch_size", "num_train_epochs"), int),
    **{"stateful_callbacks": dict | None, "best_model_checkpoint": str | None},
}
"""What resuming reads in trainer_state.json."""
STEP_IN: dict[str, Callable[[Any], int]] = {
    TRAINER_STATE_NAME: _step_of_trainer,
    # A weight that took no part in a step has seen fewer of them.
    OPTIMIZER_NAME: lambda content: max(int(weight["step"]) for weight in content["state"].values()),
    SCHEDULER_NAME: lambda content: content["last_epoch"],
}
"""How many optimizer steps the content of a file has seen."""
RANDOM_STATES = {"python", "numpy", "cpu"}


class NotWhole(UserError):
    """A checkpoint that lacks something, or in which something is damaged or of another step.

    Attributes:
        why: a clause that names the file.
    """

    def __init__(self, checkpoint: Path, why: str, hint: str) -> None:
        super().__init__(f"{checkpoint} is not a whole checkpoint: {why}", hint)
        self.why = why


def own_state_name(rank: int) -> str:
    """The file of a process with what the trainer saves beside what transformers does."""
    return f"mrt5_state_{rank}.json"


def newest_whole(run: RunDir) -> tuple[int | None, int, dict[int, str]]:
    """The step to resume a run from, None where it has no checkpoint; how many processes wrote it; and later
    steps, with what is wrong with each in a sentence.

    Raises:
        UserError: it has checkpoints, and none is whole.
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
            "bring back from a copy what is missing or damaged, or train anew: choose another directory with "
            f"--out, or delete this one: rm -r {shlex.quote(str(run.path))}",
            others,
        )
    return None, 0, {}


def check_whole(checkpoint: Path) -> int:
    """Refuse a checkpoint that lacks something, or in which something is damaged or of another step.

    Without a manifest, the weights themselves are left to who loads them.

    Returns:
        How many processes wrote it; any number may resume it.

    Raises:
        NotWhole: it names the file.
    """
    if why := manifest.fault(checkpoint):
        raise not_whole(checkpoint, why)
    _read(checkpoint / CONFIG_NAME)
    try:
        check_files(checkpoint)
    except CheckpointError as error:
        why = error.message.removeprefix(f"{checkpoint} is not a whole checkpoint: ")
        raise not_whole(checkpoint, why.removeprefix(f"{checkpoint}/")) from error
    states = own_states(checkpoint)
    processes = len(states)
    step = RunDir.step_of(checkpoint)
    for name, step_in in STEP_IN.items():
        content = _read(checkpoint / name)
        with broken_by(checkpoint, f"{name} is damaged"):
            if (found := step_in(content)) != step:
                raise ValueError(f"it is of step {found}")
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
    """Refuse a checkpoint whose best weights so far are not whole: the run may end with them."""
    with broken_by(checkpoint, f"{own_state_name(0)} is damaged"):
        step = None if state.get("best") is None else state["best"]["step"]
        if step is None:
            return
        weights = RunDir(checkpoint.parents[1]).best_weights(step)
    why = manifest.fault(weights)
    if why is None and not (weights / CONFIG_NAME).is_file():
        why = f"it has no {CONFIG_NAME}"
    if why:
        raise not_whole(checkpoint, f"of its best weights, {weights}: {why}")


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


def not_whole(checkpoint: Path, why: str) -> NotWhole:
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
    return NotWhole(checkpoint, why, f"{hint}: {delete}")


@contextmanager
def broken_by(checkpoint: Path, problem: str) -> Iterator[None]:
    """Have what fails while a checkpoint is read be `not_whole`."""
    try:
        yield
    except UserError:
        raise
    except UnpicklingError as error:  # torch says mostly how to run what is in it anyway
        raise not_whole(checkpoint, f"{problem} (there is more in it than numbers)") from error
    except Exception as error:  # what is damaged makes its readers fail in any way
        raise not_whole(checkpoint, f"{problem} ({first_line(error)})") from error


def _read(path: Path) -> Any:
    """A JSON file's value; or the content of an archive of torch, whose checksums all hold."""
    if not path.is_file():
        raise not_whole(path.parent, f"it has no {path.name}")
    with broken_by(path.parent, f"{path.name} is cut off or damaged"):
        if path.suffix == ".json":
            return parse(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            # One by one they are compared only where the whole file was not.
            if manifest.read(path.parent) is None and (broken := archive.testzip()):
                raise ValueError(broken)
        with safe_globals():  # type: ignore[no-untyped-call]
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
