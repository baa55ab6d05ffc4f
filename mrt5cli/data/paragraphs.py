"""Plain text cut into documents as it comes: at blank lines, and long paragraphs into pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# Paragraphs longer than this, such as all of a text without blank lines, are cut into pieces of about it.
PIECE_BYTES = 4096

# The end of a line and all white space after it; two ends of lines make a blank one.
_LINE_END = re.compile(rb"\n\s*")
# A character of UTF-8 goes on for so many bytes at most.
_CHARACTER_BYTES = 4


def paragraphs(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Documents of a text, in order, none empty; no more is held than a block and a piece of a paragraph.

    Args:
        blocks: of UTF-8, cut anywhere.
    """
    rest = b""
    # Whether pieces of the paragraph that `rest` begins with have been given away.
    within = False
    for block in _with_newlines(blocks):
        rest += block
        start = 0
        for gap in _LINE_END.finditer(rest):
            if gap.end() == len(rest) or gap[0].count(b"\n") < 2:
                continue
            part = rest[start : gap.start()]
            yield from _pieces(part if within else part.lstrip(b"\n"))
            start, within = gap.end(), False
        rest = rest[start:]
        # What follows may still belong to the last paragraph, whose pieces but for the last are certain.
        if not within and not rest.isspace():
            rest = rest.lstrip(b"\n")
        certain = len(rest.rstrip()) - PIECE_BYTES - _CHARACTER_BYTES
        start = 0
        while start < certain:
            stop = _end_of_piece(rest, start)
            yield rest[start:stop]
            start, within = stop, True
        rest = rest[start:]
    last, end = rest.rstrip(), rest[len(rest.rstrip()) :]
    last += end.partition(b"\n")[0] if end.count(b"\n") > 1 else end.rstrip(b"\n")
    yield from _pieces(last if within else last.lstrip(b"\n"))


def whole_text(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """A text as one document."""
    yield b"".join(_with_newlines(blocks)).strip()


def _with_newlines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    r"""Blocks with "\n" for "\r\n"."""
    held = b""
    for block in blocks:
        block = held + block
        held = b"\r" if block.endswith(b"\r") else b""
        yield block.removesuffix(b"\r").replace(b"\r\n", b"\n")
    yield held


def _pieces(text: bytes) -> Iterator[bytes]:
    """`text` in pieces of at most about `PIECE_BYTES`, cut after a space where there is one."""
    start = 0
    while start < len(text):
        stop = _end_of_piece(text, start)
        yield text[start:stop]
        start = stop


def _end_of_piece(text: bytes, start: int) -> int:
    stop = start + PIECE_BYTES
    if stop >= len(text):
        return len(text)
    middle = start + PIECE_BYTES // 2
    stop = max(text.rfind(b" ", middle, stop), text.rfind(b"\n", middle, stop)) + 1 or stop
    # A byte 10xxxxxx goes on with the character before it.
    while stop < len(text) and text[stop] & 0xC0 == 0x80:
        stop += 1
    return stop
