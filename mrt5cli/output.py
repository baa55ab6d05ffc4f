"""The standard streams: nothing fails for lack of a character, a stream, or a reader of messages."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TextIO

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
UNSPOKEN = "backslashreplace"
"""What becomes of a character that a stream cannot hold."""


def prepare() -> None:
    """Make the process's standard streams fit for everything a command may print; called once, at the entry.

    A stream that was closed by whoever started the process (`>&-`, a daemon) leads nowhere afterwards.
    """
    _open_closed()
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = Results(sys.stdout)
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = Messages(sys.stderr)


class Results(io.TextIOWrapper):
    """stdout, whose trouble tells that it is stdout's."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        raw = io.FileIO(stream.fileno(), "w", closefd=False)
        super().__init__(
            io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors=UNSPOKEN,
            line_buffering=stream.line_buffering,
        )

    def write(self, text: str, /) -> int:
        with _named("stdout"):
            return super().write(text)

    def flush(self) -> None:
        with _named("stdout"):
            super().flush()


class Messages(Results):
    """stderr, whose reader may go away (`2>&1 | head`) or whose disk may fill up.

    What is said meanwhile is lost, and nothing else: a training is worth more than the words about it.
    """

    def write(self, text: str, /) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error


def lead_nowhere(stream: IO[str]) -> None:
    """Let what is left in a stream go nowhere, so that Python does not complain of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def print_json(document: object) -> None:
    """Print a JSON document on stdout; in ASCII where the stream is not UTF-8, as JSON has to be."""
    text = json.dumps(document, indent=2, ensure_ascii=not takes_utf8(sys.stdout))
    with suppress(UnicodeEncodeError):
        text.encode("utf-8")
        print(text)
        return
    print(json.dumps(document, indent=2))  # half a character, as names that are not UTF-8 have them


def takes_utf8(stream: TextIO) -> bool:
    """Whether what is printed arrives as UTF-8, in which every character has a form."""
    return stream.encoding is None or codecs.lookup(stream.encoding).name == "utf-8"


def _open_closed() -> None:
    for number, (name, mode) in enumerate(STREAMS):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            # The next file opened would get this number, and with it what a library says on stderr.
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
