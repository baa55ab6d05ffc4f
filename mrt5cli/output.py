"""The standard streams: nothing fails for lack of a character, a stream, or a reader of messages."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
UNSPOKEN = "backslashreplace"
"""What becomes of a character that a stream cannot hold."""


def prepare() -> None:
    """Make the process's standard streams fit for everything a command may print; called once, at the entry.

    A stream that was closed by whoever started the process (`>&-`, a daemon) leads nowhere afterwards.
    """
    for name, mode in STREAMS:
        if getattr(sys, name) is None:
            # The null device gets the number of the closed stream: the lowest free.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = Results(sys.stdout)
    _lose_messages()


@contextmanager
def losing_messages() -> Iterator[None]:
    """Let what is said on stderr meanwhile be lost where it cannot be written, in programs that are not ours.

    In a command `prepare` has seen to it for good; a stderr that somebody else has put in place is theirs.
    """
    before = sys.stderr
    _lose_messages()
    try:
        yield
    finally:
        sys.stderr = before


def _lose_messages() -> None:
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
    """Print a JSON document on stdout, in ASCII, which every stream takes."""
    print(json.dumps(document, indent=2))
