"""What a file is that stands where another was expected: a pointer, a web page, an archive.

A download or a checkout that went wrong mostly leaves such a file under the right name, and who knows what it
is knows what to do. Its first bytes say it.
"""

from __future__ import annotations

from pathlib import Path

HEAD = 512
"""Bytes of a file that are looked at."""
PACKED = {
    b"\x1f\x8b": (".gz", "a gzip archive"),
    b"\x28\xb5\x2f\xfd": (".zst", "a Zstandard archive"),
    b"BZh": (".bz2", "a bzip2 archive"),
    b"\xfd7zXZ\x00": (".xz", "an xz archive"),
}
"""What is packed, by its first bytes: the suffix of such files, and what they are."""
_PAGE = "a web page (HTML); download it again, and look at what the server answers"
_POINTER = "what it points to was never fetched"
_INSTEAD = {
    b"version https://git-lfs.github.com/spec/": f"a Git LFS pointer; {_POINTER}: git lfs pull",
    b"/annex/objects/": f"a git-annex pointer; {_POINTER}: git annex get",
    b"<!doctype": _PAGE,
    b"<html": _PAGE,
}


def pointer_or_page(head: bytes) -> str | None:
    """What no data are, whatever their format: a pointer to a file, or a web page; else None.

    Args:
        head: the first bytes of a file, `HEAD` of them or more.
    """
    text = head[:HEAD].removeprefix(b"\xef\xbb\xbf").strip().lower()
    return next((what for start, what in _INSTEAD.items() if text.startswith(start)), None)


def but(file: Path) -> str:
    """What a file that could not be read is in truth, as " but a web page ..."; empty where it does not show.

    Raises:
        OSError: it cannot be read at all.
    """
    with file.open("rb") as opened:
        head = opened.read(HEAD)
    packed = (f"{what}; unpack it" for start, (_, what) in PACKED.items() if head.startswith(start))
    what = pointer_or_page(head) or next(packed, None)
    return f" but {what}" if what else ""
