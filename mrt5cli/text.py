"""Human-readable text: counts, durations, sizes, exceptions; wrapping lines to a terminal's width."""

from __future__ import annotations

import logging
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column

LEAST = 20
"""Minimum width in columns; nothing is wrapped more narrowly."""
WIDE = 80
"""Columns that a line of progress fits into."""
MISSING = "-"
"""A table cell without a value."""
LONGEST = 40
"""Maximum characters of a quoted user input."""
Tell = Callable[[str], None]

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Terminal control characters, characters that reorder the text around them, and lone surrogates, which occur
in names that are not UTF-8."""
_IN_TEXTS = re.compile("[\n\t\u061c\u200e\u200f]")
"""Characters that are legitimate in (right-to-left) texts but invisible in a name."""
_LABEL = re.compile(r"\s*\S+ {2,}")
logger = logging.getLogger(__name__)
_COMMAND = re.compile(r"\b(mrt5|torchrun) ")


def visible(text: str, *, lines: bool = True) -> str:
    """Escape what would move a terminal's cursor, change its color or reorder the text.

    Args:
        lines: allow line breaks, tabs and direction marks; False for names and values.
    """
    text = _UNSEEN.sub(_escaped, text)
    return text if lines else _IN_TEXTS.sub(_escaped, text)


def _escaped(character: re.Match[str]) -> str:
    return character[0].encode("unicode_escape").decode("ascii")


def say(text: str = "", file: IO[str] | None = None) -> None:
    """Print text wrapped to the terminal's width.

    Args:
        file: stdout by default.
    """
    file = sys.stdout if file is None else file
    print(wrapped(text, columns(file)), file=file, flush=True)


def say_on_stderr(text: str) -> None:
    """Print a message to stderr, unless within `quiet`."""
    if not is_quiet():
        say(text, sys.stderr)


def say_nothing(text: str) -> None:
    """A `Tell` for processes that print nothing."""


_WARNED: set[str] = set()


def warn_once(text: str) -> None:
    """Log a warning, unless this process has logged the same one before."""
    if text not in _WARNED:
        _WARNED.add(text)
        logger.warning("%s", text)


_QUIET: list[bool] = []
"""One entry per active `quiet`. Global to the process, because announcements come from timer threads."""


@contextmanager
def quiet(wanted: bool = True) -> Iterator[None]:
    """Suppress progress, notes and remarks on stderr in the meantime, if wanted."""
    if not wanted:
        yield
        return
    _QUIET.append(True)
    try:
        yield
    finally:
        _QUIET.pop()


def is_quiet() -> bool:
    """Whether `quiet` is active."""
    return bool(_QUIET)


@contextmanager
def announced(text: str | None, tell: Tell, after: float = 2.0) -> Iterator[Tell]:
    """Announce work once it takes longer than a moment, unless another message comes first.

    Args:
        text: the announcement; None for none.
        after: delay in seconds.

    Yields:
        The function to print other messages with; it cancels the announcement.
    """
    timer = Timer(after, tell if text else say_nothing, [text])
    timer.daemon = True
    timer.start()

    def tell_instead(other: str) -> None:
        timer.cancel()
        tell(other)

    try:
        yield tell_instead
    finally:
        timer.cancel()


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shortened(text: str, longest: int = LONGEST) -> str:
    """A user input for quoting in a message: truncated, with control characters escaped."""
    kept = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in kept)


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """ "1 run", "1,024 runs"."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def listed(names: Sequence[object], at_most: int = 8) -> str:
    """ "a, b and 3 more"."""
    shown = ", ".join(visible(str(name), lines=False) for name in names[:at_most])
    return f"{shown} and {len(names) - at_most} more" if len(names) > at_most else shown


def duration(seconds: float | None) -> str:
    """A human-readable duration: 112 s, 12 min, 2 h, 3 h 05 min; a dash for None."""
    if seconds is None:
        return MISSING
    if round(seconds) < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"


def byte_size(count: float | None) -> str:
    """A human-readable size, to three digits: 999 B, 12.3 kB, 52 MB, 1.5 GB; a dash for None."""
    if count is None:
        return MISSING
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB" if count < 999.5 else f"{count:,.0f} GB"


def number(value: float | None, digits: int) -> str:
    """A number for a table cell; a dash for None."""
    return MISSING if value is None else f"{value:.{digits}f}"


def percent(share: float | None, digits: int) -> str:
    """A fraction (0 to 1) as a percentage for a table cell, without the sign; a dash for None."""
    return number(None if share is None else 100 * share, digits)


def rounded(count: int) -> str:
    """A count, abbreviated from 100,000 on: 99,999, 1.23 M."""
    return f"{count / 1e6:.3g} M" if count >= 1e5 else f"{count:,}"


def columns(file: IO[str]) -> int | None:
    """Width to wrap to: COLUMNS if it is set, otherwise the terminal's; None for a pipe or a file."""
    given = os.environ.get("COLUMNS", "")
    if re.fullmatch("[0-9]{1,5}", given) and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(file.fileno()).columns or None
    except (OSError, ValueError):  # not a terminal; in tests, not even a file
        return None


def one_line_if_wide(console: Console) -> Column:
    """A column of a progress display that wraps only on terminals narrower than `WIDE`."""
    from rich.table import Column

    return Column(no_wrap=console.width >= WIDE)


def wrapped(text: str, width: int | None) -> str:
    """Text made `visible` and wrapped at spaces to `width` columns; None does not wrap.

    Continuation lines are indented by two more spaces, or to the text after a label and two spaces. Lines
    that contain a command are not wrapped, so that the command can be copied.
    """
    text = visible(text)
    if width is None:
        return text
    return "\n".join(
        line if len(line) <= width or _COMMAND.search(line) else filled(line, width)
        for line in text.split("\n")
    )


def filled(line: str, width: int) -> str:
    """Wrap one line to `width` columns, even if it contains a command; longer words stay in one piece."""
    label = _LABEL.match(line)
    indent = len(line) - len(line.lstrip()) + 2
    if label and len(label[0]) <= width // 3:
        indent = len(label[0])
    return textwrap.fill(
        line,
        max(width, LEAST),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
