"""Where a data set goes: a folder that is whole or absent, with a manifest of what it was made from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, TypeVar

from mrt5cli import __version__
from mrt5cli.data.splits import SPLITS
from mrt5cli.errors import UserError
from mrt5cli.json_files import parse
from mrt5cli.rundir import whole_directory
from mrt5cli.text import say_on_stderr

MANIFEST = "manifest.json"
MADE_BY = "mrt5 data build"
MAKERS = (MADE_BY, "mrt5's recipes/")
"""How the name begins of whatever writes a data set here."""

QUIET_SECONDS = 2.0

Manifest = dict[str, Any]
Thing = TypeVar("Thing")


def with_progress(things: Iterable[Thing], what: str, total: int | None = None) -> Iterator[Thing]:
    """Things as they come; how many have come is said on stderr every two seconds.

    Args:
        what: is done with them, for people.
        total: how many there are; None is not known.
    """
    said = time.monotonic()
    for done, thing in enumerate(things):
        now = time.monotonic()
        if now - said >= QUIET_SECONDS:
            said = now
            say_on_stderr(f"{what} {done:,}" + (f"/{total:,}" if total else ""))
        yield thing


def lot(seed: int, *parts: object) -> int:
    """A number from 0 to 2**64 drawn for these parts: the same in every process, machine and Python version.

    Drawing by content instead of from a generator also keeps what was drawn when a source grows.
    """
    text = "\x1f".join(map(str, (seed, *parts)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def share(seed: int, *parts: object) -> float:
    """`lot` as a fraction, 0 to below 1."""
    return (lot(seed, *parts) >> 11) / 2**53


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a place that holds something, before any work is done.

    Args:
        out: the folder to be.
        overwrite: replace an earlier data set; never anything else.

    Raises:
        UserError: there is a file, or a folder that must not be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; the data set is a folder", "give another name")
    if not is_made_here(out):
        raise UserError(
            f"{out} is not empty and was not made by `{MADE_BY}`", "give a new folder; this one is left alone"
        )
    if not overwrite:
        raise UserError(f"{out} holds a data set already", "--overwrite replaces it, or give another folder")


def is_made_here(out: Path) -> bool:
    """Whether a folder holds a data set of this package: not the published data, whatever its form."""
    try:
        manifest = parse((out / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and str(manifest.get("made_by", "")).startswith(MAKERS)


def write_data_set(
    out: Path, made_by: str, files: Mapping[str, bytes], details: Mapping[str, Any], *, overwrite: bool
) -> Manifest:
    """Write files and their manifest, all or nothing.

    Args:
        out: the folder; see `check_target`.
        made_by: the command; its beginning is one of `MAKERS`.
        files: content by name, folders in it separated by slashes.
        details: of the manifest; `files` there may hold more about each file.

    Returns:
        The manifest.

    Raises:
        UserError: the place is taken, or cannot be written to.
    """
    check_target(out, overwrite=overwrite)
    described = details.get("files", {})
    manifest: Manifest = {
        "made_by": made_by,
        "mrt5cli": __version__,
        **{key: value for key, value in details.items() if key != "files"},
        "files": {
            name: {
                **described.get(name, {}),
                "bytes": len(content),
                "sha256": sha256(content).hexdigest(),
            }
            for name, content in files.items()
        },
    }
    try:
        with whole_directory(out.resolve()) as folder:
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            (folder / MANIFEST).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {error.strerror or error}", "give a folder you may write to"
        ) from error
    return manifest


def split_at(held_out: Mapping[str, float], place: float) -> str:
    """The split of something that was drawn at `place`, 0 to below 1.

    Args:
        held_out: the share of each split but training.
    """
    for split, fraction in held_out.items():
        if place < fraction:
            return split
        place -= fraction
    return "train"


def texts_by_language(
    rows: Mapping[str, Iterable[Mapping[str, str]]], split_of: Callable[[str], str]
) -> tuple[dict[str, bytes], dict[str, dict[str, int]]]:
    """Files `<language>/{train,validation,test}.jsonl`, and how much is in each.

    Args:
        rows: of each language, with a `text` and the name `doc` that it shares with its translations.
        split_of: the split of all texts of a name.
    """
    files: dict[str, bytes] = {}
    details: dict[str, dict[str, int]] = {}
    for language, found in rows.items():
        splits: dict[str, list[Mapping[str, str]]] = {split: [] for split in SPLITS}
        for row in found:
            splits[split_of(row["doc"])].append(row)
        for split, part in splits.items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part)
            files[f"{language}/{split}.jsonl"] = "".join(lines).encode()
            size = sum(len(row["text"].encode()) for row in part)
            details[f"{language}/{split}.jsonl"] = {"documents": len(part), "text_bytes": size}
    return files, details


def tsv(rows: Iterable[Sequence[str]]) -> bytes:
    """Rows of input and output, tab-separated, without a header: the form of the published files."""
    return "".join(f"{source}\t{target}\n" for source, target in rows).encode()
