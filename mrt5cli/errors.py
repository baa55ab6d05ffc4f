"""The errors a user can cause, each one sentence and what to do next.

The shell (`cli.Boundary`) is the only place that turns them into exit codes; library callers may catch them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from mrt5cli.text import counted, shortened, visible

LONGEST = 2000
"""Characters of a problem that quotes what it is about."""


class UserError(Exception):
    """Bad input from the keyboard, a recipe or a file, or none to be had: exit code 2, no traceback.

    Args:
        message: what is wrong, where, and what was expected: one sentence, whatever is in the names in it.
        hint: what to do next, one sentence.
        more: lines below the message, such as one a key.
    """

    exit_code = 2
    has_lines = False
    """Whether the message may have several."""

    def __init__(self, message: str, hint: str | None = None, more: Iterable[str] = ()) -> None:
        self.message = "\n".join(visible(line, lines=self.has_lines) for line in (message, *more))
        super().__init__(self.message)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class RecipeError(UserError):
    """A recipe with one or more problems, all reported at once.

    Args:
        where: the file (or "recipe") the problems are in.
        problems: pairs of (key path, what is wrong with it).
    """

    def __init__(self, where: str, problems: list[tuple[str, str]], hint: str | None = None) -> None:
        cut = ((key, text if len(text) < LONGEST else f"{text[:LONGEST]}...") for key, text in problems)
        problems = [(shortened(key, 120), text) for key, text in cut]
        width = max((len(key) for key, _ in problems), default=0)
        lines = (f"  {key:<{width}}  {text}".rstrip() for key, text in problems)
        super().__init__(f"{where} has {counted(len(problems), 'problem')}", hint, lines)
        self.problems = problems


class RunFailed(UserError):
    """A run that started and could not finish: exit code 1, no traceback."""

    exit_code = 1
    has_lines = True


class CheckpointError(UserError, ValueError):
    """A checkpoint that is no whole model of ours; for callers of the library a `ValueError` too."""


class HubAway(UserError):
    """The Hub did not answer in time; the same request may succeed later.

    At the start of a command it is missing like a file would be; in the middle of a run, see `DataLost`.
    """


FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))
"""What a disk says that can take no more: the place was right, and the run failed there."""
_HELP = {
    **dict.fromkeys(FULL, "make room there, or choose another place"),
    errno.EFBIG: "lift the limit, e.g. with `ulimit -f unlimited`, or choose a place that takes larger files",
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM), "choose a place that you may use, or change its permissions"
    ),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "look for a slip in the name, or choose another place"),
    errno.ENAMETOOLONG: "choose a shorter name",
}


def of_the_system(error: OSError) -> tuple[str, str]:
    """A sentence and a hint for what the system refused: a disk that is full, a place that is not ours."""
    said = error.strerror or str(error)
    if error.filename is not None:
        where = os.fsdecode(error.filename)
        said = f"{where} cannot be written: {said}" if error.errno in FULL else f"{said}: {where}"
    return said, _HELP.get(error.errno or 0, "MRT5_DEBUG=1 shows where it happened")


def not_written(error: OSError) -> UserError:
    """What the system refused to write, as an error of ours; where there was no room, the input was right."""
    kind = RunFailed if error.errno in FULL else UserError
    where = os.fsdecode(error.filename or "it")
    return kind(f"{where} cannot be written: {error.strerror or error}", of_the_system(error)[1])


class DataLost(RunFailed):
    """Data that a training cannot read any further; its checkpoints are whole.

    Attributes:
        passes: the same data may be there again later, so that going on is worth a try.
    """

    def __init__(self, message: str, hint: str | None = None, *, passes: bool = False) -> None:
        super().__init__(message, hint)
        self.passes = passes

    @classmethod
    def because_of(cls, error: UserError) -> DataLost:
        """What the error of a reader means for a training."""
        return cls(error.message, error.hint, passes=isinstance(error, HubAway))
