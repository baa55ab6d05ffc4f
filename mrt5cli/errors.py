"""Errors a user can cause: one sentence each, with a hint.

Only the command line (`cli.Boundary`) turns them into exit codes; library callers may catch them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from mrt5cli.text import counted, shortened, visible

LONGEST = 2000
"""Maximum characters of one problem of a recipe."""


class UserError(Exception):
    """Bad or missing input from the keyboard, a recipe or a file: exit code 2, no traceback.

    Args:
        message: what is wrong, where, and what was expected, in one sentence.
        hint: what to do next, as an imperative.
        more: lines below the message, such as one per key.
    """

    exit_code = 2
    has_lines = False
    """Whether the message may span several lines."""

    def __init__(self, message: str, hint: str | None = None, more: Iterable[str] = ()) -> None:
        self.message = "\n".join(visible(line, lines=self.has_lines) for line in (message, *more))
        super().__init__(self.message)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class RecipeError(UserError):
    """A recipe with one or more problems, reported together.

    Args:
        where: the file or option that contains the problems.
        problems: pairs of (dotted key, what is wrong with it).
    """

    def __init__(self, where: str, problems: list[tuple[str, str]], hint: str | None = None) -> None:
        cut = ((key, text if len(text) < LONGEST else f"{text[:LONGEST]}...") for key, text in problems)
        problems = [(shortened(key, 120), text) for key, text in cut]
        width = max((len(key) for key, _ in problems), default=0)
        lines = (f"  {key:<{width}}  {text}".rstrip() for key, text in problems)
        super().__init__(f"{where} has {counted(len(problems), 'problem')}", hint, lines)
        self.problems = problems


class RunFailed(UserError):
    """A run that started and could not continue: exit code 1, no traceback."""

    exit_code = 1
    has_lines = True


class CheckpointError(UserError, ValueError):
    """A checkpoint that is incomplete or not one of ours; library callers may catch it as `ValueError`."""


class HubAway(UserError):
    """The Hub did not answer in time; the same request may succeed later.

    At the start of a command this is missing input; in the middle of a run it becomes `DataLost`.
    """


FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))
"""System errors of a disk that accepts no more data: the path was right, so the run failed."""
_HELP = {
    **dict.fromkeys(FULL, "free some space there, or choose another location"),
    errno.EFBIG: "raise the limit with `ulimit -f unlimited`, or choose a location that allows larger files",
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM), "change the permissions, or choose a writable location"
    ),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "check the spelling, or choose another location"),
    errno.ENAMETOOLONG: "choose a shorter name",
}


def of_the_system(error: OSError) -> tuple[str, str]:
    """A sentence and a hint for an operation that the system refused, such as a write to a full disk."""
    said = error.strerror or str(error)
    if error.filename is not None:
        where = os.fsdecode(error.filename)
        said = f"{where} cannot be written: {said}" if error.errno in FULL else f"{said}: {where}"
    return said, _HELP.get(error.errno or 0, "MRT5_DEBUG=1 shows where it happened")


def not_written(error: OSError) -> UserError:
    """The error for a refused write: `RunFailed` if the disk is full, otherwise bad input."""
    kind = RunFailed if error.errno in FULL else UserError
    where = os.fsdecode(error.filename or "it")
    return kind(f"{where} cannot be written: {error.strerror or error}", of_the_system(error)[1])


class DataLost(RunFailed):
    """A training can read no more data; its checkpoints are intact.

    Attributes:
        passes: the data may be available again later, so resuming is worth a try.
    """

    def __init__(self, message: str, hint: str | None = None, *, passes: bool = False) -> None:
        super().__init__(message, hint)
        self.passes = passes

    @classmethod
    def because_of(cls, error: UserError) -> DataLost:
        """Convert the error of a reader into the failure of a training."""
        return cls(error.message, error.hint, passes=isinstance(error, HubAway))
