"""The supported formats of data files, their compression, and their bytes as UTF-8.

A file's suffix gives its format, in any case: `a.JSONL.gz`. Text is UTF-8, with or without a byte order mark,
or UTF-16 or UTF-32 with one; lines may end as on any system.
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
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO

from mrt5cli.errors import UserError
from mrt5cli.json_files import parse
from mrt5cli.stand_ins import archive, pointer_or_page
from mrt5cli.text import byte_size, first_line, visible

if TYPE_CHECKING:
    from typing_extensions import Buffer

TEXT = (".txt", ".text")
JSON = (".jsonl", ".ndjson", ".json")
TABLES = (".csv", ".tsv")
PARQUET = (".parquet",)
ROWS = (*JSON, *TABLES, *PARQUET)
FORMATS = (*TEXT, *ROWS)

CONVERT = "convert the file first, e.g. iconv -f LATIN1 -t UTF-8 (or whatever its encoding is)"
# Bytes read at a time; the first block identifies a file's content.
BLOCK_BYTES = 1 << 16
LONGEST_ROW = 2**26
"""Most bytes of a line of a table or of JSON, or of a cell, because it is held in memory."""
PACKED_PARQUET = 2**28
"""Most bytes of a compressed Parquet file once decompressed, because that happens in memory."""
# Control characters that are rare in text; tabs, line breaks and the escapes of colored logs are allowed.
_CONTROLS = bytes({*range(32)} - {*b"\t\n\f\r\x1b"})
# UTF-32 comes first, because its mark begins like UTF-16's.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Damaged(Exception):
    """The content of a file cannot be read; `hint` is what to do next."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: what is wrong with it, and what to do next."""

    reason: str
    hint: str | None = None


def suffix_of(name: str) -> str:
    """The suffix of a file's format, without that of its compression; empty if the format is not read."""
    path = PurePath(name.lower())
    suffix = PurePath(path.stem).suffix if path.suffix in UNPACKED_BY else path.suffix
    return suffix if suffix in FORMATS else ""


def without_suffix(name: str) -> str:
    """The path of a file without the suffixes of its format and compression."""
    suffix = suffix_of(name)
    return name[: name.lower().rindex(suffix)] if suffix else name


