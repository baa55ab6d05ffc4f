"""Read inputs: lines, or rows of any format, each turned into the text that the model reads.

One input is in memory at a time, except that a JSON list and compressed Parquet are read completely.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mrt5cli.data.columns import Column, Row, cell_column, holder, missing_column, our_names, values_of
from mrt5cli.data.formats import JSON, LONGEST_ROW, ROWS, BadRow, Damaged, DataFile, not_utf8
from mrt5cli.data.reading import rows_of
from mrt5cli.errors import UserError
from mrt5cli.recipe import Recipe
from mrt5cli.recipe.tasks import GeneratedRows, TaskSection
from mrt5cli.templates import Template
from mrt5cli.text import announced, byte_size, say_on_stderr

if TYPE_CHECKING:
    from mrt5cli.tasks.tables import TableTask

STDIN = "-"
BARE = Template.parse("{line}")
"""The template of a bare text."""
NO_TEXT = "it contains no text"
NAME_IT = "name the input's column with --column, or with --prompt 'Correct: {noisy}'"


@dataclass(frozen=True)
class Input:
    """A text for the model, or the reason why an input is bad.

    Attributes:
        where: its place in messages: "lines.txt, line 7".
        text: the text with its prompt; empty for a bad input.
        row: all columns of its row, in order, if they are kept.
        problem: what is wrong with it, or None.
    """

    where: str
    text: bytes
    row: Row | None = None
    problem: UserError | None = None


@dataclass(frozen=True)
class Prompt:
    """The prompt around the texts of an input.

    Attributes:
        template: the text, with a place for each column.
        columns: how columns are read.
    """

    template: Template
    columns: Sequence[Column]

    @classmethod
    def of(cls, template: Template, known: Sequence[Column] = ()) -> Prompt:
        """The prompt of a template; `known` columns may have other names in tables, too."""
        columns = {column.name: replace(column, hint=NAME_IT) for column in known if not column.many}
        return cls(template, [columns.get(name) or cell_column(name, NAME_IT) for name in template.columns])

    @property
    def lone(self) -> str | None:
        """The only column, whose place a line fills; None if there are several."""
        return self.columns[0].name if len(self.columns) == 1 else None

    def around(self, texts: Mapping[str, bytes]) -> bytes:
        """Fill in the texts of an input's columns."""
        return b"".join(
            literal.encode() + (b"" if column is None else texts[column])
            for literal, column in self.template.pieces
        )

    def with_column(self, name: str) -> Prompt:
        """The same prompt for another column."""
        pieces = tuple((literal, column and name) for literal, column in self.template.pieces)
        return Prompt.of(replace(self.template, pieces=pieces))


# --- choosing the prompt ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskOfRun:
    """A run's settings for inputs and outputs, from its recipe.

    Attributes:
        prompt: the task's prompt; None for a task without one.
        input_length, output_length: maximum byte tokens, EOS included; None if the recipe sets none.
    """

    prompt: Prompt | None = None
    input_length: int | None = None
    output_length: int | None = None

    @classmethod
    def of(cls, recipe: Recipe | None) -> TaskOfRun:
        """The settings of a recipe; without a recipe, none."""
        if recipe is None:
            return cls()
        section = recipe.task
        prompt, output = None, section.longest_target
        if text := getattr(section, "input", None):
            prompt = Prompt.of(Template.parse(text))
        elif (task := _without_rows(section)) is not None:
            prompt = Prompt.of(Template.parse(task.encoding.prompt), task.columns)
            output = output or task.encoding.target_length
        return cls(prompt, section.longest_source or None, output)


def _without_rows(section: TaskSection) -> TableTask | None:
    """A run's task without its data, which may no longer exist; None if the task has no prompt."""
    from mrt5cli.tasks.base import build_task, task_class
    from mrt5cli.tasks.tables import TableTask

    kind = task_class(section.kind)
    if not (isinstance(kind, type) and issubclass(kind, TableTask)):
        return None
    rows = GeneratedRows(kind="generated")
    return build_task(section.model_copy(update={"source": rows}))  # type: ignore[return-value]


