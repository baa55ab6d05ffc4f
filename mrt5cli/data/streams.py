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

from mrt5cli.data.columns import LANGUAGE_COLUMN
from mrt5cli.data.corpus import END_OF_DOCUMENT
from mrt5cli.data.formats import BadRow, Damaged, DataFile
from mrt5cli.data.texts import LanguageRule, Text, texts
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
    """What was left out because it could not be read, counted and told.

    Args:
        counts: of lines and of files; it may be shared by several processes.
        tell: is told of the first few, and of every tenth, hundredth ... after that.
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
        parts = [f"{counted(lines, 'line')} that are no rows" if lines else ""]
        parts += [f"what was left of {counted(files, 'damaged file')}" if files else ""]
        found = " and ".join(filter(None, parts))
        return [f"left out of the data: {found}"] if found else []


class _Document(NamedTuple):
    """Where a document is (pass, file, rows before it), and its bytes with the end mark."""

    place: tuple[int, int, int]
    content: bytes


@dataclass(eq=False)
class DocumentStream:
    """Documents one after the other, each followed by an end mark, as a run of bytes.

    Attributes:
        files: with the texts.
        column: of rows, the one with the text.
        key: numbers that the order of the files is drawn from, for each pass another; None keeps their order.
        shard, shards: which part this is of how many. Each has files of its own where there are enough, and
            rows of its own of all files where not.
        keep: which documents are of this split; None keeps all.
        endless: start the next pass when one is over.
        language: rows that say they are in another are left out; None takes all.
        left_out: counts what cannot be read; None stops there.
        hint: the way out for those who are stopped by it.
        tell: is told of what is suspicious or left out.
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
        self._rule = None if self.language is None else LanguageRule([self.language])
        self._said: set[str] = set()
        self._documents: deque[_Document] = deque()
        # Bytes of the documents not taken yet, and of the first of them those that are.
        self._ready, self._taken = 0, 0
        self._fetched_again: tuple[int, int] | None = None
        self._rows: Iterator[Text] | None = None
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
        if self._documents:
            at = (*self._documents[0].place, self._taken)
        else:
            at = (self._pass, self._place, self._row, 0)
        return {"at": list(at), "found": self._found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        *place, taken = state["at"]
        self._start(*place)
        self._found = state["found"]
        if not taken:
            return
        while not self._documents and self._read():
            pass
        # A document that can no longer be read has been left out, and its rest with it.
        if self._documents and self._documents[0].place == tuple(place):
            self._skip(taken)

    def _skip(self, count: int) -> None:
        """Take the first bytes of the first document, which has more."""
        document = self._documents[0]
        if count >= len(document.content):
            file = self.files[self._order[document.place[1]]]
            raise UserError(
                f"{file.name}, {file.unit} {document.place[2] + 1} is another text than when the checkpoint "
                f"was saved: it has {len(document.content)} bytes, and {count} of it were taken",
                "bring back the data that the run began with, or start anew with --out",
            )
        self._taken = count
        self._ready -= count

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
        """Read a row, or go on to the next file; False when a single pass is over."""
        if self._place == len(self._order):
            if not self.endless:
                return False
            if not self._found:
                others = self._rule.sentence() if self._rule else None
                names = listed([file.name for file in self.files], 3)
                raise UserError(
                    f"a whole pass over the training data found no text in {names}"
                    + (f"; {others}" if others else ""),
                    "see task.source and task.languages",
                )
            self._start_pass(self._pass + 1)
            self._start_file(0, 0)
        file = self.files[self._order[self._place]]
        if self._rows is None:
            self._rows = texts(file, self.column, self._row, tell=self._tell_once)
        try:
            found = next(self._rows, None)
        except Damaged as error:
            self._rows = None
            if not self._fetch_again(file):
                # What is told of CSV has its line already, and its rows are no lines.
                where = (
                    file.name
                    if str(error).startswith("line ")
                    else f"{file.name} after {file.unit} {self._row}"
                )
                self._leave_out(file, where, str(error), error.hint, whole=True)
                self._start_file(self._place + 1, 0)
            return True
        if found is None:
            self._start_file(self._place + 1, 0)
            return True
        content = found.content
        if isinstance(content, BadRow):
            if self._fetch_again(file):
                self._row, self._rows = found.number - 1, None
                return True
            where = f"{file.name}, {file.unit} {found.line}"
            self._leave_out(file, where, content.reason, content.hint, whole=False)
        elif self._deals_files or (found.number - 1) % self.shards == self.shard:
            self._add(found, content)
        self._row = found.number
        return True

    def _add(self, found: Text, content: bytes) -> None:
        if content and self._in_language(found.language) and (self.keep is None or self.keep(content)):
            self._found = True
            self._documents.append(_Document((self._pass, self._place, found.number - 1), content + END))
            self._ready += len(content) + 1

    def _in_language(self, said: str | None) -> bool:
        if self._rule is None or self._rule(said) is not None:
            return True
        if len(self._rule.others) == 1:
            self._tell_once(
                f"rows are left out whose column {LANGUAGE_COLUMN!r} says another language, such as {said!r}"
            )
        return False

    def _tell_once(self, text: str) -> None:
        """Tell, on the first pass over the data, what the next will find as well."""
        if text not in self._said:
            self._said.add(text)
            self.tell(text)

    def _fetch_again(self, file: DataFile) -> bool:
        """Whether to read the file once more from the start, because it may have been damaged on its way."""
        here = self._pass, self._place
        again = file.remote and self._fetched_again != here
        if again:
            self._fetched_again = here
        return again

    def _leave_out(self, file: DataFile, where: str, reason: str, hint: str | None, *, whole: bool) -> None:
        if self.left_out is None:
            raise UserError(
                f"{where}: {'damaged, ' if whole else ''}{reason}",
                "; ".join(filter(None, [hint, self.hint])),
            )
        self.left_out.add(where, reason, file=whole)