@dataclass(frozen=True)
class DataFile:
    """A file of texts or rows.

    Attributes:
        name: its name in messages; the suffix gives the format.
        open: opens it for reading bytes.
        remote: whether it comes over a network, so that damage is a reason to fetch it once more.
        whole: whether a plain text is one document, instead of one per paragraph.
    """

    name: str
    open: Callable[[], BinaryIO]
    remote: bool = False
    whole: bool = False

    @classmethod
    def local(cls, path: Path, name: str | None = None) -> DataFile:
        """A file on this machine; `name` is for messages, if it is a copy of another file."""
        return cls(name or visible(str(path), lines=False), partial(_opened, path))

    @property
    def suffix(self) -> str:
        """The suffix of its format."""
        return suffix_of(self.name)

    @property
    def unit(self) -> str:
        """The word for its rows in messages."""
        return "paragraph" if self.suffix in TEXT else "row" if self.suffix in PARQUET else "line"

    @contextmanager
    def unpacked(self) -> Iterator[io.BufferedReader]:
        """Its bytes, decompressed.

        Raises:
            Damaged: they cannot be read, now or later inside the context.
            UserError: it is a pointer or a web page instead of data.
        """
        # Local, because an unfinished generator may be closed after the interpreter has cleared its modules.
        damage = OSError, EOFError, zlib.error, lzma.LZMAError
        try:
            with self.open() as opened:
                packed = _with_peek(opened)
                if instead := pointer_or_page(packed.peek(BLOCK_BYTES)):
                    if self.remote:
                        raise Damaged(f"it is {instead}")  # the next request may return the data
                    raise UserError(f"{self.name} is {instead}")
                unpack = UNPACKED_BY.get(PurePath(self.name).suffix.lower())
                yield _with_peek(unpack(packed)) if unpack else packed
        except damage as error:
            raise Damaged(first_line(error)) from error

    @contextmanager
    def utf8(self) -> Iterator[io.BufferedReader]:
        r"""Its text as UTF-8 without a mark, with lines ending in "\n" or "\r\n"; invalid bytes are kept.

        Raises:
            Damaged: it cannot be read.
            UserError: it is not text in UTF-8, or not data at all.
        """
        with self.unpacked() as stream:
            head = stream.peek(BLOCK_BYTES)
            encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
            if packed := archive(head):
                raise UserError(f"{self.name} is {packed}")
            if encoding == "utf-8-sig":
                stream.read(len(codecs.BOM_UTF8))
            elif encoding:
                stream = _made_of(_recoded(stream, encoding))
            elif head.count(0) * 4 > len(head):
                raise UserError(
                    f"{self.name} is not UTF-8: it is full of zero bytes, like UTF-16 without a byte "
                    "order mark",
                    "convert it first, e.g. iconv -f UTF-16LE -t UTF-8",
                )
            elif len(head) - len(head.translate(None, _CONTROLS)) > max(16, len(head) // 16):
                raise UserError(
                    f"{self.name} is not UTF-8: it is full of control characters, like UTF-16 without a byte "
                    "order mark, or a binary file",
                    "convert it first, e.g. iconv -f UTF-16LE -t UTF-8",
                )
            head = stream.peek(BLOCK_BYTES)
            if b"\r" in head and b"\n" not in head:
                stream = _made_of(_with_line_ends(stream))
            yield stream


def read_text(file: Path, hint: str) -> str:
    """The content of a local text file, decompressed; `hint` describes the expected file.

    Raises:
        UserError: the file cannot be read, is too large, or is not UTF-8.
    """
    if not file.is_file():
        raise UserError(f"{file} is not a file", hint)
    try:
        with DataFile.local(file).utf8() as stream:
            content = stream.read(LONGEST_ROW + 1)
            if len(content) > LONGEST_ROW:
                raise UserError(f"{file} contains more than {byte_size(LONGEST_ROW)} of text", hint)
            return content.decode("utf-8")
    except Damaged as error:
        raise UserError(f"{file} cannot be read: {error}", error.hint or "download it again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is {not_utf8(error).reason}", CONVERT) from error


def rows_within(stream: io.BufferedReader | io.BytesIO) -> io.BufferedReader:
    """A stream whose lines have at most `LONGEST_ROW` bytes; reading a longer one raises `Damaged`."""
    return _made_of(_checked_lines(stream))


def _checked_lines(stream: io.BufferedReader | io.BytesIO) -> Iterator[bytes]:
    line, length = 1, 0
    while block := stream.read1(BLOCK_BYTES):  # what is available: a user may be typing
        ends = block.count(b"\n")
        line += ends
        length = len(block) - block.rindex(b"\n") - 1 if ends else length + len(block)
        if length > LONGEST_ROW:
            raise Damaged(
                f"line {line} is longer than {byte_size(LONGEST_ROW)}",
                "check that its suffix matches its format",
            )
        yield block


def _recoded(stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while block := stream.read(BLOCK_BYTES):
            yield decoder.decode(block).encode()
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise Damaged(f"not {encoding.upper()}, which its byte order mark states: {error.reason}") from error


def _with_line_ends(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(BLOCK_BYTES):
        yield block.replace(b"\r", b"\n")


class _Blocks(io.RawIOBase):
    """A stream of the bytes that an iterator yields."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, into: Buffer, /) -> int:
        view = memoryview(into)
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = block
        taken = self._rest[: len(view)]
        view[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)


def _made_of(blocks: Iterator[bytes]) -> io.BufferedReader:
    return io.BufferedReader(_Blocks(blocks), BLOCK_BYTES)


def _opened(path: Path) -> io.FileIO:
    """An open file; a pipe would block, and a device might never end."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file", "give a file: data is read more than once")
    return io.FileIO(path)


def not_utf8(error: UnicodeDecodeError) -> BadRow:
    """The bad row for text in another encoding."""
    return BadRow(f"not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}", CONVERT)


def json_value(text: bytes) -> object:
    """The value of a JSON text, or a `BadRow`."""
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        return BadRow(f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}{line}")
    except UnicodeDecodeError as error:
        return not_utf8(error)
    except ValueError as error:
        return BadRow(f"not JSON: {error}", "remove the column, or make it a string")


def supported(formats: Collection[str] = FORMATS) -> str:
    """The supported formats, for hints."""
    return f"supported: {', '.join(formats)}, also compressed ({', '.join(UNPACKED_BY)})"


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
