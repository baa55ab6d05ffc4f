"""Text with its deleted bytes marked, readable with and without colour and never ambiguous.

Without colour, `[-...-]` holds deleted characters. A character some of whose bytes are deleted is shown with
all of them: ⟨ж:d0 ✗b6⟩ is a `ж` whose byte 0xB6 is deleted. Where bytes are pooled, `|` stands between the
segments that become one position each, within a character too: ⟨ж:d0|b6⟩. Characters that would not show, or
that are marks here, are named: ⟨U+200F⟩, ⟨ff⟩ (a byte that is not UTF-8), ⟨EOS⟩. So what is shown can be read
back byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len

from mrt5cli.byte_tokens import OFFSET
from mrt5cli.data.characters import Character

if TYPE_CHECKING:
    from rich.text import Text

State = Literal["kept", "deleted", "partial", "segment", "next segment", "bar", "split"]

# Segments take turns, so that neighbours differ; a reader without colour has the bars.
_STYLES: dict[State, str] = {
    "kept": "",
    "deleted": "dim strike",
    "partial": "bold yellow",
    "segment": "",
    "next segment": "cyan",
    "bar": "dim",
    "split": "bold yellow",
}
_BAR = "⟨U+007C⟩"


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring characters of one state, as shown; a newline ends a run, and the line breaks after it."""

    text: str
    state: State
    ends_line: bool = False


def runs(row: Sequence[Character], deleted: Sequence[bool]) -> list[Run]:
    """The characters of one row in runs of one state.

    Args:
        row: what `characters` gave.
        deleted: (L,) whether each position of the row is deleted.
    """
    found: list[Run] = []
    carrier: State | None = None  # state of the character that a combining mark would be drawn on
    for character in row:
        flags = _flags(character, deleted)
        state: State = "deleted" if all(flags) else "partial" if any(flags) else "kept"
        text = character.visible
        if character.combines and (carrier != state or state == "partial"):
            text = "◌" + text
        if state == "partial":
            text = _spelt(text, character, ["✗" * flag for flag in flags], " ")
        elif state == "deleted" and text == " ":
            text = "␣"
        ends_line = character.text == "\n"
        carrier = None if text.startswith("⟨") or ends_line else state
        _append(found, Run(text, state, ends_line))
    return found


def segment_runs(row: Sequence[Character], starts: Sequence[bool]) -> list[Run]:
    """The characters of one row in runs of one segment, with bars between them.

    Args:
        row: what `characters` gave.
        starts: (L,) whether a segment starts at each position of the row.
    """
    found: list[Run] = []
    segment = 0
    carried = False  # whether a combining mark would be drawn on a character of its own segment
    for character in row:
        first, *within = _flags(character, starts)
        if first and character.start:
            found.append(Run("|", "bar"))
            segment += 1
            carried = False
        text = _BAR if character.text == "|" else character.visible
        if character.combines and not carried:
            text = "◌" + text
        state: State = "next segment" if segment % 2 else "segment"
        ends_line = character.text == "\n"
        if any(within):
            state = "split"
            segment += sum(within)
            text = _spelt(text, character, ["", *("|" if start else " " for start in within)], "")
        carried = not text.startswith("⟨") and not ends_line
        _append(found, Run(text, state, ends_line))
    return found


def _flags(character: Character, positions: Sequence[bool]) -> list[bool]:
    """Those of the character's own positions."""
    return [bool(flag) for flag in positions[character.start : character.start + len(character.ids)]]


def _spelt(text: str, character: Character, marks: Sequence[str], between: str) -> str:
    """A character with all its bytes, each behind its mark."""
    found = between.join(f"{mark}{i - OFFSET:02x}" for i, mark in zip(character.ids, marks, strict=True))
    return f"⟨{text.strip('⟨⟩')}:{found}⟩"


