"""Text that is read again and again instead of held in memory: Hub datasets, and local files when asked.

A `DocumentStream` is one language and split as a run of bytes, dealt out to ranks and loader workers. Four
numbers say where it is: the pass over the files, the file, the row in it and the byte in that.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrt5cli.data.corpus import END_OF_DOCUMENT
from mrt5cli.data.files import MANY_FILES, cut_text, missing_text, no_text
from mrt5cli.data.formats import BadRow, Damaged, decoded, json_rows, parquet_rows, separated_rows
from mrt5cli.errors import UserError
from mrt5cli.text import Tell, counted, first_line, say_on_stderr

UNPACKED_BY: dict[str, Callable[[BinaryIO], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
UNITS = {".jsonl": "line", ".json": "line", ".parquet": "row", ".csv": "row", ".txt": "paragraph"}
# Bytes of plain text that are read at a time.
TEXT_AT_ONCE = 16 << 20
END = bytes([END_OF_DOCUMENT])
SKIP_HINT = (
    "--set task.source.skip_corrupt=true leaves it out, and counts it; where a run is evaluated, the same "
    "key in its recipe.yaml"
)


@dataclass(frozen=True)
class TextFile:
    """A file with texts in it.

    Attributes:
        name: what it is called, for people; its end says the format.
        open: gives its bytes.
        whole: a plain text is one document.
        remote: it comes over a network, so that what looks damaged is fetched once more.
    """

    name: str
    open: Callable[[], BinaryIO]
    whole: bool = False
    remote: bool = False

    @property
    def suffix(self) -> str:
        """Of its format, whatever it is packed in."""
        name = PurePath(self.name)
        return (name.with_suffix("") if name.suffix in UNPACKED_BY else name).suffix

    @property
    def unit(self) -> str:
        """What is counted in it, in words."""
        return UNITS.get(self.suffix, "row")

    def texts(self, column: str, first: int = 0) -> Iterator[tuple[int, Any]]:
        """The number and the text (or what stands in its place) of each row; numbers begin at 1.

        Args:
            column: of rows, the one with the text.
            first: rows to pass over.

        Raises:
            UserError: the format is none that is read, or a row has no such column.
            Damaged: what comes cannot be read.
        """
        if self.suffix not in UNITS:
            raise UserError(f"{self.name}: text is read from {', '.join(UNITS)} files")
        # Local, because an unfinished generator is closed when the interpreter has given up its modules.
        damage = OSError, EOFError, zlib.error, lzma.LZMAError
        try:
            with self.open() as packed:
                unpack = UNPACKED_BY.get(PurePath(self.name).suffix)
                stream = packed if unpack is None else unpack(packed)
                yield from self._texts(stream, column, first)
        except damage as error:
            raise Damaged(first_line(error)) from error

    def _texts(self, stream: BinaryIO, column: str, first: int) -> Iterator[tuple[int, Any]]:
        if self.suffix in (".jsonl", ".json"):
            for number, row in json_rows(stream, first):
                if isinstance(row, BadRow):
                    yield number, row
                elif column in row:
                    yield number, row[column]
                else:
                    raise missing_text(f"{self.name}, line {number}", column, row)
        elif self.suffix == ".parquet":
            for number, row in parquet_rows(stream, self.name, [column], missing_text, first=first):
                yield number, row if isinstance(row, BadRow) else row[column]
        elif self.suffix == ".csv":
            text = decoded(stream.read())
            if isinstance(text, BadRow):
                raise Damaged(text.reason)
            found = separated_rows(text, f"{self.name}, line", [column], missing_text)
            for number, (_, row) in islice(enumerate(found, start=1), first, None):
                yield number, row[column]
        else:
            for number, part in islice(enumerate(_plain_texts(stream, self.whole), start=1), first, None):
                yield number, decoded(part)


def text_files(
    named: Sequence[tuple[str, Callable[[], BinaryIO]]], *, remote: bool = False
) -> list[TextFile]:
    """Files of one split; from so many plain texts on, each is one document."""
    plain = sum(name.removesuffix(".gz").endswith(".txt") for name, _ in named)
    return [TextFile(name, opened, plain >= MANY_FILES, remote) for name, opened in named]


def _plain_texts(stream: BinaryIO, whole: bool) -> Iterator[bytes]:
    if whole:
        yield from cut_text(stream.read(), whole=True)
        return
    rest = b""
    while block := stream.read(TEXT_AT_ONCE):
        head, _, rest = (rest + block).rpartition(b"\n\n")
        yield from cut_text(head, whole=False)
    yield from cut_text(rest, whole=False)


class LeftOut:
    """What was left out because it could not be read, counted and told.

    Args:
        counts: of lines and of files; it may be shared by several processes.
        tell: is told of the first few, and of every tenth, hundredth ... after that.
    """

    def __init__(self, counts: Any, tell: Tell = say_on_stderr) -> None:
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


class DocumentStream:
    """Documents one after the other, each followed by an end mark, as a run of bytes.

    Args:
        files: with the texts.
        column: of rows, the one with the text.
        key: numbers that the order of the files is drawn from, for each pass another; None keeps their order.
        shard, shards: which part this is of how many. Each has files of its own where there are enough, and
            rows of its own of all files where not.
        keep: which documents are of this split; None keeps all.
        endless: start the next pass when one is over.
        left_out: counts what cannot be read; None stops there.
        hint: the way out for those who are stopped by it.
    """

    def __init__(
        self,
        files: Sequence[TextFile],
        column: str,
        *,
        key: Sequence[int] | None = None,
        shard: int = 0,
        shards: int = 1,
        keep: Callable[[bytes], bool] | None = None,
        endless: bool = True,
        left_out: LeftOut | None = None,
        hint: str | None = None,
    ) -> None:
        self._files, self._column, self._key, self._keep = list(files), column, key, keep
        self._shard, self._shards = shard, shards
        self._endless, self._left_out, self._hint = endless, left_out, hint
        self._documents: deque[_Document] = deque()
        # Bytes of the documents not taken yet, and of the first of them those that are.
        self._ready, self._taken = 0, 0
        self._fetched_again: tuple[int, int] | None = None
        self._rows: Iterator[tuple[int, Any]] | None = None
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
            file = self._files[self._order[document.place[1]]]
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
        count = len(self._files)
        order = np.arange(count)
        if self._key is not None:
            order = np.random.default_rng((*self._key, number)).permutation(count)
        self._deals_files = count >= self._shards
        self._order = order[self._shard :: self._shards] if self._deals_files else order

    def _start_file(self, place: int, row: int) -> None:
        self._place, self._row, self._rows = place, row, None

    def _read(self) -> bool:
        """Read a row, or go on to the next file; False when a single pass is over."""
        if self._place == len(self._order):
            if not self._endless:
                return False
            if not self._found:
                raise UserError("a whole pass over the training data found no text", "see task.source")
            self._start_pass(self._pass + 1)
            self._start_file(0, 0)
        file = self._files[self._order[self._place]]
        if self._rows is None:
            self._rows = file.texts(self._column, self._row)
        try:
            found = next(self._rows, None)
        except Damaged as error:
            self._rows = None
            if not self._fetch_again(file):
                self._leave_out(file, f"{file.name} after {file.unit} {self._row}", str(error), whole=True)
                self._start_file(self._place + 1, 0)
            return True
        if found is None:
            self._start_file(self._place + 1, 0)
            return True
        number, text = found
        if isinstance(text, BadRow):
            if self._fetch_again(file):
                self._row, self._rows = number - 1, None
                return True
            self._leave_out(file, f"{file.name}, {file.unit} {number}", text.reason, whole=False)
        elif self._deals_files or (number - 1) % self._shards == self._shard:
            self._add(file, number, text)
        self._row = number
        return True

    def _add(self, file: TextFile, number: int, text: Any) -> None:
        if not isinstance(text, str | None):
            raise no_text(f"{file.name}, {file.unit} {number}", self._column, text)
        document = (text or "").encode("utf-8", errors="replace")
        if document and (self._keep is None or self._keep(document)):
            self._found = True
            self._documents.append(_Document((self._pass, self._place, number - 1), document + END))
            self._ready += len(document) + 1

    def _fetch_again(self, file: TextFile) -> bool:
        """Whether to read the file once more from the start, because it may have been damaged on its way."""
        here = self._pass, self._place
        again = file.remote and self._fetched_again != here
        if again:
            self._fetched_again = here
        return again

    def _leave_out(self, file: TextFile, where: str, reason: str, *, whole: bool) -> None:
        if self._left_out is None:
            raise UserError(f"{where}: {'damaged, ' if whole else ''}{reason}", self._hint)
        self._left_out.add(where, reason, file=whole)
