"""What a file is that stands where another was expected: a pointer, a web page, an archive.

A download or a checkout that went wrong mostly leaves such a file under the right name, and who knows what it
is knows what to do. Its first bytes say it.
"""

from __future__ import annotations

from pathlib import Path

HEAD = 512
"""Bytes of a file that are looked at."""
_POINTER = "what it points to was never fetched"
_PAGE = "a web page (HTML); download it again, and look at what the server answers"
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
    b"PAR1": "a Parquet file; call it .parquet",
    **{b"BZh%d1AY&SY" % level: "a bzip2 archive; unpack it" for level in range(1, 10)},
}
_TAR = b"ustar"
"""In a tar archive, 257 bytes from its start."""


def pointer_or_page(head: bytes) -> str | None:
    """What no data are, whatever their format: a pointer to a file, or a web page; else None.

    Args:
        head: the first bytes of a file, `HEAD` of them or more.
    """
    text = head[:HEAD].removeprefix(b"\xef\xbb\xbf").strip().lower()
    return next((what for start, what in _NO_DATA.items() if text.startswith(start)), None)


def archive(head: bytes) -> str | None:
    """What is packed, or no text, under the name of a file that is neither; arguments as of the above."""
    if head[257:].startswith(_TAR):
        return "a tar archive; unpack it"
    return next((what for start, what in _ARCHIVES.items() if head.startswith(start)), None)


def but(file: Path) -> str:
    """What a file that could not be read is in truth, as " but a web page ..."; empty where it does not show.

    Raises:
        OSError: it cannot be read at all.
    """
    with file.open("rb") as opened:
        head = opened.read(HEAD)
    # What torch writes is a zip archive, and is none to unpack.
    what = pointer_or_page(head) or (None if head.startswith(_ZIP) else archive(head))
    return f" but {what}" if what else ""