def _append(found: list[Run], run: Run) -> None:
    """Add a run, to the one before it where both are of one state and on one line."""
    last = found[-1] if found else None
    if last and last.state == run.state not in ("bar", "split") and not last.ends_line:
        run = replace(found.pop(), text=last.text + run.text, ends_line=run.ends_line)
    found.append(run)


def plain(row: Sequence[Run]) -> str:
    """One row without colour; a `[` or `]` of the text that would read as a mark is shown by code point."""
    return "".join(_plain_run(run) + "\n" * run.ends_line for run in row)


def _plain_run(run: Run) -> str:
    if run.state not in ("kept", "deleted", "partial"):
        return run.text  # beside segments nothing is deleted, so brackets are only brackets
    if run.state == "deleted":
        return f"[-{_escape_brackets(f'-{run.text}-')[1:-1]}-]"
    return _escape_brackets(run.text)


def _escape_brackets(text: str) -> str:
    return re.sub(r"(?<=-)\]", "⟨U+005D⟩", re.sub(r"\[(?=-)", "⟨U+005B⟩", text))


def fitted(row: Sequence[Run], width: int | None, *, colour: bool) -> list[Run]:
    """The runs of one row in lines of at most `width` columns, broken behind spaces, which stay.

    A newline of the text is still marked as one, so what is shown can be read back as before.

    Args:
        width: columns of the terminal; None breaks nothing.
        colour: whether the row will be `coloured`, where marks take no room.
    """
    if width is None:
        return list(row)
    found: list[Run] = []
    column = 0
    for word in _words(row):
        room = sum(cell_len(run.text) + (4 if run.state == "deleted" and not colour else 0) for run in word)
        if found and column and column + room > width:
            found[-1] = replace(found[-1], ends_line=True)
            column = 0
        for run in word:
            _append(found, run)
        column = 0 if found[-1].ends_line else column + room
    return found


def _words(row: Sequence[Run]) -> Iterator[list[Run]]:
    """The runs cut behind spaces; what lies between two spaces may be of several states."""
    word: list[Run] = []
    for run in row:
        pieces = re.findall("[^ ␣]*[ ␣]+|[^ ␣]+", run.text)
        for place, piece in enumerate(pieces, start=1):
            last = place == len(pieces)
            word.append(Run(piece, run.state, run.ends_line and last))
            if word[-1].ends_line or piece[-1] in " ␣":
                yield word
                word = []
    if word:
        yield word


def coloured(row: Sequence[Run]) -> Text:
    """One row for a terminal: deleted characters dimmed and struck out, partly deleted ones highlighted."""
    from rich.text import Text

    text = Text()
    for run in row:
        text.append(run.text, _STYLES[run.state])
        text.append("\n" * run.ends_line)
    return text


def legend(rows: Sequence[Sequence[Run]], *, colour: bool) -> str:
    """One line that explains the marks these rows use."""
    shown = "".join(run.text for row in rows for run in row)
    states = {run.state for row in rows for run in row}
    entries = [
        ("deleted" in states, "struck out: deleted" if colour else "[-...-] deleted"),
        ("␣" in shown, "␣ deleted space"),
        ("partial" in states, "⟨ж:d0 ✗b6⟩ a character that lost its byte b6"),
        ("bar" in states, "| between pooled segments, each of which becomes one position"),
        ("split" in states, "⟨ж:d0|b6⟩ a character that two segments share"),
        ("⏎" in shown, "⏎ newline"),
        ("⇥" in shown, "⇥ tab"),
        (
            "◌" in shown,
            "◌ carries a mark whose letter "
            + ("is in another segment" if "bar" in states else "fared differently"),
        ),
        (bool(re.search("⟨S[0-9]", shown)), "⟨S0⟩ a sentinel: a span is missing there"),
        (bool(re.search("⟨U\\+", shown)), "⟨U+200F⟩ a character named by its code point"),
        (bool(re.search("⟨[0-9a-f]{2}⟩", shown)), "⟨ff⟩ a byte that is not UTF-8"),
    ]
    return "; ".join(text for used, text in entries if used)
