"""English sentences from arbitrary text, cut into windows of complete words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mrt5cli.data.embedded import embedded_documents
from mrt5cli.data.texts import find_files, read_documents, text_files

# White space between the end of a sentence and the capital letter of the next.
_BETWEEN = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_BLANK_LINE = re.compile(r"\n\s*\n")
# Only prose: code, markup and numbers contain other characters. Quotation marks are excluded because readers
# of tab-separated files may interpret them.
_PROSE = re.compile(r"[A-Z][A-Za-z ,;:.!?()'-]*[.!?]")
SHORTEST = 3
"""The fewest words of a sentence or window."""


def text_documents(path: Path | None) -> Iterator[str]:
    """The documents of a file or folder, or the documentation inside Python for None.

    Raises:
        UserError: the path does not exist, or cannot be read.
    """
    if path is None:
        documents: Iterable[bytes] = embedded_documents()
    else:
        found = find_files(path, ["en"])
        files = [file for split in sorted(found.splits("en")) for file in found.files("en", split)]
        documents = read_documents(text_files(files), "text", ["en"])["en"]
    for document in documents:
        yield document.decode("utf-8", errors="replace")


def sentences(document: str) -> Iterator[str]:
    """The sentences of prose in a document, each on one line."""
    for paragraph in _BLANK_LINE.split(document):
        for sentence in _BETWEEN.split(" ".join(paragraph.split())):
            if _PROSE.fullmatch(sentence) and sentence.count(" ") >= SHORTEST - 1:
                yield sentence


def windows(sentence: str, size: int) -> Iterator[str]:
    """A sentence cut between words into pieces of at most `size` characters and roughly equal length.

    Pieces of fewer than three words are left out, and so are words that are longer than `size`.
    """
    pieces = -(-(len(sentence) + 1) // (size + 1))
    enough = -(-len(sentence) // pieces)
    piece = ""
    for word in [*sentence.split(), None]:
        longer = word if word is None or not piece else f"{piece} {word}"
        if longer is not None and len(longer) <= size and (not piece or len(piece) < enough):
            piece = longer
            continue
        if piece.count(" ") >= SHORTEST - 1:
            yield piece
        piece = word if word is not None and len(word) <= size else ""
