"""What is written where: rows in any format, and a file that can be gone on with after an interruption."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from mrt5cli.errors import UserError
from mrt5cli.json_files import finite, read_object
from mrt5cli.text import visible
from mrt5cli.writing import naming, write_json

Format = Literal["lines", "jsonl", "csv", "tsv"]
OUTPUT = "output"
DELIMITERS = {"csv": ",", "tsv": "\t"}
_BREAKS = str.maketrans({"\n": "\\n", "\r": "\\r"})


def format_of(name: str) -> Format:
    """The format that the end of a file's name says; "lines" where it says none of the others."""
    suffix = name.lower().rpartition(".")[2].replace("ndjson", "jsonl")
    return suffix if suffix in get_args(Format) else "lines"  # type: ignore[return-value]


@dataclass(frozen=True)
class RowFormat:
    r"""Rows as text, a line each; in CSV and TSV a cell in quotes may have line breaks.

    Of "lines" only the column `output` is written, a line break in it as the two characters \n, so that there
    is one line a row.
    """

    format: Format
    columns: Sequence[str]

    def head(self) -> str:
        """What comes before the first row: in CSV and TSV the columns' names."""
        return self._cells(self.columns) if self.format in DELIMITERS else ""

    def row(self, row: Mapping[str, object]) -> str:
        """A row; None is an empty cell, or JSON's null. JSON takes whatever columns a row has.

        Raises:
            UserError: a table has no such column.
        """
        if self.format == "jsonl":
            return _json(row) + "\n"
        if self.format == "lines":
            return f"{row[OUTPUT]}".translate(_BREAKS) + "\n"
        if others := [name for name in row if name not in self.columns]:
            raise UserError(
                f"a row has a column {others[0]!r}, and the first has none", "write rows that differ as jsonl"
            )
        return self._cells([row.get(column) for column in self.columns])

    def _cells(self, values: Sequence[object]) -> str:
        written = io.StringIO()
        # Ending lines in "\n", csv would not quote a cell with "\r" in it.
        writer = csv.writer(written, delimiter=DELIMITERS[self.format], lineterminator="\r\n")
        writer.writerow(map(_cell, values))
        return written.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: object) -> object:
    """A value as a cell has it: JSON where it is neither a text nor a number."""
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return value
    return _json(value)


def _json(value: object) -> str:
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False, default=str)


@dataclass
class Done:
    """How far an output is.

    Attributes:
        inputs: that were read, the bad ones too.
        digest: of their texts.
        bytes: that the output has.
        outputs: rows written.
        bad: inputs that were skipped, or whose output is empty.
        cut: inputs longer than the model reads.
        threshold: that a deletion rate was found to need, where one was asked for.
        reached: share of positions that it deletes of the inputs that it was found on, 0 to 1.
        columns: of its rows; None before the first.
    """

    inputs: int = 0
    digest: str = ""
    bytes: int = 0
    outputs: int = 0
    bad: int = 0
    cut: int = 0
    threshold: float | None = None
    reached: float | None = None
    columns: list[str] | None = None


class Output:
    """Where rows go: stdout, or a file that always ends with a whole window of them.

    While a file is unfinished, one beside it says what it is the output of, and how far it is. What a kill
    leaves behind that is cut off when it is gone on with.

    Args:
        path: of the file; None for stdout.
        settings: that decide what is written, in words and numbers.
        resume: go on where an unfinished file ends.

    Attributes:
        done: how far it is.
        begun: whether the file is being written, and not as it was before.

    Raises:
        UserError: there is nothing to go on with, see `left_off`; or it is unfinished, and nobody said to.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], *, resume: bool = False) -> None:
        self._path, self._settings, self.begun = path, settings, False
        self.done = left_off(path, settings) if path is not None and resume else Done()
        self._stream: BinaryIO = sys.stdout.buffer
        if path is not None and not resume and note_of(path).is_file():
            raise UserError(
                f"{path} is unfinished: {note_of(path).name} is beside it",
                "add --resume to go on with it, or remove both to begin again",
            )

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        if self.begun:
            self._stream.close()

    def begin(self) -> None:
        """Open the file, when all that can fail before its first row has not."""
        if self._path is not None:
            with naming(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._path.open("r+b" if self._path.exists() else "wb")
                self.begun = True
                self._stream.truncate(self.done.bytes)
                self._stream.seek(self.done.bytes)
                self._note()

    def write(self, text: str) -> None:
        """Add rows, and remember `done` as it stands."""
        if self._path is None and sys.stdout.isatty():  # what a model writes is no command for a terminal
            text = visible(text)
        content = text.encode("utf-8", "backslashreplace")
        self.done.bytes += len(content)
        if self._path is None:
            self._stream.write(content)
            self._stream.flush()
            return
        with naming(self._path, len(content)):
            self._stream.write(content)
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._note()

    def finish(self) -> None:
        """Say that the file is whole."""
        if self._path is not None:
            note_of(self._path).unlink(missing_ok=True)

    def _note(self) -> None:
        assert self._path is not None
        write_json(note_of(self._path), {"settings": dict(self._settings), "done": asdict(self.done)})


def note_of(path: Path) -> Path:
    """The file beside an unfinished output that says how far it is."""
    return path.with_name(f"{path.name}.unfinished.json")


def left_off(path: Path, settings: Mapping[str, Any]) -> Done:
    """How far an unfinished output is; nothing of one that is not there.

    Raises:
        UserError: it is whole, or of other settings, or not as it was left.
    """
    note = note_of(path)
    if not note.is_file():
        if not path.exists():
            return Done()
        raise UserError(
            f"--resume: {path} is finished, or was not written by mrt5 generate: there is no {note.name} "
            "beside it",
            "leave --resume out to write it anew, or choose another --out",
        )
    found = read_object(note, "remove it, and begin again")
    try:
        done, before = Done(**found["done"]), dict(found["settings"])
        counts = done.inputs, done.bytes, done.outputs, done.bad, done.cut
        if not all(isinstance(count, int) for count in counts):
            raise TypeError
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{note} is not what mrt5 generate writes", "remove it, and begin again") from error
    if not done.bad:  # then nothing has come of it yet
        before = {**before, "on_error": settings.get("on_error")}
    for name in [*settings, *before]:
        if settings.get(name) != before.get(name):
            raise UserError(
                f"--resume: {path} was begun with {name} {_said(before.get(name))}, and this is "
                f"{_said(settings.get(name))}",
                f"repeat the command with the settings that it was begun with, or remove {path.name} and "
                f"{note.name} to begin again",
            )
    size = path.stat().st_size if path.exists() else 0
    if size < done.bytes:
        raise UserError(
            f"--resume: {path} has {size:,} bytes, and {note.name} says that {done.bytes:,} were written",
            f"remove {note.name}, and begin again",
        )
    return done


def _said(value: object) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)
