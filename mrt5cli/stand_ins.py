"""What a file is that stands where another was expected: a pointer, a web page, an archive, an error message.

A download or a checkout that went wrong mostly leaves such a file under the right name, and who is told what
it is knows what to do. Its first bytes say it.
"""

from __future__ import annotations

from pathlib import Path

HEAD = 512
"""Bytes of a file that are looked at."""

AGAIN = "download it again, and look at what the server answers"
POINTER = "what it points to was never fetched"
AS_SAFETENSORS = "get the weights as safetensors"
POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer", f"{POINTER}: git lfs pull"),
    (b"version https://hawser.github.com/spec/", "a Git LFS pointer", f"{POINTER}: git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer", f"{POINTER}: git annex get"),
)
PACKED = {
    b"\x1f\x8b": (".gz", "a gzip archive"),
    b"\x28\xb5\x2f\xfd": (".zst", "a Zstandard archive"),
    b"BZh": (".bz2", "a bzip2 archive"),
    b"\xfd7zXZ\x00": (".xz", "an xz archive"),
}
"""What is packed, by its first bytes: the suffix of such files, and what they are."""
BEGINNINGS = (
    *((beginning, what, "unpack it") for beginning, (_, what) in PACKED.items()),
    (b"GGUF", "a GGUF file", AS_SAFETENSORS),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes them", AS_SAFETENSORS),
)
"""First bytes, what begins with them, and what to do."""
XML = (b"<?xml", b"<error")
HTML = (b"<!doctype", b"<html", b"<head", b"<body")
PRINTABLE = bytes([*range(32, 127), *b"\t\n\r\f"])
SHOWN = 60
"""Characters of a text that are shown."""


def stand_in(file: Path) -> str | None:
    """What a file is in truth, and what to do, to end "is not a ... but" with; None where it does not show.

    Args:
        file: one that could not be read as what it should be.

    Raises:
        OSError: it cannot be read at all.
    """
    with file.open("rb") as opened:
        head = opened.read(HEAD)
    if what := pointer_or_page(head):
        return what
    for beginning, what, advice in BEGINNINGS:
        if head.startswith(beginning):
            return f"{what}; {advice}"
    text = head.removeprefix(b"\xef\xbb\xbf").strip()
    if text.lower().startswith(XML):
        return f"an answer in XML; {AGAIN}"
    # What begins as JSON is JSON, whatever else is wrong with it.
    if text and not text.startswith((b"{", b"[")) and not text.translate(None, PRINTABLE):
        words = " ".join(text.decode("ascii").split())
        return f"text, beginning {words[:SHOWN]!r}; {AGAIN}"
    return None


def pointer_or_page(head: bytes) -> str | None:
    """What no data are, whatever their format: a pointer to a file, or a web page; None for anything else.

    Args:
        head: the first bytes of a file, `HEAD` of them or more.
    """
    text = head[:HEAD].removeprefix(b"\xef\xbb\xbf").strip()
    for beginning, what, advice in POINTERS:
        if text.startswith(beginning):
            return f"{what}; {advice}"
    if text.lower().startswith(HTML):
        return f"a web page (HTML); {AGAIN}"
    if text.startswith(b"<?xml") and b"<error" in text.lower():
        return f"an answer in XML; {AGAIN}"
    return None


def but(file: Path) -> str:
    """ " but a web page (HTML); ...", or nothing where it does not show."""
    what = stand_in(file)
    return f" but {what}" if what else ""
