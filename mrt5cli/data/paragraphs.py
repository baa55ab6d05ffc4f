"""Plain text cut into documents as it comes: at blank lines, and long paragraphs into pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# Paragraphs longer than this, such as all of a text without blank lines, are cut into pieces of about it.
PIECE_BYTES = 4096
# A character of UTF-8 has so many bytes at most.
_CHARACTER_BYTES = 4


def paragraphs(lines: Iterable[bytes]) -> Iterator[bytes]:
    r"""Documents of a text, in order, none empty; no more is held than a line and a piece of a paragraph.

    Args:
        lines: of UTF-8, with their "\n" or "\r\n".
    """
    held, after_blank = b"", False
    for line in lines:
        if line.isspace():
            yield from _cut(held.removesuffix(b"\n"), len(held))[0]
            held, after_blank = b"", True
            continue
        held += (line.lstrip() if after_blank else line).replace(b"\r\n", b"\n")
        after_blank = False
        # White space at the end may not belong to the paragraph, so its last piece is not certain yet.
        pieces, held = _cut(held, len(held.rstrip()) - PIECE_BYTES - _CHARACTER_BYTES)
        yield from pieces
    yield from _cut(held.removesuffix(b"\n"), len(held))[0]


def _cut(text: bytes, until: int) -> tuple[list[bytes], bytes]:
    """Pieces of a text that begin before `until`, cut after a space where there is one; and the rest."""
    pieces, start = [], 0
    while start < min(until, len(text)):
        stop = start + PIECE_BYTES
        if stop < len(text):
            middle = start + PIECE_BYTES // 2
            stop = max(text.rfind(b" ", middle, stop), text.rfind(b"\n", middle, stop)) + 1 or stop
            # A byte 10xxxxxx continues the character before it.
            while stop < len(text) and text[stop] & 0xC0 == 0x80:
                stop += 1
        pieces.append(text[start:stop])
        start = stop
    return pieces, text[start:]
