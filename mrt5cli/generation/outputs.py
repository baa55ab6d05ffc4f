"""Write outputs: rows in any format, and a file that can be resumed after an interruption."""

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
    """The format named by a file's suffix; "lines" for any other suffix."""
    suffix = name.lower().rpartition(".")[2].replace("ndjson", "jsonl")
    return suffix if suffix in get_args(Format) else "lines"  # type: ignore[return-value]


@dataclass(frozen=True)
class RowFormat:
    r"""Formats rows as text, one line each; quoted cells of CSV and TSV may contain line breaks.

    "lines" writes the column `output` only, with line breaks as the two characters \n, so that each row is
    one line.
    """

    format: Format
    columns: Sequence[str]

    def head(self) -> str:
        """The text before the first row: the column names in CSV and TSV, else nothing."""
        return self._cells(self.columns) if self.format in DELIMITERS else ""

    def row(self, row: Mapping[str, object]) -> str:
        """Format a row; None becomes an empty cell, or null in JSON. JSON accepts any columns.

        Raises:
            UserError: the row has a column that the first row lacks.
        """
        if self.format == "jsonl":
            return _json(row) + "\n"
        if self.format == "lines":
            return f"{row[OUTPUT]}".translate(_BREAKS) + "\n"
        if others := [name for name in row if name not in self.columns]:
            raise UserError(
                f"a row has a column {others[0]!r} that the first row lacks", "use --format jsonl"
            )
        return self._cells([row.get(column) for column in self.columns])

    def _cells(self, values: Sequence[object]) -> str:
        written = io.StringIO()
        # With "\n" as line end, csv would not quote a cell that contains "\r".
        writer = csv.writer(written, delimiter=DELIMITERS[self.format], lineterminator="\r\n")
        writer.writerow(map(_cell, values))
        return written.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: object) -> object:
    """The value of a cell: JSON unless it is a text or a number."""
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return value
    return _json(value)


def _json(value: object) -> str:
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False, default=str)


@dataclass
class Done:
    """The progress of an output.

    Attributes:
        inputs: inputs read, bad ones included.
        digest: digest of their texts.
        bytes: size of the output.
        outputs: rows written.
        bad: inputs that were skipped, or whose output is empty.
        cut: inputs longer than the model reads.
        threshold: threshold found for a requested deletion rate; None without one.
        reached: share of positions that it deletes of the inputs it was found on, 0 to 1.
        columns: columns of the rows; None before the first row.
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
    """The destination of rows: stdout, or a file that is flushed after each window.

    While a file is unfinished, a note next to it records its settings and progress. Rows that a kill left
    beyond the recorded progress are cut off on resuming.

    Args:
        path: path of the file; None for stdout.
        settings: settings that determine the content, as JSON values.
        resume: continue an unfinished file.

    Attributes:
        done: progress so far.
        begun: whether the file has been opened for writing.

    Raises:
        UserError: the file cannot be resumed, see `left_off`; or it is unfinished and `resume` is False.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], *, resume: bool = False) -> None:
        self._path, self._settings, self.begun = path, settings, False
        self.done = left_off(path, settings) if path is not None and resume else Done()
        self._stream: BinaryIO = sys.stdout.buffer
        if path is not None and not resume and note_of(path).is_file():
            raise UserError(
                f"{path} is unfinished: {note_of(path).name} exists next to it",
                "add --resume to continue, or delete both files to start over",
            )

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        if self.begun:
            self._stream.close()

    def begin(self) -> None:
        """Open the file, once everything that can fail before its first row has succeeded."""
        if self._path is not None:
            with naming(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._path.open("r+b" if self._path.exists() else "wb")
                self.begun = True
                self._stream.truncate(self.done.bytes)
                self._stream.seek(self.done.bytes)
                self._note()

    def write(self, text: str) -> None:
        """Append rows, and record `done`."""
        if self._path is None and sys.stdout.isatty():  # outputs must not control the terminal
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
        """Mark the file as complete."""
        if self._path is not None:
            note_of(self._path).unlink(missing_ok=True)

    def _note(self) -> None:
        assert self._path is not None
        write_json(note_of(self._path), {"settings": dict(self._settings), "done": asdict(self.done)})


def note_of(path: Path) -> Path:
    """The file next to an unfinished output that records its progress."""
    return path.with_name(f"{path.name}.unfinished.json")


def left_off(path: Path, settings: Mapping[str, Any]) -> Done:
    """The progress of an unfinished output; none if the output does not exist.

    Raises:
        UserError: it is complete, has other settings, or was changed since.
    """
    note = note_of(path)
    if not note.is_file():
        if not path.exists():
            return Done()
        raise UserError(
            f"--resume: {path} is finished, or was not written by mrt5 generate: {note.name} does not exist",
            "leave --resume out to overwrite it, or choose another --out",
        )
    found = read_object(note, "delete it, and start over")
    try:
        done, before = Done(**found["done"]), dict(found["settings"])
        counts = done.inputs, done.bytes, done.outputs, done.bad, done.cut
        if not all(isinstance(count, int) for count in counts):
            raise TypeError
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{note} was not written by mrt5 generate", "delete it, and start over") from error
    if not done.bad:  # then on_error has had no effect yet
        before = {**before, "on_error": settings.get("on_error")}
    for name in [*settings, *before]:
        if settings.get(name) != before.get(name):
            raise UserError(
                f"--resume: {path} was started with {name} {_shown(before.get(name))}, and now it is "
                f"{_shown(settings.get(name))}",
                f"repeat the command with its first settings, or delete {path.name} and {note.name} to start "
                "over",
            )
    size = path.stat().st_size if path.exists() else 0
    if size < done.bytes:
        raise UserError(
            f"--resume: {path} has {size:,} bytes, but {note.name} records {done.bytes:,}",
            f"delete {note.name}, and start over",
        )
    return done


def _shown(value: object) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)
