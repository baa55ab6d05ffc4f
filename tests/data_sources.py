"""Small sources for data sets: made-up words and sentences, and a package of declarations."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterable
from pathlib import Path

from mrt5cli.data.builders import udhr

# Every word has misspellings of its own; some misspellings may stand for either of two words.
STEMS = [
    a + b + c for a in ("bo", "ca", "di", "fu") for b in ("ran", "lom", "tis") for c in ("de", "ka", "po")
]
ALONE = {f"{stem}{letter}": (stem,) for stem in STEMS for letter in "qxz"}
AMBIGUOUS = {f"{a[:-1]}{b[-1]}x": (a, b) for a, b in zip(STEMS[::2], STEMS[1::2], strict=False)}


def dictionary_file(folder: Path) -> Path:
    lines = [f"{wrong}->{rights[0]}" for wrong, rights in ALONE.items()]
    lines += [f"{wrong}->{', '.join(rights)}," for wrong, rights in AMBIGUOUS.items()]
    file = folder / "words.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


def text_file(folder: Path, count: int = 600) -> Path:
    draw = random.Random(5)
    lines = [" ".join(draw.choices(STEMS, k=draw.randint(3, 14))).capitalize() + "." for _ in range(count)]
    file = folder / "text.txt"
    file.write_text("\n\n".join(lines))
    return file


WORDS = sorted({a + b + c for a in ("tran", "ser", "po") for b in ("lo", "miva", "se") for c in STEMS})


def rows(file: Path) -> list[tuple[str, str]]:
    pairs = [line.split("\t") for line in file.read_text().splitlines()]
    return [(source, target) for source, target in pairs]


def tgz(path: Path, files: Iterable[tuple[str, str]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files:
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def page(language: str, articles: int = 12) -> str:
    body = "".join(
        f'<article data-number="{n}"><h2>Article {n}</h2><ol>'
        f"<li><p>{language} {n}\n  {'words ' * 60}</p></li>"
        f"<li><p>&amp; more</p></li></ol></article>"
        for n in range(1, articles + 1)
    )
    return f"<html><body><h1>T</h1><header><h2>P</h2><p>Preamble {language}</p></header>{body}</body></html>"


def package(path: Path, **settings: int) -> Path:
    pages = [
        (f"declaration/{code}.html", page(language, **settings)) for language, code in udhr.CODES.items()
    ]
    return tgz(path, [("package.json", '{"version": "6.1.0"}'), *pages])


def fake_tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    tool = folder / name
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
