"""Text that is read again and again instead of held in memory: Hub datasets, and local files when asked.

A `DocumentStream` is one language and split as a run of bytes, dealt out to ranks and loader workers. Four
numbers say where it is: the pass over the files, the file, the row in it and the byte in that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrt5cli.data.columns import language_column
from mrt5cli.data.corpus import END_OF_DOCUMENT
from mrt5cli.data.formats import BadRow, Damaged, DataFile
from mrt5cli.data.reading import FileRow, rows_of
from mrt5cli.data.texts import OTHER_LANGUAGES, column_of_texts, meant_by, text_of
from mrt5cli.errors import UserError
from mrt5cli.text import Tell, counted, listed, say_on_stderr

if TYPE_CHECKING:
    import torch

    # Of lines and of files.
    Counts = NDArray[np.int64] | torch.Tensor

END = bytes([END_OF_DOCUMENT])
SKIP_HINT = (
    "--set task.source.skip_corrupt=true leaves it out, and counts it; where a run is evaluated, the same "
    "key in its recipe.yaml"
)


class LeftOut:
    """Counts what was left out because it could not be read.

    Args:
        counts: of lines and of files; it may be shared by several processes.
        tell: is given the first few, and every tenth, hundredth ... after that.
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
        """What was left out in all, if anything."""
        lines, files = (int(count) for count in self.counts)
        parts = [f"{counted(lines, 'line')} that are no rows"] * (lines > 0)
        parts += [f"what was left of {counted(files, 'damaged file')}"] * (files > 0)
        return [f"left out of the data: {' and '.join(parts)}"] if parts else []


class _Document(NamedTuple):
    """Where a document is (pass, file, rows before it), and its bytes with the end mark."""

    place: tuple[int, int, int]
    content: bytes


