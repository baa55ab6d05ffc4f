"""Byte ids as characters: which bytes form a character, the kind of each byte, and how to display it.

Input need not be valid UTF-8: a byte that is not part of a character is displayed by itself. All displays of
bytes use this module, so that a character cut in two appears as the rest of its bytes, ⟨e2⟩⟨82⟩, and is
neither omitted nor replaced. `byte_tokens.decode` is for answers, which are compared as texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice

import regex

from mrt5cli.byte_tokens import EOS, LAST_BYTE_ID, OFFSET, PAD, UNK

# fmt: off
SCRIPTS = (
    "Latin", "Greek", "Cyrillic", "Arabic", "Hebrew", "Devanagari", "Bengali", "Gurmukhi", "Gujarati",
    "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Tibetan", "Myanmar", "Khmer",
    "Georgian", "Armenian", "Ethiopic", "Hangul", "Hiragana", "Katakana", "Han",
)
# fmt: on

_PARTS = ("lead", "continuation")
_SCRIPT = regex.compile("|".join(rf"(?P<{name}>\p{{Script={name}}})" for name in SCRIPTS))
_INVISIBLE = regex.compile(r"[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}\u2800]")
_COMBINING = regex.compile(r"\p{M}")
_UNIT = regex.compile(r"⟨[^⟩]*⟩|.")
_CLUSTER = regex.compile(r"\r|\X")
# Characters that the display uses itself; in the text they are shown as code points.
_MARKS = frozenset("⟨⟩␣⏎⇥◌✗")


@dataclass(frozen=True, slots=True)
class Character:
    """One character, stray byte or special id of a row.

    Attributes:
        start: the position of its first byte in the row.
        ids: its ids, one per position.
        text: the character; None if the ids are not one (a stray byte, EOS, a sentinel).
        name: its name if it is not a character: 'EOS', 'S0', 'ff', 'id 300'.
    """

    start: int
    ids: tuple[int, ...]
    text: str | None
    name: str = ""

    @property
    def visible(self) -> str:
        """The character itself, or a name in ⟨...⟩ if a terminal would not show it."""
        if self.text is None:
            return f"⟨{self.name}⟩"
        if self.text in "\n\t ":
            return {"\n": "⏎", "\t": "⇥", " ": " "}[self.text]
        if self.text in _MARKS or _INVISIBLE.match(self.text):
            return f"⟨U+{ord(self.text):04X}⟩"
        return self.text

    @property
    def combines(self) -> bool:
        """Whether a terminal combines it with the character before it."""
        return self.text is not None and self.visible == self.text and bool(_COMBINING.match(self.text))


def shown(ids: Iterable[int], *, sentinels: int = 0) -> str:
    """The ids (L,) of one row in human-readable form, without padding and the final EOS."""
    row = [int(i) for i in ids if i > PAD]
    if row and row[-1] == EOS:
        row.pop()
    return "".join(character.visible for character in characters(row, sentinels=sentinels))


def beginning(text: str, length: int) -> str:
    """At most `length` characters of the output of `shown`, with " ..." for the rest; names are not cut."""
    if len(text) <= length:
        return text
    ends = [unit.end() for unit in _UNIT.finditer(text, 0, length) if unit.end() <= length - 4]
    return f"{text[: max(ends, default=0)]} ..."


def characters(ids: Sequence[int], *, sentinels: int = 0) -> list[Character]:
    """The ids (L,) of one row as characters, which contain every id once, in order.

    Args:
        ids: the ids, without padding.
        sentinels: this many ids, 258, 257, ..., are named S0, S1, ... and not read as bytes. From the 12th on
            they are also bytes of UTF-8, so that a byte of the text may be displayed as a sentinel.
    """
    ids = [int(i) for i in ids]
    found, start = [], 0
    while start < len(ids):
        found.append(_character_at(ids, start, sentinels))
        start += len(found[-1].ids)
    return found


def _character_at(ids: list[int], start: int, sentinels: int) -> Character:
    first = ids[start]
    lead = first - OFFSET
    if not 0 <= lead < 256:
        name = {PAD: "PAD", EOS: "EOS", UNK: "UNK"}.get(first, f"id {first}")
    elif first > LAST_BYTE_ID - sentinels:
        name = f"S{LAST_BYTE_ID - first}"
    else:
        length = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        chunk = ids[start : start + length]
        try:
            # An id that is not a byte also raises `ValueError`.
            return Character(start, tuple(chunk), bytes(i - OFFSET for i in chunk).decode())
        except ValueError:
            name = f"{lead:02x}"
    return Character(start, (first,), None, name)


def clusters(row: Sequence[Character]) -> list[tuple[Character, ...]]:
    """The characters of a row by grapheme cluster: a letter with its marks, the parts of one emoji; each byte
    that is not part of a character is separate."""
    found: list[tuple[Character, ...]] = []
    for is_text, group in groupby(row, key=lambda character: character.text is not None):
        rest = iter(part := list(group))
        text = "".join(one.text or "" for one in part)
        lengths = [len(cut) for cut in _CLUSTER.findall(text)] if is_text else [1] * len(part)
        found += (tuple(islice(rest, length)) for length in lengths)
    return found


@lru_cache(maxsize=4096)
def script(character: str) -> str:
    """The Unicode script of a character; 'shared' if several scripts use it (punctuation, symbols, emoji)."""
    match = _SCRIPT.match(character)
    if match:
        return str(match.lastgroup)
    return "shared" if regex.match(r"\p{Script=Common}|\p{Script=Inherited}", character) else "other scripts"


def script_name(character: Character) -> str:
    """The script of a character, one of `SCRIPT_NAMES`; for other ids, their kind."""
    return byte_kinds(character)[0] if character.text is None else script(character.text)


def byte_kinds(character: Character) -> list[str]:
    """The kind of each byte of a character; every byte has exactly one kind."""
    text = character.text
    if text is None:
        if character.name == "EOS":
            return ["EOS"]
        if character.name.startswith("S"):
            return ["sentinels"]
        return ["bytes that are not UTF-8" if OFFSET <= character.ids[0] <= LAST_BYTE_ID else "other ids"]
    if len(character.ids) == 1:
        return [_ascii_kind(text)]
    lead, continuation = (f"{script(text)}: {part} bytes" for part in _PARTS)
    return [lead] + [continuation] * (len(character.ids) - 1)


def _ascii_kind(text: str) -> str:
    if text in "aeiouAEIOU":
        return "vowels a e i o u"
    if text.isalpha():
        return "other letters a-z"
    if text.isdigit():
        return "digits"
    if text in " \t":
        return "spaces"
    if text in "\r\n":
        return "newlines"
    return "punctuation" if text.isprintable() else "control characters"


_NO_CHARACTERS = ("bytes that are not UTF-8", "sentinels", "EOS", "other ids")
SCRIPT_NAMES = (*SCRIPTS, "shared", "other scripts", *_NO_CHARACTERS)
"""All scripts, in the order of tables."""
_SCRIPT_KINDS = (f"{of}: {part} bytes" for of in (*SCRIPTS, "shared", "other scripts") for part in _PARTS)
KINDS = (
    *("vowels a e i o u", "other letters a-z", "digits", "spaces", "newlines", "punctuation"),
    *("control characters", *_SCRIPT_KINDS, *_NO_CHARACTERS),
)
"""All kinds of bytes, in the order of tables."""
