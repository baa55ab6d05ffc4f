"""Recognising a file that stands in for the expected one: a Git LFS pointer, a web page, an archive.

A failed download or checkout often leaves such a file under the right name. Its first bytes identify it, and
naming it in the error tells the user what to do.
"""

from __future__ import annotations

from pathlib import Path

HEAD = 512
"""Bytes of a file that are inspected."""
_POINTER = "the file it points to was not fetched"
_PAGE = "a web page (HTML); download the file again and check what the server returns"
_NO_DATA = {
    b"version https://git-lfs.github.com/spec/": f"a Git LFS pointer; {_POINTER}: git lfs pull",
    b"/annex/objects/": f"a git-annex pointer; {_POINTER}: git annex get",
    b"<!doctype": _PAGE,
    b"<html": _PAGE,
}
_ZIP = b"PK\x03\x04"
_ARCHIVES = {
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive; unpack it",
    b"\xfd7zXZ\0": "an xz archive; unpack it",
    _ZIP: "a zip archive; unpack it",
    b"PAR1": "a Parquet file; rename it to .parquet",
    **{b"BZh%d1AY&SY" % level: "a bzip2 archive; unpack it" for level in range(1, 10)},
}
_TAR = b"ustar"
"""Signature of a tar archive, at byte 257."""


def pointer_or_page(head: bytes) -> str | None:
    """Describe a pointer or a web page, which is never data of any format; None for other files.

    Args:
        head: at least the first `HEAD` bytes of the file.
    """
    text = head[:HEAD].removeprefix(b"\xef\xbb\xbf").strip().lower()
    return next((what for start, what in _NO_DATA.items() if text.startswith(start)), None)


def archive(head: bytes) -> str | None:
    """Describe an archive or binary file where text was expected; None for other files."""
    if head[257:].startswith(_TAR):
        return "a tar archive; unpack it"
    return next((what for start, what in _ARCHIVES.items() if head.startswith(start)), None)


def but(file: Path) -> str:
    """What an invalid file actually is, as " but a web page ..."; empty if it is not recognized.

    Raises:
        OSError: it cannot be read at all.
    """
    with file.open("rb") as opened:
        head = opened.read(HEAD)
    # torch's own files are zip archives that must not be unpacked.
    what = pointer_or_page(head) or (None if head.startswith(_ZIP) else archive(head))
    return f" but {what}" if what else ""
