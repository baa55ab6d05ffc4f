"""The formats of data files: which are read, what they may be packed in, and their bytes as UTF-8.

A format is known by the end of a file's name, in capitals or not: `a.JSONL.gz`. Text may be in UTF-8, with
or without a mark, or in UTF-16 or UTF-32 with one; lines may end as on any system.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

from mrt5cli.errors import UserError
from mrt5cli.json_files import parse
from mrt5cli.stand_ins import PACKED, pointer_or_page
from mrt5cli.text import first_line

TEXT = (".txt", ".text")
JSON = (".jsonl", ".ndjson", ".json")
TABLES = (".csv", ".tsv")
PARQUET = (".parquet",)
ROWS = (*JSON, *TABLES, *PARQUET)
FORMATS = (*TEXT, *ROWS)
IN_WORDS = ".txt, .jsonl, .json, .csv, .tsv and .parquet"
PACKED_IN_WORDS = ".gz, .bz2, .xz and .zst"
UNITS = {**dict.fromkeys((*JSON, *TABLES), "line"), **dict.fromkeys(PARQUET, "row")}

CONVERT = "convert the file first, e.g. iconv -f LATIN1 -t UTF-8 (or whatever its encoding is)"
# Of packed and of recoded bytes, read at a time; the first of them say what a file is.
BLOCK_BYTES = 1 << 16
# The longer mark first: UTF-32's begins as UTF-16's does.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


# First bytes of what is no text, and the ending that says so.
_NO_TEXT = {beginning: suffix for beginning, (suffix, _) in PACKED.items()}
_NO_TEXT |= {b"PK\x03\x04": ".zip", b"PAR1": ".parquet"}


class Damaged(Exception):
    """A file whose content cannot be read.

    Attributes:
        hint: what to do next, or None.
    """

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


@dataclass(frozen=True)
class BadRow:
    """What is in the place of a row that cannot be used.

    Attributes:
        reason: what is wrong with it.
        hint: what to do next, or None.
    """

    reason: str
    hint: str | None = None


class Format(NamedTuple):
    """The format of a file: its suffix in lower case, and that of what it is packed in, or ""."""

    suffix: str
    packing: str


def format_of(name: str) -> Format | None:
    """The format that a file's name says, or None where it is none that is read."""
    path, packing = PurePath(name.lower()), packing_of(name)
    suffix = PurePath(path.stem).suffix if packing else path.suffix
    return Format(suffix, packing) if suffix in FORMATS else None


def packing_of(name: str) -> str:
    """The suffix in lower case of what a file is packed in, by its name; "" where it is not."""
    suffix = PurePath(name).suffix.lower()
    return suffix if suffix in UNPACKED_BY else ""


@dataclass(frozen=True)
class DataFile:
    """A file with texts or rows in it.

    Attributes:
        name: what it is called, for people; its end says the format.
        open: gives its bytes.
        remote: it comes over a network, so that what looks damaged is fetched once more.
        whole: a plain text is one document; else its paragraphs are.
    """

    name: str
    open: Callable[[], BinaryIO]
    remote: bool = False
    whole: bool = False

    @classmethod
    def local(cls, path: Path, name: str | None = None) -> DataFile:
        """A file on this machine.

        Args:
            name: what to call it, where it is a copy of another.
        """
        return cls(name or str(path), _Opener(path))

    @property
    def format(self) -> Format:
        """What its name says.

        Raises:
            UserError: it is none that is read.
        """
        found = format_of(self.name)
        if found is None:
            raise UserError(
                f"{self.name} is of a format that is not read",
                f"{IN_WORDS} files are, also as {PACKED_IN_WORDS}",
            )
        return found

    @property
    def unit(self) -> str:
        """What is counted in it, in words."""
        found = format_of(self.name)
        return UNITS.get(found.suffix, "paragraph") if found else "row"

    @contextmanager
    def unpacked(self) -> Iterator[io.BufferedReader]:
        """Its bytes, unpacked.

        Raises:
            Damaged: they cannot be read, now or later inside the context.
            UserError: something else is in its place.
        """
        # Local, because an unfinished generator is closed when the interpreter has given up its modules.
        damage = OSError, EOFError, zlib.error, lzma.LZMAError
        try:
            with self.open() as opened:
                packed = _with_peek(opened)
                if instead := pointer_or_page(packed.peek(BLOCK_BYTES)):
                    if self.remote:
                        raise Damaged(f"it is {instead}")  # which the next request may not bring
                    raise UserError(f"{self.name} is {instead}")
                unpack = UNPACKED_BY.get(packing_of(self.name))
                yield packed if unpack is None else _with_peek(unpack(packed))
        except damage as error:
            raise Damaged(first_line(error)) from error

    @contextmanager
    def utf8(self) -> Iterator[BinaryIO]:
        r"""Its text as UTF-8 without a mark, lines ending in "\n" or "\r\n"; bytes that are no UTF-8 stay.

        Raises:
            Damaged: it cannot be read.
            UserError: something else is in its place.
        """
        with self.unpacked() as stream:
            encoding = "utf-8"
            head = stream.peek(BLOCK_BYTES)
            for mark, marked in _MARKS:
                if head.startswith(mark):
                    stream.read(len(mark))
                    encoding = marked
                    break
            else:
                self._refuse_other_bytes(head)
            if encoding != "utf-8":
                decoder = codecs.getincrementaldecoder(encoding)()
                stream = io.BufferedReader(_Changed(stream, _Recoding(decoder, encoding)), BLOCK_BYTES)
            head = stream.peek(BLOCK_BYTES)
            if b"\r" in head and b"\n" not in head:
                stream = io.BufferedReader(_Changed(stream, _with_newlines), BLOCK_BYTES)
            yield stream

    def _refuse_other_bytes(self, head: bytes) -> None:
        """Refuse what its name does not say and no text is, by the first bytes."""
        name = PurePath(self.name).name
        for beginning, suffix in _NO_TEXT.items():
            if head.startswith(beginning):
                raise UserError(
                    f"{self.name} is not text: its content is that of a {suffix} file",
                    f"call it {name}{suffix}"
                    if suffix in UNPACKED_BY
                    else "give the file its own ending, or unpack it",
                )
        even, odd = head[::2].count(0), head[1::2].count(0)
        if (even + odd) * 4 > len(head):
            encoding = "UTF-16BE" if even > 2 * odd else "UTF-16LE" if odd > 2 * even else None
            raise UserError(
                f"{self.name} is not UTF-8: every few bytes one is 0"
                + (f", as in {encoding} without a mark" if encoding else ""),
                f"convert it first, e.g. iconv -f {encoding} -t UTF-8 {name}" if encoding else None,
            )