@dataclass(eq=False)
class DocumentStream:
    """Documents one after the other, each followed by an end mark, as a run of bytes.

    Attributes:
        column: of rows, the one with the text.
        key: numbers that the order of the files is drawn from, for each pass another; None keeps their order.
        shard, shards: which part this is of how many. Each has files of its own where there are enough, and
            rows of its own of all files where not.
        keep: which documents are of this split; None keeps all.
        endless: start the next pass when one is over.
        language: rows that say they are in another are left out; None takes all.
        left_out: counts what cannot be read; None stops there.
        hint: the way out for those who are stopped by it.
        tell: is given, once, that rows of other languages are left out.
    """

    files: Sequence[DataFile]
    column: str
    key: Sequence[int] | None = None
    shard: int = 0
    shards: int = 1
    keep: Callable[[bytes], bool] | None = None
    language: str | None = None
    endless: bool = True
    left_out: LeftOut | None = None
    hint: str | None = None
    tell: Tell = say_on_stderr

    def __post_init__(self) -> None:
        self._other_language: str | None = None
        self._documents: deque[_Document] = deque()
        self._texts = column_of_texts(self.column)
        self._rows: Iterator[FileRow] | None = None
        # Bytes of the documents not taken yet, and of the first of them those that are.
        self._ready, self._taken = 0, 0
        self._fetched_again: tuple[int, int] | None = None
        self._start(0, 0, 0)

    def take(self, count: int) -> NDArray[np.uint8]:
        """The next `count` bytes, end marks included; fewer only when a single pass is over."""
        while self._ready < count and self._read():
            pass
        parts = []
        while count and self._documents:
            content = self._documents[0].content
            part = content[self._taken : self._taken + count]
            parts.append(part)
            count -= len(part)
            self._ready -= len(part)
            self._taken += len(part)
            if self._taken == len(content):
                self._documents.popleft()
                self._taken = 0
        return np.frombuffer(b"".join(parts), dtype=np.uint8)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, in numbers only."""
        place = self._documents[0].place if self._documents else (self._pass, self._place, self._row)
        return {"at": [*place, self._taken], "found": self._found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken."""
        *place, taken = state["at"]
        self._start(*place)
        self._found = state["found"]
        while taken and not self._documents and self._read():
            pass
        # A document that can no longer be read has been left out, and its rest with it.
        if not taken or not self._documents or self._documents[0].place != tuple(place):
            return
        size = len(self._documents[0].content)
        if taken >= size:
            file = self.files[self._order[place[1]]]
            raise UserError(
                f"{file.name}, {file.unit} {place[2] + 1} is another text than when the checkpoint "
                f"was saved: it has {size} bytes, and {taken} of it were taken",
                "bring back the data that the run began with, or start anew with --out",
            )
        self._taken = taken
        self._ready -= taken

    # Reading.

    def _start(self, number: int, place: int, row: int) -> None:
        """Begin with a row of a file of a pass."""
        self._documents.clear()
        self._ready = self._taken = 0
        self._fetched_again = None
        self._start_pass(number)
        self._start_file(place, row)

    def _start_pass(self, number: int) -> None:
        self._pass, self._found = number, False
        count = len(self.files)
        order = np.arange(count)
        if self.key is not None:
            order = np.random.default_rng((*self.key, number)).permutation(count)
        self._deals_files = count >= self.shards
        self._order = order[self.shard :: self.shards] if self._deals_files else order

    def _start_file(self, place: int, row: int) -> None:
        self._place, self._row, self._rows = place, row, None

    def _read(self) -> bool:
        """Read a row, or turn to the next file; False when a single pass is over."""
        if self._place == len(self._order):
            if not self.endless:
                return False
            self._next_pass()
        file = self.files[self._order[self._place]]
        if self._rows is None:
            self._rows = rows_of(file, [self._texts], self._row)
            self._unit = f"{file.name}, {file.unit}"
        try:
            found = next(self._rows, None)
        except Damaged as error:
            if self._fetch_again(file):
                self._start_file(self._place, self._row)
                return True
            # The message about a CSV file has its line already, and its rows are no lines.
            place = "" if str(error).startswith("line ") else f" after {file.unit} {self._row}"
            self._leave_out(f"{file.name}{place}", str(error), error.hint, whole=True)
            found = None
        if found is None:
            self._start_file(self._place + 1, 0)
        elif isinstance(found.values, BadRow) and self._fetch_again(file):
            self._start_file(self._place, found.number - 1)
        else:
            self._take_row(found)
        return True

    def _next_pass(self) -> None:
        if not self._found:
            names = listed([file.name for file in self.files], 3)
            others = f"; {OTHER_LANGUAGES}, such as {self._other_language!r}" if self._other_language else ""
            raise UserError(
                f"a whole pass over the training data found no text in {names}{others}",
                "see task.source and task.languages",
            )
        self._start_pass(self._pass + 1)
        self._start_file(0, 0)

    def _take_row(self, found: FileRow) -> None:
        self._row, where = found.number, f"{self._unit} {found.line}"
        if isinstance(found.values, BadRow):
            self._leave_out(where, found.values.reason, found.values.hint, whole=False)
            return
        if not self._deals_files and (found.number - 1) % self.shards != self.shard:
            return
        content = text_of(where, found.values, self._texts)
        if (
            content
            and self._in_language(language_column(found.values))
            and (not self.keep or self.keep(content))
        ):
            self._found = True
            self._documents.append(_Document((self._pass, self._place, found.number - 1), content + END))
            self._ready += len(content) + 1

    def _in_language(self, said: str | None) -> bool:
        if self.language is None or said is None or meant_by(said, (self.language,)):
            return True
        if self._other_language is None:
            self._other_language = said
            self.tell(f"{OTHER_LANGUAGES}, such as {said!r}")
        return False

    def _fetch_again(self, file: DataFile) -> bool:
        """Whether to read the file once more from the start, because it may have been damaged on its way."""
        here = self._pass, self._place
        again = file.remote and self._fetched_again != here
        if again:
            self._fetched_again = here
        return again

    def _leave_out(self, where: str, reason: str, hint: str | None, *, whole: bool) -> None:
        if self.left_out is None:
            hints = "; ".join(filter(None, [hint, self.hint])) or None
            raise UserError(f"{where}: {'damaged, ' if whole else ''}{reason}", hints)
        self.left_out.add(where, reason, file=whole)
