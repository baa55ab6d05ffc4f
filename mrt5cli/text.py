"""Words for people: counts, durations, sizes, exceptions; lines broken between words to fit a terminal."""

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
"""Columns below which nothing is made narrower."""
WIDE = 80
"""Columns that a line of progress fits into."""
MISSING = "-"
"""In a cell of a terminal's table that has no value."""
LONGEST = 40
"""Characters of what somebody gave, in a sentence about it."""
Tell = Callable[[str], None]

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal takes for a command, what turns the order of the text around it, and what is no text, as in
names that are not UTF-8."""
_IN_TEXTS = re.compile("[\n\t\u061c\u200e\u200f]")
"""What belongs in texts, also in those from right to left, and hides in a name."""
_LABEL = re.compile(r"\s*\S+ {2,}")
logger = logging.getLogger(__name__)
_COMMAND = re.compile(r"\b(mrt5|torchrun) ")


def visible(text: str, *, lines: bool = True) -> str:
    """Text as a terminal may show it: what would move its cursor, colour it or reorder it is an escape.

    Args:
        lines: it may have several, and tabs in them; else it is a name or a value, and these are escapes too,
            and marks of direction.
    """
    text = _UNSEEN.sub(_escaped, text)
    return text if lines else _IN_TEXTS.sub(_escaped, text)


def _escaped(character: re.Match[str]) -> str:
    return character[0].encode("unicode_escape").decode("ascii")


def say(text: str = "", file: IO[str] | None = None) -> None:
    """Print text for people, fitted to the terminal.

    Args:
        file: stdout by default.
    """
    file = sys.stdout if file is None else file
    print(wrapped(text, columns(file)), file=file, flush=True)


def say_on_stderr(text: str) -> None:
    """Print text for people where it is no result, unless this is to be quiet."""
    if not is_quiet():
        say(text, sys.stderr)


def say_nothing(text: str) -> None:
    """For processes that are not to speak."""


_WARNED: set[str] = set()


def warn_once(text: str) -> None:
    """Log a warning, unless this process has logged the same before."""
    if text not in _WARNED:
        _WARNED.add(text)
        logger.warning("%s", text)


_QUIET: list[bool] = []
"""An entry for each `quiet` that is under way; of the process, as what is announced comes from timers."""


@contextmanager
def quiet(wanted: bool = True) -> Iterator[None]:
    """Where wanted, nothing is said on stderr meanwhile: no progress, no notes, no remarks."""
    if not wanted:
        yield
        return
    _QUIET.append(True)
    try:
        yield
    finally:
        _QUIET.pop()


def is_quiet() -> bool:
    """Whether nothing is to be said on stderr."""
    return bool(_QUIET)


@contextmanager
def announced(text: str | None, tell: Tell, after: float = 2.0) -> Iterator[Tell]:
    """Announce work that takes longer than a moment, unless something else is said about it by then.

    Args:
        text: the work; None announces nothing.
        after: seconds.

    Returns:
        The function to say anything else with meanwhile.
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
    """The first line of an exception's text, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shortened(text: str, longest: int = LONGEST) -> str:
    """What somebody gave, for a sentence about it: cut where it is long, control characters as escapes."""
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
    """A time span in words: 112 s, 12 min, 2 h, 3 h 05 min; or a dash."""
    if seconds is None:
        return MISSING
    if round(seconds) < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"


def byte_size(count: float | None) -> str:
    """A number of bytes in words, to three digits: 999 B, 12.3 kB, 52 MB, 1.5 GB; or a dash."""
    if count is None:
        return MISSING
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB" if count < 999.5 else f"{count:,.0f} GB"


def number(value: float | None, digits: int) -> str:
    """A number for a cell, or a dash."""
    return MISSING if value is None else f"{value:.{digits}f}"


def percent(share: float | None, digits: int) -> str:
    """A share of 0 to 1 as a percentage for a cell, without the sign, or a dash."""
    return number(None if share is None else 100 * share, digits)


def rounded(count: int) -> str:
    """A large count as people say it: 99,999, 1.23 M."""
    return f"{count / 1e6:.3g} M" if count >= 1e5 else f"{count:,}"


def columns(file: IO[str]) -> int | None:
    """Columns to keep to: COLUMNS, where it is set, else the terminal's; None in a pipe or a file."""
    given = os.environ.get("COLUMNS", "")
    if re.fullmatch("[0-9]{1,5}", given) and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(file.fileno()).columns or None
    except (OSError, ValueError):  # no terminal; no file at all, as in tests
        return None


def one_line_if_wide(console: Console) -> Column:
    """A column of a progress display whose text takes several lines where one would not hold it."""
    from rich.table import Column

    return Column(no_wrap=console.width >= WIDE)


def wrapped(text: str, width: int | None) -> str:
    """Text for a terminal, as `visible` makes it, whose lines are broken between words where they are longer
    than `width`; None breaks none.

    What continues in the next line is indented: to where a line's text begins behind a label and two spaces,
    or by two more spaces than the line. A line with a command is left to the terminal, so that the command
    can be pasted.
    """
    text = visible(text)
    if width is None:
        return text
    return "\n".join(
        line if len(line) <= width or _COMMAND.search(line) else _broken(line, max(width, LEAST))
        for line in text.split("\n")
    )


def _broken(line: str, width: int) -> str:
    """One line as several, none wider than `width` but for words that are."""
    label = _LABEL.match(line)
    indent = len(line) - len(line.lstrip()) + 2
    if label and len(label[0]) <= width // 3:
        indent = len(label[0])
    return textwrap.fill(
        line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
