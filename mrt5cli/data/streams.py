"""Text that is read repeatedly instead of held in memory: Hub datasets, and local files on request.

A `DocumentStream` is one language and split as a sequence of bytes. Its position is four numbers: the pass
over the files, the file, the row and the byte in that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from mrt5cli.data.columns import OTHER_LANGUAGES, Row, column_of_texts, language_column, text_of
from mrt5cli.data.corpus import END_OF_DOCUMENT
from mrt5cli.data.formats import BadRow, Damaged, DataFile
from mrt5cli.data.languages import language_meant
from mrt5cli.data.reading import rows_of
from mrt5cli.errors import UserError
from mrt5cli.text import Tell, counted, listed, say_on_stderr

if TYPE_CHECKING:
    import torch

    # (2,) lines and files.
    Counts = NDArray[np.int64] | torch.Tensor

# The number of the pass, the index of the file in its order, and the number of rows before.
Place = tuple[int, int, int]
END = bytes([END_OF_DOCUMENT])


class LeftOut:
    """Counts what was left out because it could not be read.

    Args:
        counts: (2,) lines and files; it may be shared by several processes.
        tell: receives a note on the first three, then on the 10th, 20th, ..., 100th, 200th and so on.
    """

    def __init__(self, counts: Counts, tell: Tell = say_on_stderr) -> None:
        self.counts, self._tell = counts, tell

    def add(self, where: str, reason: str, *, file: bool) -> None:
        """Count a line, or the rest of a file."""
        self.counts[int(file)] += 1
        count = int(self.counts[int(file)])
        if count <= 3 or set(str(count)[1:]) == {"0"}:
            self._tell(f"left out {'the rest of ' if file else ''}{where}: {reason} (number {count:,})")

    def sentences(self) -> list[str]:
        """A sentence about everything that was left out, if anything."""
        lines, files = (int(count) for count in self.counts)
        parts = [counted(lines, "invalid line")] * (lines > 0)
        parts += [f"the rest of {counted(files, 'damaged file')}"] * (files > 0)
        return [f"left out of the data: {' and '.join(parts)}"] if parts else []


class StreamState(TypedDict):
    """The position of a stream: pass, file, row, bytes taken of it; and whether the pass has found text."""

    at: list[int]
    found: bool


class _Document(NamedTuple):
    """The place of a document, and its bytes with the end mark."""

    place: Place
    content: bytes


@dataclass(eq=False)
class DocumentStream:
    """Documents in sequence, each followed by an end mark, as bytes.

    Attributes:
        column: the column of rows that contains the text.
        key: numbers that seed the order of the files in each pass; None keeps their order.
        keep: whether a document belongs to this split; None keeps all.
        endless: whether to start another pass at the end.
        language: rows in other languages are left out; None accepts all.
        left_out: counts what cannot be read; None makes it an error.
        hint: the hint of that error.
        tell: called once with a note that rows in other languages are left out.
    """

    files: Sequence[DataFile]
    column: str
    key: Sequence[int] | None = None
    keep: Callable[[bytes], bool] | None = None
    language: str | None = None
    endless: bool = True
    left_out: LeftOut | None = None
    hint: str | None = None
    tell: Tell = say_on_stderr

    def __post_init__(self) -> None:
        self._texts = column_of_texts(self.column)
        self._other: str | None = None
        self._start((0, 0, 0), found=False)

    def _start(self, place: Place, *, found: bool) -> None:
        # The reading position, and whether this pass has found text.
        self._place, self._found = place, found
        # The document that bytes are taken from, and the number of bytes taken.
        self._document, self._taken = _Document(place, b""), 0
        self._reader = self._read(*place)

    def take(self, count: int) -> NDArray[np.uint8]:
        """The next `count` bytes, end marks included; fewer only at the end of a single pass."""
        return np.frombuffer(b"".join(self._parts(count)), dtype=np.uint8)

    def skip(self, count: int) -> None:
        """Skip the next `count` bytes, which other processes use."""
        for _ in self._parts(count):
            pass

    def state_dict(self) -> StreamState:
        """The position of the stream, as numbers."""
        if self._taken < len(self._document.content):
            return {"at": [*self._document.place, self._taken], "found": self._found}
        return {"at": [*self._place, 0], "found": self._found}

    def load_state_dict(self, state: StreamState) -> None:
        """Resume at the position of a `state_dict`.

        Raises:
            UserError: the document there has become shorter.
        """
        number, at, row, taken = state["at"]
        self._start((number, at, row), found=state["found"])
        # The rest of a document that can no longer be read is left out with it.
        if not taken or not self._next() or self._document.place != (number, at, row):
            return
        size = len(self._document.content)
        if taken >= size:
            file = self.files[self._order(number)[at]]
            raise UserError(
                f"{file.name}, {file.unit} {row + 1} has changed since the checkpoint was saved: it has "
                f"{size} bytes, and {taken} of it were read already",
                "restore the data that the run began with, or start a new run with --out",
            )
        self._taken = taken

    # Reading.

    def _parts(self, count: int) -> Iterator[bytes]:
        """The next `count` bytes, one part per document."""
        while count and (self._taken < len(self._document.content) or self._next()):
            part = self._document.content[self._taken : self._taken + count]
            self._taken += len(part)
            count -= len(part)
            yield part

    def _next(self) -> bool:
        """Advance to the next document; False at the end of a single pass."""
        document = next(self._reader, None)
        if document is None:
            return False
        self._document, self._taken = document, 0
        return True

    def _order(self, number: int) -> NDArray[np.int64]:
        """(F,) the indices of the files in the order of a pass."""
        count = len(self.files)
        if self.key is None:
            return np.arange(count)
        return np.random.default_rng((*self.key, number)).permutation(count)

    def _read(self, number: int, file: int, row: int) -> Iterator[_Document]:
        """The documents from a row of a file of a pass on."""
        yield from self._pass(number, file, row)
        while self.endless:
            if not self._found:
                names = listed([each.name for each in self.files], 3)
                others = f"; {OTHER_LANGUAGES}, such as {self._other!r}" if self._other else ""
                raise UserError(
                    f"a complete pass over the training data found no text in {names}{others}",
                    "correct task.source or task.languages",
                )
            self._found, number = False, number + 1
            yield from self._pass(number, 0, 0)

    def _pass(self, number: int, first_file: int, first_row: int) -> Iterator[_Document]:
        order = self._order(number)
        for at in range(first_file, len(order)):
            rows = self._rows(self.files[order[at]], first_row if at == first_file else 0)
            for row, where, values in rows:
                self._place = number, at, row
                content = text_of(where, values, self._texts)
                if content and self._is_mine(language_column(values), content):
                    self._found = True
                    yield _Document((number, at, row - 1), content + END)

    def _rows(self, file: DataFile, first: int) -> Iterator[tuple[int, str, Row]]:
        """The numbers of a file's rows, their places, and their values.

        A remote file that looks damaged is read once more, because the damage may have happened in transit;
        what stays damaged is left out.
        """
        again = file.remote
        while True:
            try:
                for row, place, values in rows_of(file, [self._texts], first):
                    if not isinstance(values, BadRow):
                        yield row, f"{file.name}, {place}", values
                    elif again:
                        break
                    else:
                        self._leave_out(f"{file.name}, {place}", values.reason, values.hint, whole=False)
                    first = row
                else:
                    return
            except Damaged as error:
                if not again:
                    # The message about a CSV file gives the line already, and its rows are not lines.
                    after = "" if str(error).startswith("line ") else f" after {file.unit} {first}"
                    self._leave_out(f"{file.name}{after}", str(error), error.hint, whole=True)
                    return
            again = False

    def _is_mine(self, said: str | None, content: bytes) -> bool:
        """Whether a document is in this stream's language and split."""
        if self.language is None or said is None or language_meant(said, (self.language,)):
            return self.keep is None or self.keep(content)
        if self._other is None:
            self._other = said
            self.tell(f"{OTHER_LANGUAGES}, such as {said!r}")
        return False

    def _leave_out(self, where: str, reason: str, hint: str | None, *, whole: bool) -> None:
        if self.left_out is None:
            hints = "; ".join(filter(None, [hint, self.hint])) or None
            raise UserError(f"{where}: {'damaged, ' if whole else ''}{reason}", hints)
        self.left_out.add(where, reason, file=whole)