@dataclass(frozen=True)
class _Opener:
    """Opens a file. A class, because files are sent to other processes."""

    path: Path

    def __call__(self) -> BinaryIO:
        return self.path.open("rb")


def read_text(file: Path) -> bytes:
    """The content of a local text file as UTF-8 without a mark, unpacked.

    Raises:
        UserError: it cannot be read, or is in another encoding.
    """
    try:
        with DataFile.local(file).utf8() as stream:
            raw = stream.read()
    except Damaged as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if isinstance(bad := decoded(raw), BadRow):
        raise UserError(f"{file} is {bad.reason}", bad.hint)
    return raw


def decoded(text: bytes) -> str | BadRow:
    """Text of UTF-8."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        return not_utf8(error)


def not_utf8(error: UnicodeDecodeError) -> BadRow:
    """What is in the place of text in another encoding."""
    return BadRow(f"not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}", CONVERT)


def json_value(text: bytes) -> Any:
    """What a text of JSON stands for, or a `BadRow`."""
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        hint = None
        if error.msg.startswith("Expecting property name") and text.strip() == b"{":
            hint = "a row is one line of JSON; a file may also be one list of rows"
        return BadRow(f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}{line}", hint)
    except ValueError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            return not_utf8(error.__cause__)
        return BadRow(f"not JSON: {error}", "leave such a column out, or make it a text")


# --- streams ------------------------------------------------------------------------------------------------


def _unpack_zstandard(packed: BinaryIO) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(packed, "zstd")


UNPACKED_BY: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _unpack_zstandard,
}


def _with_peek(stream: Any) -> io.BufferedReader:
    return stream if hasattr(stream, "peek") else io.BufferedReader(stream, BLOCK_BYTES)


class _Changed(io.RawIOBase):
    """Bytes of a stream as `change` makes them of each block; it is called with b"" at the end."""

    def __init__(self, stream: BinaryIO, change: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._stream, self._change = stream, change
        self._ready, self._over = memoryview(b""), False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._over:
            block = self._stream.read(BLOCK_BYTES)
            self._over = not block
            self._ready = memoryview(self._change(block))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


class _Recoding:
    """Makes UTF-8 of the blocks of another encoding."""

    def __init__(self, decoder: codecs.IncrementalDecoder, encoding: str) -> None:
        self._decoder, self._encoding = decoder, encoding

    def __call__(self, block: bytes) -> bytes:
        try:
            return self._decoder.decode(block, final=not block).encode("utf-8")
        except UnicodeDecodeError as error:
            raise Damaged(f"not {self._encoding.upper()}, as its mark says: {error.reason}") from error


def _with_newlines(block: bytes) -> bytes:
    return block.replace(b"\r", b"\n")


def supported(formats: Collection[str] = FORMATS) -> str:
    """The formats in words, for hints."""
    return f"supported: {', '.join(formats)}, also packed ({PACKED_IN_WORDS})"
