"""Terminals that a test holds the other end of."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from threading import Thread


class Reader:
    """Reads what is written into a pseudo-terminal, until its other end is closed.

    Args:
        leading: the descriptor of our end, which is closed in the end.
    """

    def __init__(self, leading: int) -> None:
        self.leading, self.read = leading, bytearray()
        self.thread = Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with suppress(OSError):  # Linux says so that the other end is closed
            while part := os.read(self.leading, 65536):
                self.read.extend(part)

    def text(self) -> str:
        """All of it."""
        self.thread.join()
        os.close(self.leading)
        return self.read.decode()


def screen(output: str, width: int) -> list[str]:
    """The lines of a terminal after it was sent this; it knows what a live line needs of one."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]", output):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row += 1
            lines += [""] * (row >= len(lines))
        elif piece.endswith("A") and len(piece) > 1:
            row -= int(piece[2:-1] or 1)
        elif piece.endswith("K") and len(piece) > 1:
            lines[row] = ""
        elif len(piece) == 1:
            if column == width:  # it wraps
                row, column = row + 1, 0
                lines += [""] * (row >= len(lines))
            lines[row] = lines[row].ljust(column)[:column] + piece + lines[row][column + 1 :]
            column += 1
        else:
            assert piece[-1] in "mhl", repr(piece)
    return [line.rstrip() for line in lines]
