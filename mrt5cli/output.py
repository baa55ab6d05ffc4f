"""The standard streams: no missing character, stream or reader of messages makes a command fail."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from mrt5cli.json_files import finite

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
UNSPOKEN = "backslashreplace"
"""Error handler for characters that a stream's encoding lacks."""


def prepare() -> None:
    """Make the standard streams accept whatever a command prints; called once, at startup.

    A stream that the parent process closed (`>&-`, a daemon) is replaced by the null device.
    """
    for name, mode in STREAMS:
        if getattr(sys, name) is None:
            # The null device gets the lowest free descriptor, which is that of the closed stream.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = Results(sys.stdout)
    _lose_messages()


@contextmanager
def losing_messages() -> Iterator[None]:
    """In other programs, ignore failing writes to stderr in the meantime.

    Commands do so from `prepare` on. A stderr that the program has replaced is left alone.
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
    """stdout, whose errors name it."""

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
    """stderr, whose reader may disappear (`2>&1 | head`) or whose disk may fill up.

    Only the messages are lost: a training is worth more than the messages about it.
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
    """Discard what is buffered in a stream, so that Python does not fail to flush it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def print_json(document: object) -> None:
    """Print a JSON document to stdout, in ASCII; NaN and infinities become null."""
    print(json.dumps(finite(document), indent=2, allow_nan=False))