def choose_prompt(
    own: Prompt | None, *, template: str | None = None, column: str | None = None, raw: bool = False
) -> Prompt | None:
    """The prompt for inputs: the given template, or the run's own unless texts are `raw`; None for neither.

    Args:
        own: the prompt of the run's task.
        template: value of --prompt.
        column: the column that fills the prompt's only place.

    Raises:
        UserError: the template is invalid, or options contradict each other.
    """
    given = {"--prompt": template is not None, "--column": column is not None, "--raw": raw}
    if given["--prompt"] and (given["--column"] or raw):
        other = "--column" if given["--column"] else "--raw"
        raise UserError(
            f"--prompt and {other} contradict each other",
            f"leave one of them out, or use --prompt '{{{column or 'line'}}}'",
        )
    if template is not None:
        try:
            found = Prompt.of(Template.parse(template))
        except ValueError as error:
            hint = "write each column in braces: --prompt 'Correct: {noisy}'"
            raise UserError(f"--prompt '{template}': {error}", hint) from error
        if not found.columns:
            raise UserError(
                f"--prompt '{template}' has no place for the input", "name a column in braces, or {line}"
            )
        return found
    own = None if raw else own
    if column is None:
        return own
    if own is None:
        return Prompt.of(Template(f"{{{column}}}", (("", column), ("", None))))
    if own.lone is None:
        names = ", ".join(one.name for one in own.columns)
        raise UserError(
            f"--column {column} is one text, but the run's prompt has several columns: {names}",
            "leave it out, name all columns in --prompt, or add --raw",
        )
    return own.with_column(column)


# --- reading ------------------------------------------------------------------------------------------------


