"""English sentences out of whatever text there is, cut into windows of whole words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mrt5cli.data.embedded import embedded_documents
from mrt5cli.data.texts import find_files, read_documents, text_files

# White space between a sentence's end and the next one's capital.
_BETWEEN = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_BLANK_LINE = re.compile(r"\n\s*\n")
# Prose only: code, markup and numbers hold characters that are not here. No quotation mark either: readers of
# tab-separated files give it a meaning.
_PROSE = re.compile(r"[A-Z][A-Za-z ,;:.!?()'-]*[.!?]")
SHORTEST = 3
"""Words of a sentence or window, at least."""


def text_documents(path: Path | None) -> Iterator[str]:
    """Documents of a file or folder, or the documentation inside Python, as text.

    Raises:
        UserError: nothing there, or something that cannot be read.
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
    """Sentences of prose in a document, on one line each."""
    for paragraph in _BLANK_LINE.split(document):
        # Where a line was broken says nothing.
        for sentence in _BETWEEN.split(" ".join(paragraph.split())):
            if _PROSE.fullmatch(sentence) and sentence.count(" ") >= SHORTEST - 1:
                yield sentence


def windows(sentence: str, size: int) -> Iterator[str]:
    """A sentence in pieces of whole words that follow each other, at most `size` characters, about equal.

    Pieces of fewer than three words are left out, and so is a word that is longer than a piece.
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
