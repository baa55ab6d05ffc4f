"""Text with its deleted bytes marked, readable with and without color and unambiguous.

Without color, `[-...-]` encloses deleted characters. A character that lost only some of its bytes is shown
with all of them: ⟨ж:d0 ✗b6⟩ is a `ж` whose byte 0xB6 is deleted. For pooling models, `|` separates segments
that become one position each, also within a character: ⟨ж:d0|b6⟩. Invisible characters, and characters that
serve as marks here, are named: ⟨U+200F⟩, ⟨ff⟩ (a byte that is not UTF-8), ⟨EOS⟩. The output can therefore be
read back byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from mrt5cli.byte_tokens import OFFSET
from mrt5cli.data.characters import Character

if TYPE_CHECKING:
    from rich.text import Text

State = Literal["kept", "deleted", "partial", "segment", "next segment", "bar", "split"]

# Alternating segments have different styles; without color, bars separate them.
_STYLES: dict[State, str] = {
    "kept": "",
    "deleted": "dim strike",
    "partial": "bold yellow",
    "segment": "",
    "next segment": "cyan",
    "bar": "dim",
    "split": "bold yellow",
}
NEWLINE = "⏎"


class Run(NamedTuple):
    """Consecutive characters with the same state, as shown; a newline ("⏎" and a break) ends a run."""

    text: str
    state: State


def runs(row: Sequence[Character], flags: Sequence[bool], *, pooled: bool = False) -> list[Run]:
    """Group the characters of one row into runs of equal state.

    Args:
        row: the output of `characters`.
        flags: (L,) whether each position is deleted; with `pooled`, whether a segment starts there.
        pooled: whether the model pools segments.
    """
    found: list[Run] = []
    carrier: State | None = None  # state of the character that a combining mark would attach to
    segment = 0
    for character in row:
        first, *within = own = flags[character.start : character.start + len(character.ids)]
        text = character.visible
        state: State
        if pooled:
            if first and character.start:
                found.append(Run("|", "bar"))
                segment += 1
            state = "split" if any(within) else "next segment" if segment % 2 else "segment"
            segment += sum(within)
            text = "⟨U+007C⟩" if text == "|" else text
            marks = ["", *("|" if start else " " for start in within)]
        else:
            state = "deleted" if all(own) else "partial" if any(own) else "kept"
            text = "␣" if state == "deleted" and text == " " else text
            marks = ["✗" * first, *(" " + "✗" * flag for flag in within)]
        if character.combines and (carrier != state or state in ("partial", "split")):
            text = "◌" + text
        if state in ("partial", "split"):
            spelt = (f"{mark}{i - OFFSET:02x}" for mark, i in zip(marks, character.ids, strict=True))
            text = f"⟨{text.strip('⟨⟩')}:{''.join(spelt)}⟩"
        carrier = None if text[0] in ("⟨", NEWLINE) else state
        if text == NEWLINE:
            text += "\n"
        if found and found[-1].state == state != "split" and not found[-1].text.endswith("\n"):
            text = found.pop().text + text
        found.append(Run(text, state))
    return found


def plain(row: Sequence[Run]) -> str:
    """One row without color; brackets of the text that look like marks are shown as code points."""
    return "".join(_plain_run(run) for run in row)


def _plain_run(run: Run) -> str:
    if run.state not in ("kept", "deleted", "partial"):
        return run.text  # rows with segments have no deletion marks, so brackets are unambiguous
    if run.state != "deleted":
        return _escape_brackets(run.text)
    text = run.text.removesuffix("\n")
    return f"[-{_escape_brackets(f'-{text}-')[1:-1]}-]" + run.text[len(text) :]


def _escape_brackets(text: str) -> str:
    return re.sub(r"(?<=-)\]", "⟨U+005D⟩", re.sub(r"\[(?=-)", "⟨U+005B⟩", text))


def coloured(row: Sequence[Run]) -> Text:
    """One row for a terminal: deleted characters are dimmed and struck out."""
    from rich.text import Text

    return Text.assemble(*((run.text, _STYLES[run.state]) for run in row))


def legend(rows: Sequence[Sequence[Run]], *, colour: bool) -> str:
    """One line that explains the marks used in the rows."""
    shown = "".join(run.text for row in rows for run in row)
    states = {run.state for row in rows for run in row}
    fate = "is in another segment" if "bar" in states else "fared differently"
    entries = {
        "struck out: deleted" if colour else "[-...-] deleted": "deleted" in states,
        "␣ deleted space": "␣" in shown,
        "⟨ж:d0 ✗b6⟩ a character that lost its byte b6": "partial" in states,
        "| between pooled segments, each of which becomes one position": "bar" in states,
        "⟨ж:d0|b6⟩ a character that two segments share": "split" in states,
        "⏎ newline": NEWLINE in shown,
        "⇥ tab": "⇥" in shown,
        f"◌ carries a mark whose letter {fate}": "◌" in shown,
        "⟨S0⟩ a sentinel: a span is missing there": bool(re.search("⟨S[0-9]", shown)),
        "⟨U+200F⟩ a character named by its code point": "⟨U+" in shown,
        "⟨ff⟩ a byte that is not UTF-8": bool(re.search("⟨[0-9a-f]{2}⟩", shown)),
    }
    return "; ".join(text for text, used in entries.items() if used)