class Source:
    """A file of inputs, or stdin, read once; a context manager that closes it.

    Args:
        path: path of the file; "-" is stdin. Its suffixes set format and compression; any file that is not a
            table is read line by line.
        prompt: prompt of the texts; None for none.
        text: the only input, instead of a file.
        added: name of the output column that is added to the file's columns; each input then keeps its row.

    Attributes:
        name: name in messages.
        is_table: whether the file has columns; else it has lines.
        prompt: prompt of the texts.
        read: number of inputs read so far.

    Raises:
        UserError: the file does not exist, or the prompt does not fit its format.
    """

    def __init__(
        self, path: str | Path, prompt: Prompt | None, *, text: bytes | None = None, added: str | None = None
    ) -> None:
        self.name = "stdin" if str(path) == STDIN else str(path)
        self.name, self._text = self.name if text is None else "--text", text
        self._file = DataFile(self.name, self._open)
        self._path, self._raw, self._added = Path(path), None, added
        self.read = 0
        is_file = text is None and self.name != "stdin"
        self.is_table = is_file and self._file.suffix in ROWS
        if is_file:
            self._check_there()
        if self.is_table and prompt is None:
            if self._path.stat().st_size == 0:
                raise UserError(f"{self.name} is empty", "expected a table with a column of inputs")
            raise UserError(
                f"{self.name} has columns, and none is named as the input",
                NAME_IT,
            )
        if not self.is_table and added is not None:
            raise UserError(
                f"--add-column requires a table, but {self.name} has lines",
                "use --format csv, tsv or jsonl to write a table of inputs and outputs",
            )
        self.prompt = prompt or Prompt.of(BARE)
        if not self.is_table and self.prompt.lone is None:
            names = ", ".join(one.name for one in self.prompt.columns)
            raise UserError(
                f"{self.name} has lines, but the prompt has several columns: {names}",
                f"use a table ({', '.join(ROWS)}), or add --prompt '{{line}}'",
            )

    _raw: BinaryIO | None

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        if self._raw is not None and self._raw is not sys.stdin.buffer:
            self._raw.close()

    def _check_there(self) -> None:
        if self._path.is_dir():
            raise UserError(f"{self.name} is a folder; expected a file", "run the command once per file")
        if not self._path.exists():
            raise UserError(f"{self.name} does not exist", "check the name for a typo; - reads stdin")
        if self.is_table and not self._path.is_file():
            raise UserError(
                f"{self.name} is not a file", "save the table as a file: it is read more than once"
            )

    def _open(self) -> BinaryIO:
        if self.name == "stdin":
            opened: BinaryIO = sys.stdin.buffer
        else:  # opening a named pipe blocks until another process writes to it
            with announced(f"waiting for input from {self.name} ...", say_on_stderr):
                opened = self._path.open("rb")
        if self._raw is None:  # else the file is opened a second time
            self._raw = opened
        return opened

    @property
    def estimate(self) -> int | None:
        """Estimated number of inputs, from the part of the file that was read; None if unknown."""
        try:
            assert self._raw is not None
            size = os.fstat(self._raw.fileno()).st_size
            return round(self.read * size / self._raw.tell()) if size else None
        except (AssertionError, OSError, ValueError, ZeroDivisionError):
            return None if self._raw is None or not self._raw.closed else self.read

    def __iter__(self) -> Iterator[Input]:
        for one in self._rows() if self.is_table else self._lines():
            self.read += 1
            yield one

    def _lines(self) -> Iterator[Input]:
        if self._text is not None:
            yield self._line(self.name, self._text)
            return
        try:
            with self._file.utf8() as stream:
                # Without read-ahead, so that the position in the file tells how much is left.
                for number, line in enumerate(iter(partial(stream.readline, LONGEST_ROW + 1), b""), start=1):
                    if len(line) > LONGEST_ROW:
                        raise Damaged(f"line {number} is longer than {byte_size(LONGEST_ROW)}")
                    yield self._line(f"{self.name}, line {number}", line)
        except Damaged as error:
            raise UserError(f"{self.name} cannot be read: {error}", error.hint) from error

    def _line(self, where: str, line: bytes) -> Input:
        text = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as error:
            return _bad(where, not_utf8(error))
        if not text.strip():
            return _bad(where, BadRow(NO_TEXT))
        assert self.prompt.lone is not None
        return Input(where, self.prompt.around({self.prompt.lone: text}))

    def _rows(self) -> Iterator[Input]:
        columns = self.prompt.columns
        try:
            # Passing the columns would rename them as the prompt does.
            for number, place, values in rows_of(self._file, columns if self._added is None else ()):
                where = f"{self.name}, {place}"
                if isinstance(values, BadRow):
                    yield _bad(where, values)
                    continue
                if number == 1 and self._added is not None and self._file.suffix not in JSON:
                    self._check_columns(values)
                if self._added in values:
                    raise UserError(
                        f"{where}: the column {self._added!r} exists already", "choose another name"
                    )
                yield row_of(where, values, self.prompt, kept=self._added is not None)
        except Damaged as error:
            raise UserError(f"{self.name} cannot be read: {error}", error.hint) from error

    def _check_columns(self, row: Row) -> None:
        for column in self.prompt.columns:
            if holder(our_names(row, self.prompt.columns), column.name) is None:
                raise missing_column(self.name, column.name, row, self.prompt.columns)


def row_of(where: str, values: Row, prompt: Prompt, *, kept: bool) -> Input:
    """The input of a row.

    Args:
        kept: keep all columns of the row, with the names that they have in the file.
    """
    columns = prompt.columns
    row = values if kept else None
    ours = dict(zip(our_names(values, columns), values.values(), strict=True)) if kept else values
    try:
        texts = {name: str(text).encode() for name, text in values_of(where, ours, columns).items()}
    except UserError as error:
        return Input(where, b"", row, error)
    if not any(text.strip() for text in texts.values()):
        return Input(where, b"", row, _bad(where, BadRow(NO_TEXT)).problem)
    return Input(where, prompt.around(texts), row)


def _bad(where: str, row: BadRow) -> Input:
    return Input(where, b"", None, UserError(f"{where}: {row.reason}", row.hint))
